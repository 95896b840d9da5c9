"""`suggest_bits` against the same bits everywhere, at the same budget: the table of docs/bits.md.

    python benchmarks/mixed_precision.py --data data/cifar10

Sensitivity is measured on 64 validation images; accuracy is that of predicted, calibrated
networks on test images. Everything runs on one thread.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import common
import torch
from networks import cheap, named
from torch import Tensor, nn

from ghnqat_sdk import predict_quantized_params, suggest_bits
from ghnqat_sdk.bits import Bits
from ghnqat_sdk.data import load_images
from ghnqat_sdk.graph.layers import quantizable_layers

sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))
from models import ResNet20, SmallMobileNetV2, accuracy

WEIGHTS = [(2, 8), (3, 8), (4, 8), (6, 8), (8, 8)]
BOTH = [(2, 2), (3, 3), (4, 4), (6, 6), (8, 8)]
UNSEEN = {
    "deepnets/id": (2, 15e6),
    "families/test": (4, 10e6),
}  # how many, and the cost of each at most


def networks() -> dict[str, nn.Module]:
    unseen = [name for place, limits in UNSEEN.items() for name in cheap(place, *limits)]
    return {"ResNet20": ResNet20(), "SmallMobileNetV2": SmallMobileNetV2()} | {
        name: named(name).build(10) for name in unseen
    }


def suggested(model: nn.Module, batch: Tensor, uniform: Bits) -> tuple[dict[str, Bits], float]:
    """Bits that cost no more than `uniform` everywhere, and the seconds that finding them took."""
    started = time.perf_counter()
    if uniform[1] == 8:
        weights = sum(layer.weight.numel() for layer in quantizable_layers(model).values())  # type: ignore[operator]
        found = suggest_bits(
            model, batch, weight_bytes=weights * uniform[0] / 8, candidates=WEIGHTS
        )
    else:
        # What a layer costs is known once it has been measured, for which any large budget will do.
        layers = suggest_bits(model, batch, bit_operations=1e18, candidates=BOTH).layers
        started = time.perf_counter()
        budget = sum(layer.bit_operations(uniform) for layer in layers.values())
        found = suggest_bits(model, batch, bit_operations=budget, candidates=BOTH)
    return found.bits, time.perf_counter() - started


def main() -> None:
    parser = common.parser(__doc__)
    common.add_data(parser)
    parser.add_argument("--images", type=int, default=1000, help="test images")
    options = parser.parse_args()
    torch.set_num_threads(1)
    calibration = [
        images for images, _ in load_images(options.data, "train").sample(512, seed=0).batches(64)
    ]
    batch = next(
        images for images, _ in load_images(options.data, "val").sample(64, seed=0).batches(64)
    )
    test = load_images(options.data, "test").sample(options.images, seed=0)

    print(common.head(["budget of", "network", "uniform", "suggested", "seconds"], texts=2))
    for uniform in ((3, 8), (3, 3), (4, 4)):
        rows = []
        for name, model in networks().items():
            bits, seconds = suggested(model, batch, uniform)
            pair = [
                accuracy(
                    predict_quantized_params(model, bits=choice, calibration=calibration), test
                )
                for choice in (uniform, bits)
            ]
            rows.append((name, *pair, seconds))
            if "/" not in name:
                print(row(uniform, *rows[-1]), flush=True)
        others = [numbers for name, *numbers in rows if "/" in name]
        means = [statistics.fmean(column) for column in zip(*others, strict=True)]
        print(row(uniform, f"mean of {len(others)} unseen ones", *means), flush=True)


def row(uniform: Bits, name: str, one: float, other: float, seconds: float) -> str:
    kind = "weight bytes" if uniform[1] == 8 else "bit operations"
    budget = "{} of W{}/A{}".format(kind, *uniform)
    return common.row([budget, name, f"{one:.1f} %", f"{other:.1f} %", f"{seconds:.0f}"])


if __name__ == "__main__":
    main()
