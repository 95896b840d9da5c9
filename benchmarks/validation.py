"""What weights are chosen by: validation networks on validation images, by norm and family.

    python benchmarks/validation.py --data data/cifar10
    python benchmarks/validation.py --data data/cifar10 --weights runs/mine/last
    python benchmarks/validation.py --data data/cifar10 --graphs 6 --norm none --max-macs 60e6
    python benchmarks/validation.py --data data/cifar10 --torchvision resnet18 --calibrated
    python benchmarks/validation.py --data data/cifar10 --max-macs 5e6 --size 64

The first networks of the `val` split of each space, or torchvision's of these names with ten
classes, at 32 × 32 pixels or another size. By the paper's protocol, or calibrated. Cells are top-1
in percent: mean ± standard error over networks; the least.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from math import inf
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import get_args

import common
import torch
from common import prepare
from networks import SPACES, cheap, named, table
from table1 import BITS, hypernetwork

from ghnqat_sdk.bits import Bits
from ghnqat_sdk.data import ImageSet, load_images
from ghnqat_sdk.hypernetwork import pretrained
from ghnqat_sdk.training import losses
from ghnqat_sdk.training.evaluation import calibration_batches, evaluate_architecture
from ghnqat_sdk.training.spaces.protocol import Norm

SPLIT = "val"


@cache
def images_of(data: str, count: int, size: int) -> ImageSet:
    return common.at_size(load_images(data, SPLIT).sample(count, seed=0), size)


def measure(
    name: str,
    settings: list[Bits],
    weights: Path,
    data: str,
    images: int,
    calibrated: bool = False,
    size: int = 32,
) -> list[float]:
    """Top-1 in percent of one network at each setting."""
    torch.set_num_threads(1)
    calibration = calibration_batches(data, 0) if calibrated else ()
    figures = evaluate_architecture(
        hypernetwork(weights),
        named(name),
        images_of(data, images, size),
        settings,
        protocol="calibrated" if calibrated else "paper",
        calibration=[losses.resized(batch, size) for batch in calibration],
    )
    return [top1 for top1, _ in figures]


def main() -> None:
    parser = common.parser(__doc__)
    common.add_data(parser)
    parser.add_argument(
        "--weights",
        type=Path,
        default=pretrained._EMBEDDED,
        help="folder (default: those that ship)",
    )
    parser.add_argument("--bits", nargs="+", choices=BITS, default=["W4/A4", "W2/A2"])
    parser.add_argument("--graphs", type=int, default=60, help="of each space")
    parser.add_argument("--max-macs", type=float, default=inf, help="of a network of a space")
    parser.add_argument("--norm", choices=get_args(Norm), help="this one alone")
    parser.add_argument("--torchvision", nargs="+", metavar="NAME", help="instead of the spaces'")
    parser.add_argument("--calibrated", action="store_true")
    parser.add_argument("--size", type=int, default=32, help="that images are resized to")
    parser.add_argument("--images", type=int, default=256)
    common.add_processes(parser)
    options = parser.parse_args()
    names = [f"torchvision/{name}" for name in options.torchvision or ()] or [
        name
        for space in SPACES
        for name in cheap(f"{space}/{SPLIT}", options.graphs, options.max_macs, options.norm)
    ]
    each = partial(
        measure,
        settings=[BITS[name] for name in options.bits],
        weights=options.weights,
        data=options.data,
        images=options.images,
        calibrated=options.calibrated,
        size=options.size,
    )
    with ProcessPoolExecutor(options.processes, get_context("spawn"), prepare) as pool:
        figures = dict(zip(names, pool.map(each, names), strict=True))
    print(table(figures, options.bits))
    print(f"\nMean of the bit-widths: {fmean(map(fmean, figures.values())):.2f}")


if __name__ == "__main__":
    main()
