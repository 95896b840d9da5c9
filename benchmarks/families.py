"""Which networks of people the weights serve: by family, by norm, and of torchvision's CNNs.

    python benchmarks/families.py --data data/cifar10
    python benchmarks/families.py --data data/cifar10 --weights runs/decayed/last --bits W4/A4 W2/A2
    python benchmarks/families.py --data data/cifar10 --minutes 0

The networks are those of the test split of the families, and torchvision's classifiers without
attention that run at 32 × 32 pixels, with ten classes. By the paper's protocol: batch norm and
ranges follow each batch of 64 test images. Cells are top-1 in percent: mean ± standard error over
networks; the least. Each network is a line in benchmarks/results/families.jsonl as soon as it is
measured, and is not measured again; benchmarks/results/families.json holds the figures of the
table. The last command measures nothing and prints the table from what is there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import common
import torch
from common import measure_all, read_lines
from networks import named, table, torchvision_cnns
from table1 import BITS, find_weights, hypernetwork, images_of

from ghnqat_sdk.files import write_atomically
from ghnqat_sdk.training.evaluation import evaluate_architecture
from ghnqat_sdk.training.spaces.families import SPLITS

LINES = Path(__file__).parent / "results" / "families.jsonl"
SUMMARY = LINES.with_suffix(".json")
LEFT_OUT = (25, 70, 85, 130, 160, 175, 190, 235, 280)
"""Networks of the test split that training met before plans were dealt to splits; benchmarks/LOG.md
tells when."""


class Task(NamedTuple):
    """One network at one bit-width: what a line of results is found by."""

    weights: str
    images: int
    seed: int
    bits: str
    net: str


def measure(task: Task, folder: Path, data: str) -> dict[str, Any]:
    """The line of a task: top-1 in percent."""
    torch.set_num_threads(1)
    network, images = named(task.net), images_of(data, task.images, task.seed)
    ((top1, _),) = evaluate_architecture(hypernetwork(folder), network, images, [BITS[task.bits]])
    return task._asdict() | {"top1": round(top1, 4)}


def read(path: Path) -> dict[Task, float]:
    """Top-1 by task."""
    return {Task(*(line[f] for f in Task._fields)): line["top1"] for line in read_lines(path)}


def figures_of(
    lines: dict[Task, float], tasks: Sequence[Task], bits: Sequence[str]
) -> dict[str, list[float]]:
    """Top-1 at each bit-width, of the networks that were measured at all of them."""
    found: dict[str, dict[str, float]] = {}
    for task in tasks:
        if task in lines:
            found.setdefault(task.net, {})[task.bits] = lines[task]
    return {net: [own[b] for b in bits] for net, own in found.items() if len(own) == len(bits)}


def arguments() -> argparse.Namespace:
    parser = common.parser(__doc__)
    common.add_data(parser)
    common.add_weights(parser)
    parser.add_argument("--bits", nargs="+", choices=BITS, default=["W4/A4"])
    parser.add_argument("--images", type=int, default=1000, help="test images")
    parser.add_argument("--seed", type=int, default=0, help="chooses the images")
    parser.add_argument("--graphs", type=int, default=SPLITS["test"], help="of the families")
    parser.add_argument("--no-torchvision", action="store_true", help="leave torchvision's out")
    common.add_measuring(parser)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    weights = find_weights(options.weights)
    nets = [f"families/test/{i}" for i in range(options.graphs) if i not in LEFT_OUT]
    if not options.no_torchvision:
        nets = [*torchvision_cnns(), *nets]
    tasks = [
        Task(weights.checksum, options.images, options.seed, bits, net)
        for net in nets
        for bits in options.bits
    ]
    known = read(LINES)
    missing = [task for task in tasks if task not in known and weights.folder]
    each = partial(measure, folder=weights.folder, data=options.data)
    lines = measure_all(missing, each, LINES, options.processes, options.minutes)
    for count, line in enumerate(lines, 1):
        what = f"{line['net']} {line['bits']}"
        print(f"{count} of {len(missing)}: {what}, top-1 {line['top1']}", flush=True)
    figures = figures_of(read(LINES), tasks, options.bits)
    setting = {"weights": weights.checksum, "images": options.images, "seed": options.seed}
    summary = {"setting": setting | {"bits": options.bits}, "top1": figures}
    write_atomically(SUMMARY, (json.dumps(summary, indent=1) + "\n").encode())
    print(table(figures, options.bits))


if __name__ == "__main__":
    main()
