"""What of timm's families of CNNs is predicted, and whether calibration keeps their outputs.

    pip install --no-deps timm
    python benchmarks/timm_families.py --data data/cifar10
    python benchmarks/timm_families.py --data data/cifar10 --families resnet convnext --minutes 10

One member of each family: the smallest that is a CNN, which has two convolutions or more and no
product of two activations, as attention has it. It is predicted at W8/A8 with the weights that
ship and calibrated on 256 training images of 32 pixels, or more where it takes no less. A row says
how far the calibrated outputs on these images are from those with batch statistics of all of them
(norm of the difference, in percent), and for how many of them the largest logit is of the same
class. At 8 bits calibration clips nothing, so that both have the same ranges, and what differs is
the statistics and what follows from them: a value on the edge between two levels is rounded up in
one and down in the other. At fewer bits ranges that are fixed for all images clip, as they are
meant to, and the two would differ by that. Lines go to benchmarks/results/timm_families.jsonl as
they come; nothing is measured twice, and the table of all of them is
benchmarks/results/timm_families.json.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from typing import Any

import common
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ghnqat_sdk import (
    GhnqatError,
    calibrate,
    predict_quantized_params,
    prediction_report,
    trace,
)
from ghnqat_sdk.data import load_images

LINES = common.RESULTS / "timm_families.jsonl"
TABLE = common.RESULTS / "timm_families.json"
COLUMNS = ("side", "parameters", "predicted", "kept", "float layers", "difference %", "same %")
IMAGES = 256
SIDES = (32, 64, 128, 224, 256)
CLOSE, SAME = 5.0, 95.0
"""Percent: the largest difference and the least share of equal classes."""
TRIED = 8
"""Members of a family that are looked at, the smallest ones."""
PRODUCTS = {"attention", "multi_head_attention", "matmul"}
SKIPPED = ("test_", "tf_", "gc_")
"""Prefixes of members that stand for no family of their own."""


def members() -> dict[str, list[str]]:
    """Family, which is a file of timm, to names of models."""
    import timm

    found: dict[str, list[str]] = defaultdict(list)
    for name in timm.list_models():
        if not name.startswith(SKIPPED):
            family = timm.models._registry._model_to_module[name]
            found[family].append(name)
    return dict(found)


def build(name: str) -> nn.Module:
    """A member with ten classes."""
    import timm

    return timm.create_model(name, num_classes=10, scriptable=False)


def sizes(names: list[str]) -> list[tuple[int, str]]:
    """Parameters and name of each member that can be built without memory, smallest first."""
    found = []
    for name in names:
        try:
            with torch.device("meta"):
                model = build(name)
        except (RuntimeError, ValueError, TypeError, NotImplementedError, AssertionError):
            continue
        found.append((sum(parameter.numel() for parameter in model.parameters()), name))
    return sorted(found)


def chosen(names: list[str]) -> tuple[str, int] | None:
    """The smallest member that is a CNN, and the side of images that it takes."""
    for _, name in sizes(names)[:TRIED]:
        with torch.device("meta"):
            model = build(name)
        for side in SIDES:
            try:
                graph = trace(model, torch.empty(2, 3, side, side, device="meta"))
            except GhnqatError:
                continue
            ops = [node.op for node in graph.nodes]
            convolutions = sum(op.endswith("conv") for op in ops)
            if convolutions >= 2 and PRODUCTS.isdisjoint(ops):
                return name, side
            break
    return None


def images_of(data: str, side: int) -> Tensor:
    """Normalized training images (N, 3, side, side)."""
    drawn = load_images(data, "train", 32).sample(IMAGES, seed=0)
    inputs = drawn.normalize(drawn.images)
    return interpolate(inputs, size=side, mode="bilinear", antialias=True, align_corners=False)


@torch.no_grad()
def measure(family: str, name: str, side: int, data: str) -> dict[str, Any]:
    """One line."""
    torch.manual_seed(0)
    started = time.perf_counter()
    images = images_of(data, side)
    line = {"family": family, "model": name, "side": side}
    model = build(name)
    try:
        qmodel = predict_quantized_params(model, (8, 8), example_inputs=images[:2]).eval()
        expected = qmodel(images)
        calibrate(qmodel, [images], progress=False)
    except GhnqatError as error:
        return line | {"error": str(error)}
    outputs = qmodel(images)
    report = prediction_report(qmodel)
    same = (outputs.argmax(1) == expected.argmax(1)).double().mean().item()
    return line | {
        "parameters": len(report.predicted) + len(report.kept),
        "predicted": len(report.predicted),
        "kept": len(report.kept),
        "float layers": len(report.unquantized),
        "difference %": round(100 * ((outputs - expected).norm() / expected.norm()).item(), 2),
        "same %": round(100 * same, 1),
        "seconds": round(time.perf_counter() - started, 1),
    }


def tasks(options: argparse.Namespace, done: set[str]) -> Iterator[tuple[str, str, int]]:
    """(family, member, side) of what is not measured yet; families without a CNN are noted."""
    for family, names in members().items():
        if family in done or (options.families and family not in options.families):
            continue
        found = chosen(names)
        if found is None:
            common.append(LINES, {"family": family, "model": None})
            continue
        yield family, *found


def fine(line: dict[str, Any]) -> bool:
    """Whether a line is as it should be."""
    return "error" not in line and line["difference %"] <= CLOSE and line["same %"] >= SAME


def main() -> None:
    parser = common.parser(__doc__)
    common.add_data(parser)
    parser.add_argument("--families", nargs="*", default=[], help="names of timm's files")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="then take no new work")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    deadline = time.monotonic() + 60 * options.minutes
    measured = partial(measure, data=options.data)
    done = {line["family"] for line in common.read_lines(LINES)}
    for task in tasks(options, done):
        if time.monotonic() > deadline:
            break
        line = measured(*task)
        common.append(LINES, line)
        print(line, flush=True)
    lines = [line for line in common.read_lines(LINES) if line["model"]]
    print(common.head(["family", "model", *COLUMNS], texts=2))
    for line in lines:
        cells = [line.get(column, "–") for column in COLUMNS]
        print(common.row([line["family"], line["model"], *cells]))
    print(
        f"\n{sum(map(fine, lines))} of {len(lines)} families with CNNs: calibration keeps outputs"
    )
    common.write_json(TABLE, lines)


if __name__ == "__main__":
    main()
