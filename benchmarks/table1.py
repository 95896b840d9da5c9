"""Table 1 of the GHN-QAT paper with our rows beside it: accuracy on every split and bit-width.

    python benchmarks/table1.py --data data/cifar10 --baseline runs/ghn-q/best --write-docs
    python benchmarks/table1.py --data data/cifar10 --baseline runs/ghn-q/best --minutes 60
    python benchmarks/table1.py --data data/cifar10 --baseline runs/ghn-q/best --minutes 0

The second stops taking new work after an hour, the third measures nothing: both print the table
from what is there. A row that was measured in full on fewer images than --images stands there
with those, and says so. For weights that are not at hand any more, --baseline takes their SHA-256
and shows what was measured of them. The paper's protocol has all bit-widths, the calibrated one
W4/A4. The unit of work is one graph at all bit-widths of a protocol, with one set of weights.
Each is appended to benchmarks/results/table1.jsonl, which stays out of git, when it is done, and
what stands there is not measured again. Splits take turns, so that an unfinished table is a
balanced one. benchmarks/results/table1.json holds the figures of the table, and docs/table1.md,
with --write-docs, the page that follows from them.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import common
import torch
from common import measure_all, read_lines
from page_parts import write_part
from table1_page import (
    BASELINE,
    BITS,
    GRAPHS,
    IMAGES,
    KINDS,
    OURS,
    PROTOCOLS,
    SPLITS,
    page,
    passed,
    tables,
)
from torch import Tensor

from ghnqat_sdk import load_pretrained
from ghnqat_sdk.bits import Bits
from ghnqat_sdk.data import ImageSet, load_images
from ghnqat_sdk.hypernetwork import pretrained
from ghnqat_sdk.hypernetwork.ghn import GraphHypernetwork
from ghnqat_sdk.training.evaluation import Statistic, calibration_batches, evaluate_architecture
from ghnqat_sdk.training.spaces.deepnets import DeepNets

LINES = common.RESULTS / "table1.jsonl"
SUMMARY = common.RESULTS / "table1.json"
PART = "table 1"


class Weights(NamedTuple):
    """A hypernetwork.

    Attributes:
        folder: None where it is not at hand, and only figures of it are.
        checksum: SHA-256 of its file.
        told: What it is told instead of the bit-width at hand.
    """

    folder: Path | None
    checksum: str
    told: Bits | None = None


def find_weights(place: str, told: Bits | None = None) -> Weights:
    """Those of a folder, or those with a SHA-256, of which there are only figures."""
    if re.fullmatch("[0-9a-f]{64}", place):
        return Weights(None, place, told)
    content = (Path(place) / pretrained.WEIGHTS_FILE).read_bytes()
    return Weights(Path(place), sha256(content).hexdigest(), told)


class Task(NamedTuple):
    """One graph at all bit-widths: what a line of results is found by."""

    weights: str
    images: int
    seed: int
    protocol: str
    split: str
    graph: int


def plan(
    checksums: Iterable[str],
    graphs: dict[str, int],
    images: int,
    seed: int,
    protocols: Iterable[str] = PROTOCOLS,
) -> list[Task]:
    """All tasks: protocol by protocol, splits and weights in turns."""
    checksums = tuple(checksums)
    return [
        Task(checksum, images, seed, protocol, split, graph)
        for protocol in protocols
        for graph in range(max(graphs.values()))
        for split, count in graphs.items()
        if graph < count
        for checksum in checksums
    ]


@cache
def hypernetwork(folder: Path) -> GraphHypernetwork:
    return load_pretrained(folder)


@cache
def images_of(data: str, count: int, seed: int) -> ImageSet:
    return load_images(data, "test").sample(count, seed)


@cache
def batches(data: str, seed: int) -> list[Tensor]:
    return calibration_batches(data, seed)


def measure(task: Task, weights: Weights, data: str) -> dict[str, Any]:
    """The line of a task: top-1 and top-5 in percent, by bit-width."""
    torch.set_num_threads(1)
    assert weights.folder
    bits = PROTOCOLS[task.protocol]
    accuracies = evaluate_architecture(
        hypernetwork(weights.folder),
        DeepNets(task.split)[task.graph],
        images_of(data, task.images, task.seed),
        [BITS[name] for name in bits],
        told=weights.told,
        protocol=task.protocol,  # type: ignore[arg-type]
        calibration=batches(data, task.seed) if task.protocol == "calibrated" else None,
    )
    figures = zip(KINDS, zip(*accuracies, strict=True), strict=True)
    return task._asdict() | {
        kind: dict(zip(bits, map(rounded, column), strict=True)) for kind, column in figures
    }


def measure_task(task: Task, rows: dict[str, Weights], data: str) -> dict[str, Any]:
    return measure(task, rows[task.weights], data)


def rounded(percent: float) -> float:
    return round(percent, 4)


def read(path: Path) -> dict[Task, dict[str, Any]]:
    """Results by task."""
    return {Task(*(line[field] for field in Task._fields)): line for line in read_lines(path)}


def summarise(
    lines: dict[Task, dict[str, Any]],
    names: dict[str, str],
    graphs: dict[str, int],
    images: int,
    seed: int,
) -> dict[str, Any]:
    """What the page is made of; `names` are the checksums of weights by the name of their rows.

    Rows that were measured in full on fewer images only have those, and `setting` says so.
    """
    values: dict[str, list[float]] = {}
    fewer: dict[str, int] = {}
    for name, checksum in names.items():
        for protocol in PROTOCOLS:
            tasks = tasks_of_row(lines, checksum, protocol, graphs, images, seed)
            if tasks[0].images != images:
                fewer[f"{protocol} {name}"] = tasks[0].images
            for task in tasks:
                for kind in KINDS if task in lines else ():
                    for bits, percent in lines[task][kind].items():
                        key = f"{protocol} {kind} {bits} {name} {task.split}"
                        values.setdefault(key, []).append(percent)
    setting = {
        "data": "CIFAR-10 (JPEG)",
        "images": images,
        "fewer_images": fewer,
        "seed": seed,
        "graphs": graphs,
        "weights": names,
    }
    return {
        "setting": setting,
        "figures": {key: statistic(column) for key, column in values.items()},
    }


def tasks_of_row(
    lines: dict[Task, dict[str, Any]],
    checksum: str,
    protocol: str,
    graphs: dict[str, int],
    images: int,
    seed: int,
) -> list[Task]:
    """Those on so many images, or on the most that all graphs were measured on."""
    counts = sorted({task.images for task in lines if task.images < images}, reverse=True)
    plans = [plan([checksum], graphs, count, seed, [protocol]) for count in (images, *counts)]
    return next((tasks for tasks in plans if all(task in lines for task in tasks)), plans[0])


def statistic(values: Sequence[float]) -> dict[str, float]:
    of = Statistic.of(values)
    return {"graphs": len(values), "mean": rounded(of.mean), "sem": rounded(of.sem), "max": of.max}


def arguments() -> argparse.Namespace:
    parser = common.parser(__doc__)
    common.add_data(parser)
    common.add_weights(parser)
    common.add_measuring(parser)
    parser.add_argument(
        "--baseline", help="folder of weights trained in float, or SHA-256 of those measured before"
    )
    parser.add_argument(
        "--graphs", type=int, nargs=len(SPLITS), default=GRAPHS.values(), metavar=tuple(SPLITS)
    )
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--protocols", nargs="+", choices=PROTOCOLS, default=list(PROTOCOLS))
    parser.add_argument("--write-docs", action="store_true", help="write into docs/results.md")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    rows = {OURS: find_weights(options.weights)}
    if options.baseline:
        rows[BASELINE] = find_weights(options.baseline, told=BITS["float"])
    names = {name: weights.checksum for name, weights in rows.items()}
    owner = {checksum: name for name, checksum in names.items()}
    graphs = dict(zip(SPLITS, options.graphs, strict=True))
    lines = read(LINES)
    at_hand = [checksum for checksum, name in owner.items() if rows[name].folder]
    tasks = plan(at_hand, graphs, options.images, options.seed, options.protocols)
    missing = [task for task in tasks if task not in lines]
    each = partial(
        measure_task,
        rows={checksum: rows[name] for checksum, name in owner.items()},
        data=options.data,
    )
    measured = measure_all(missing, each, LINES, options.processes, options.minutes)
    for count, line in enumerate(measured, 1):
        what = f"{line['protocol']} {line['split']} {line['graph']} {owner[line['weights']]}"
        print(f"{count} of {len(missing)}: {what}, top-1 {line['top1']}", flush=True)
    summary = summarise(read(LINES), names, graphs, options.images, options.seed)
    common.write_json(SUMMARY, summary)
    if options.write_docs:
        write_part(PART, page(summary))
    print(passed(summary), tables(summary), sep="\n\n")


if __name__ == "__main__":
    main()
