"""What weights are chosen by: validation networks on validation images, by norm and family.

    python benchmarks/validation.py --data data/cifar10
    python benchmarks/validation.py --data data/cifar10 --weights runs/mine/last

The first networks of the `val` split of each space, of any size, by the paper's protocol. Cells
are top-1 in percent: mean ± standard error over networks; the least.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean

import common
import torch
from common import prepare
from networks import SPACES, named, table
from table1 import BITS, hypernetwork

from ghnqat_sdk.bits import Bits
from ghnqat_sdk.data import ImageSet, load_images
from ghnqat_sdk.hypernetwork import pretrained
from ghnqat_sdk.training.evaluation import evaluate_architecture

SPLIT = "val"


@cache
def images_of(data: str, count: int) -> ImageSet:
    return load_images(data, SPLIT).sample(count, seed=0)


def measure(name: str, settings: list[Bits], weights: Path, data: str, images: int) -> list[float]:
    """Top-1 in percent of one network at each setting."""
    torch.set_num_threads(1)
    figures = evaluate_architecture(
        hypernetwork(weights),
        named(name),
        images_of(data, images),
        settings,
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
    parser.add_argument("--images", type=int, default=256)
    common.add_processes(parser)
    options = parser.parse_args()
    names = [f"{space}/{SPLIT}/{index}" for index in range(options.graphs) for space in SPACES]
    each = partial(
        measure,
        settings=[BITS[name] for name in options.bits],
        weights=options.weights,
        data=options.data,
        images=options.images,
    )
    with ProcessPoolExecutor(options.processes, get_context("spawn"), prepare) as pool:
        figures = dict(zip(names, pool.map(each, names), strict=True))
    print(table(figures, options.bits))
    print(f"\nMean of the bit-widths: {fmean(map(fmean, figures.values())):.2f}")


if __name__ == "__main__":
    main()
