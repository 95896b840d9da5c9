"""What weights are chosen by: accuracy of validation networks on validation images, by norm and by family.

    python benchmarks/validation.py --data data/cifar10
    python benchmarks/validation.py --data data/cifar10 --weights runs/mine/last

Networks of any size, the first of the `val` split, by the paper's protocol.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean

import torch
from resumable import prepare
from table1 import BITS, hypernetwork

from ghnqat_sdk.hypernetwork import pretrained
from ghnqat_sdk.quantization.bits import Bits
from ghnqat_sdk.training.datasets import ImageSet, load_images
from ghnqat_sdk.training.evaluate import Statistic, evaluate_architecture
from ghnqat_sdk.training.spaces import ArchitectureSpace

SPLIT = "val"


@cache
def images_of(data: str, count: int) -> ImageSet:
    return load_images(data, SPLIT).sample(count, seed=0)


def measure(index: int, settings: list[Bits], weights: Path, data: str, images: int) -> list[float]:
    """Top-1 in percent of one network at each setting."""
    torch.set_num_threads(1)
    architecture = ArchitectureSpace(SPLIT)[index]
    figures = evaluate_architecture(hypernetwork(weights), architecture, images_of(data, images), settings)
    return [top1 for top1, _ in figures]


def table(figures: list[list[float]], columns: list[str]) -> str:
    """Mean and standard error of all networks and of groups; `figures` are those of the networks, by index."""
    groups = {"all": figures}
    for kind in ("norm", "family"):
        names = [f"{kind} {getattr(ArchitectureSpace(SPLIT)[index], kind)}" for index in range(len(figures))]
        for name in sorted(set(names)):
            groups[name] = [row for row, own in zip(figures, names, strict=True) if own == name]
    lines = [f"| | networks | {' | '.join(columns)} |", "| --- |" + " ---: |" * (1 + len(columns))]
    for name, rows in groups.items():
        of_columns = [Statistic.of(column) for column in zip(*rows, strict=True)]
        cells = " | ".join(f"{of.mean:.1f} ± {of.sem:.1f}" for of in of_columns)
        lines.append(f"| {name} | {len(rows)} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="image folder, or torchvision's CIFAR-10")
    parser.add_argument("--weights", type=Path, default=pretrained._EMBEDDED, help="folder (default: those that ship)")
    parser.add_argument("--bits", nargs="+", choices=BITS, default=["W4/A4", "W2/A2"])
    parser.add_argument("--graphs", type=int, default=60)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--processes", type=int, default=2, help="of one thread each")
    options = parser.parse_args()
    each = partial(
        measure,
        settings=[BITS[name] for name in options.bits],
        weights=options.weights,
        data=options.data,
        images=options.images,
    )
    with ProcessPoolExecutor(options.processes, get_context("spawn"), prepare) as pool:
        figures = list(pool.map(each, range(options.graphs)))
    print(table(figures, options.bits))
    print(f"\nMean of the bit-widths: {fmean(map(fmean, figures)):.2f}")


if __name__ == "__main__":
    main()
