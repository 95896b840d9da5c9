"""Exported networks beside ONNX Runtime's own static quantizer: files, agreement, then times.

Files are kept, and nothing is made twice. Times are the processor's, of one thread: medians of five
turns in which the files of a network follow each other, printed as the table of docs/export.md.

python benchmarks/onnx_export.py make --data data/cifar10 --files exports
python benchmarks/onnx_export.py time --files exports --json benchmarks/results/onnx_export.json
"""

from __future__ import annotations

import argparse
import copy
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import add_data, add_json, append, head, parser, read_lines, row, turns_ms, write_json
from exported import CHUNK, NETWORKS, TURNS, Images, classes, percent, predicted
from torch import Tensor, nn

from ghnqat_sdk.export import export_onnx
from ghnqat_sdk.export.onnx_graph import Graph, float_twin, fold_batch_norms, separate_constants
from ghnqat_sdk.export.program import require_ranges, to_onnx, with_onnx_quantizers
from ghnqat_sdk.export.runtime import integer_layers, runner, session_of
from ghnqat_sdk.export.sizes import Probes

OURS = {"w8a8": ((8, 8), "int8"), "w4a8": ((4, 8), "int4")}
KINDS = ("float", *OURS, "own")
FACTS = "facts.jsonl"
TIMES = "times.jsonl"
LEAST_SECONDS = 0.1
"""Of one turn of one file."""


class Reader:
    """Calibration images as ONNX Runtime's quantizer asks for them."""

    def __init__(self, name: str, images: Tensor) -> None:
        self.feeds: Iterator[dict[str, Any]] = ({name: x.numpy()} for x in images.split(CHUNK))

    def get_next(self) -> dict[str, Any] | None:
        return next(self.feeds, None)


def float_file(qmodel: nn.Module, images: Tensor) -> bytes:
    """The float twin, with batch norms folded."""
    bare = copy.deepcopy(qmodel).eval()
    inputs = (images[:8],)
    require_ranges(bare, inputs)
    probes = Probes(bare, inputs)
    proto, _ = to_onnx(with_onnx_quantizers(bare, inputs), inputs, 21, probes)
    graph = Graph(proto)
    separate_constants(graph)
    fold_batch_norms(graph)
    return float_twin(graph)


def own_quantizer(source: Path, images: Tensor, target: Path) -> None:
    """What ONNX Runtime's static quantizer makes of a float file."""
    from onnx import load
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = target.with_name("prepared.onnx")
    quant_pre_process(source, prepared)
    quantize_static(
        prepared,
        target,
        Reader(load(prepared).graph.input[0].name, images),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    prepared.unlink()


@torch.no_grad()
def make(name: str, images: Images, folder: Path) -> dict[str, Any]:
    """Writes the files of a network; what they hold and what they answer."""
    folder.mkdir(parents=True, exist_ok=True)
    facts: dict[str, Any] = {"network": name}
    for kind, (bits, storage) in OURS.items():
        qmodel = predicted(name, bits, images)
        if "own" not in facts:
            in_float = float_file(qmodel, images.chunks[0])
            (folder / "float.onnx").write_bytes(in_float)
            own_quantizer(folder / "float.onnx", images.calibration, folder / "own.onnx")
            own = (folder / "own.onnx").read_bytes()
            facts["own"] = {"fused": integer_layers(own)[0]}
        facts[kind] = _exported(qmodel, storage, images, folder / f"{kind}.onnx")
    return facts


def _exported(qmodel: nn.Module, storage: Any, images: Images, path: Path) -> dict[str, Any]:
    report = export_onnx(qmodel, path, images.calibration, storage=storage)
    run = runner(path.read_bytes())
    expected = classes(qmodel, images.validation)
    chosen = classes(lambda x: run((x,))[0], images.validation)
    return {
        "convolutions": report.convolutions,
        "fused": report.integer_convolutions,
        "size": round(report.size / report.float_size, 3),
        "same_class": percent(chosen == expected),
        "top1_torch": images.right(expected),
        "top1": images.right(chosen),
    }


def times(folder: Path, size: int) -> dict[str, float]:
    """Milliseconds of one image on one thread: medians of turns in which the files follow each
    other."""
    sessions = {
        kind: session_of((folder / f"{kind}.onnx").read_bytes(), threads=1) for kind in KINDS
    }
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0)).numpy()
    calls = [
        partial(session.run, None, {session.get_inputs()[0].name: image})
        for session in sessions.values()
    ]
    return dict(zip(sessions, turns_ms(calls, TURNS, LEAST_SECONDS), strict=True))


def table(lines: Sequence[dict[str, Any]]) -> str:
    """The table of docs/export.md."""
    columns = [
        "network", "fused", "float, ms", "W8/A8", "W4/A8", "own", "ours / own", "int8", "int4",
        "same class, % W8/A8", "W4/A8",
    ]  # fmt: skip
    rows = [head(columns)]
    for line in lines:
        eight, four, ms = line["w8a8"], line["w4a8"], line["milliseconds"]
        faster = [ms["float"] / ms[kind] for kind in KINDS[1:]]
        rows.append(
            row(
                [
                    line["network"].partition("/")[2],
                    f"{eight['fused']} of {eight['convolutions']}",
                    f"{ms['float']:.2f}",
                    *(f"{times:.2f}" for times in faster),
                    f"{ms['own'] / ms['w8a8']:.2f}",
                    *(f"{each['size']:.3f}" for each in (eight, four)),
                    *(f"{each['same_class']:.1f}" for each in (eight, four)),
                ]
            )
        )
    return "\n".join(rows)


def make_all(options: argparse.Namespace) -> None:
    """The files of all networks that are not yet made."""
    images = Images.load(options.data, options.size)
    done = {line["network"] for line in read_lines(options.files / FACTS)}
    for name in options.networks:
        if name not in done:
            facts = make(name, images, options.files / name)
            append(options.files / FACTS, facts)
            print(facts, flush=True)


def time_all(options: argparse.Namespace) -> None:
    """The times of all files that were made and not yet timed."""
    made = {line["network"]: line for line in read_lines(options.files / FACTS)}
    timed = {line["network"]: line for line in read_lines(options.files / TIMES)}
    for name in options.networks:
        if name in made and name not in timed:
            taken = times(options.files / name, options.size)
            timed[name] = {"network": name, "milliseconds": taken}
            append(options.files / TIMES, timed[name])
            print(timed[name], flush=True)
    lines = [made[name] | timed[name] for name in options.networks if name in timed]
    print(table(lines))
    if options.json:
        write_json(options.json, lines)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    steps = options.add_subparsers(dest="step", required=True)
    making, timing = (steps.add_parser(name) for name in ("make", "time"))
    add_data(making)
    add_json(timing)
    for each, run in ((making, make_all), (timing, time_all)):
        each.add_argument("--files", type=Path, required=True, help="folder for the files")
        each.add_argument("--networks", nargs="+", default=NETWORKS, help="of torchvision and timm")
        each.add_argument("--size", type=int, default=64, help="side of the images in pixels")
        each.set_defaults(run=run)
    warnings.simplefilter("ignore")
    chosen = options.parse_args(arguments)
    torch.set_num_threads(1)
    chosen.run(chosen)


if __name__ == "__main__":
    main()
