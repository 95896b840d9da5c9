"""Table 1 of the GHN-QAT paper with our rows beside it: accuracy on every split and bit-width.

    python benchmarks/table1.py --data data/cifar10 --baseline runs/ghn-q/best --write-docs
    python benchmarks/table1.py --data data/cifar10 --baseline runs/ghn-q/best --minutes 60
    python benchmarks/table1.py --data data/cifar10 --baseline runs/ghn-q/best --minutes 0

The second stops taking new work after an hour, the third measures nothing: both print the table from what is there.
A row that was measured in full on fewer images than --images stands there with those, and says so.
For weights that are not at hand any more, --baseline takes their SHA-256 and shows what was measured of them.
The paper's protocol has all bit-widths, the calibrated one W4/A4. The unit of work is one graph at all bit-widths of
a protocol, with one set of weights. Each is appended to benchmarks/results/table1.jsonl when it is done, and what
stands there is not measured again. Splits take turns, so that an unfinished table is a balanced one.
benchmarks/results/table1.json holds the figures of the table, and docs/results.md, with --write-docs, the part that
follows from them.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Sequence
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import torch
from page_parts import write_part
from resumable import measure_all, read_lines
from torch import Tensor

from ghnqat_sdk import load_pretrained
from ghnqat_sdk.bits import Bits
from ghnqat_sdk.data import ImageSet, load_images
from ghnqat_sdk.files import write_atomically
from ghnqat_sdk.hypernetwork import pretrained
from ghnqat_sdk.hypernetwork.ghn import GraphHypernetwork
from ghnqat_sdk.training.evaluation import Statistic, calibration_batches, evaluate_architecture
from ghnqat_sdk.training.spaces.deepnets import DeepNets

ROOT = Path(__file__).resolve().parents[1]
LINES = ROOT / "benchmarks" / "results" / "table1.jsonl"
SUMMARY = LINES.with_suffix(".json")
PART = "table 1"

SPLITS = {"id": "ID", "deep": "Deep", "wide": "Wide", "bn-free": "BN-free"}
GRAPHS = dict(zip(SPLITS, (200, 100, 50, 100), strict=True))
IMAGES = 1000
BITS: dict[str, Bits] = {"W4/A4": (4, 4), "W4/A8": (4, 8), "W2/A2": (2, 2), "float": (32, 32)}
PROTOCOLS = {"paper": tuple(BITS), "calibrated": ("W4/A4",)}
KINDS = {"top1": "top-1", "top5": "top-5"}
OURS, BASELINE = "GHN-QAT", "GHN-Q"
# Table 1 of Yun & Wong 2023, arXiv 2309.13773: mean, standard error of the mean and maximum, in the order of SPLITS.
# The copy of the paper that they were read from has no top-5 of GHN-QAT, and the paper no figures of GHN-Q at W2/A2.
PAPER = {
    ("top1", "W4/A4", BASELINE): (
        (37.2, 0.3, 52.6),
        (30.7, 0.5, 50.2),
        (34.7, 0.5, 50.7),
        (21.5, 0.8, 36.7),
    ),
    ("top1", "W4/A8", BASELINE): (
        (47.4, 0.4, 63.9),
        (39.0, 0.7, 62.9),
        (43.8, 0.6, 63.3),
        (25.7, 0.9, 43.7),
    ),
    ("top1", "W4/A4", OURS): (
        (52.5, 0.4, 65.7),
        (50.3, 0.6, 63.7),
        (50.6, 0.6, 64.1),
        (24.8, 0.7, 37.2),
    ),
    ("top1", "W4/A8", OURS): (
        (60.2, 0.4, 75.3),
        (56.5, 0.7, 72.5),
        (58.1, 0.7, 73.5),
        (30.7, 1.0, 49.2),
    ),
    ("top1", "W2/A2", OURS): (
        (25.6, 0.2, 36.3),
        (23.0, 0.3, 34.4),
        (24.6, 0.4, 34.8),
        (10.6, 0.1, 14.2),
    ),
    ("top5", "W4/A4", BASELINE): (
        (83.7, 0.2, 91.7),
        (78.6, 0.4, 91.0),
        (82.1, 0.3, 91.4),
        (69.3, 1.1, 87.0),
    ),
    ("top5", "W4/A8", BASELINE): (
        (89.8, 0.2, 95.9),
        (85.2, 0.4, 95.8),
        (88.0, 0.3, 95.5),
        (74.6, 1.2, 89.8),
    ),
}
TEXT = """{passed}

{tables}

- ± is the standard error over graphs, and the last figure the maximum. Every convolution and linear layer is quantized.
- GHN-Q is the [work](https://arxiv.org/abs/2208.12489) that GHN-QAT starts from: trained in float, quantized only in
  use. The paper has no figures of it at W2/A2, where it fell to random accuracy. Top-5 of the paper's GHN-QAT is left
  out: the copy of the paper that was at hand does not have it.
- Ours are of the first {graphs} graphs of the [splits](evaluation.md#splits) of ConvNets-250K
  (re-created), since the paper's graphs are not public, and of {images:,} test images of CIFAR-10 (JPEG), the same for
  all graphs, drawn with seed {seed}{fewer}.
- Our GHN-QAT is one hypernetwork for all bit-widths; the paper trains one for each.{baseline}{weights}

```bash
python benchmarks/table1.py --data data/cifar10{options} --write-docs
```
"""
BASELINE_NOTE = """
- Our GHN-Q was trained in float and is told float, the only setting that it knows. What it predicts is quantized to
  the bits at hand with the range rule of its own config; nothing else is changed."""


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
    return Weights(
        Path(place), sha256((Path(place) / pretrained.WEIGHTS_FILE).read_bytes()).hexdigest(), told
    )


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
                        values.setdefault(
                            f"{protocol} {kind} {bits} {name} {task.split}", []
                        ).append(percent)
    return {
        "setting": {
            "data": "CIFAR-10 (JPEG)", "images": images, "fewer_images": fewer, "seed": seed, "graphs": graphs,
            "weights": names,
        },
        "figures": {key: statistic(column) for key, column in values.items()},
    }  # fmt: skip


def tasks_of_row(
    lines: dict[Task, dict[str, Any]],
    checksum: str,
    protocol: str,
    graphs: dict[str, int],
    images: int,
    seed: int,
) -> list[Task]:
    """Those on so many images, or on the most of the smaller counts that all graphs were measured on."""
    counts = sorted({task.images for task in lines if task.images < images}, reverse=True)
    plans = [plan([checksum], graphs, count, seed, [protocol]) for count in (images, *counts)]
    return next((tasks for tasks in plans if all(task in lines for task in tasks)), plans[0])


def statistic(values: Sequence[float]) -> dict[str, float]:
    of = Statistic.of(values)
    return {"graphs": len(values), "mean": rounded(of.mean), "sem": rounded(of.sem), "max": of.max}


def cell(figures: dict[str, Any] | None, graphs: int) -> str:
    """One cell, with the number of graphs behind it where some are still missing."""
    if figures is None:
        return "–"
    text, count = "{mean:.1f} ± {sem:.1f}; {max:.1f}".format(**figures), figures["graphs"]
    return text if count == graphs else f"{text} ({count} of {graphs} graphs)"


def table(summary: dict[str, Any], protocol: str, kind: str) -> str:
    """Rows of one protocol, by bit-width; the paper's stand beside ours where its protocol is used."""
    setting = summary["setting"]
    graphs, fewer = setting["graphs"], setting["fewer_images"]
    lines = [
        f"| bits | {KINDS[kind]} | {' | '.join(SPLITS.values())} |",
        "| --- | --- |" + " --- |" * len(SPLITS),
    ]
    for bits in PROTOCOLS[protocol]:
        for name in (BASELINE, OURS):
            if protocol == "paper" and (kind, bits, name) in PAPER:
                cells = [
                    f"{mean:.1f} ± {sem:.1f}; {most:.1f}"
                    for mean, sem, most in PAPER[kind, bits, name]
                ]
                lines.append(f"| {bits} | {name}, paper | {' | '.join(cells)} |")
            keys = {split: f"{protocol} {kind} {bits} {name} {split}" for split in SPLITS}
            if any(key in summary["figures"] for key in keys.values()):
                cells = [
                    cell(summary["figures"].get(key), graphs[split]) for split, key in keys.items()
                ]
                count = fewer.get(f"{protocol} {name}")
                label = f"{name}, ours ({count} images)" if count else f"{name}, ours"
                lines.append(f"| {bits} | {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def tables(summary: dict[str, Any]) -> str:
    """The paper's protocol, and the calibrated one where it has figures."""
    found = ["### By the paper's protocol", *(table(summary, "paper", kind) for kind in KINDS)]
    if any(key.startswith("calibrated") for key in summary["figures"]):
        found += [
            "### By the calibrated protocol",
            *(table(summary, "calibrated", kind) for kind in KINDS),
        ]
    return "\n\n".join(found)


def passed(summary: dict[str, Any]) -> str:
    """One sentence: the cells in which our mean top-1 is above that of the paper's GHN-QAT."""
    figures, graphs = summary["figures"], summary["setting"]["graphs"]
    paper = {
        (bits, split): mean
        for (kind, bits, name), cells in PAPER.items()
        for split, (mean, _, _) in zip(SPLITS, cells, strict=True)
        if (kind, name) == ("top1", OURS)
    }
    found = {place: figures.get(f"paper top1 {place[0]} {OURS} {place[1]}") for place in paper}
    ours = {place: figure["mean"] for place, figure in found.items() if figure}
    if not ours:
        return "Ours have not been measured yet."
    above = [
        f"{bits} {SPLITS[split]}"
        for (bits, split), mean in ours.items()
        if mean > paper[bits, split]
    ]
    complete = all(
        figure and figure["graphs"] == graphs[split] for (_, split), figure in found.items()
    )
    return (
        f"By the paper's protocol{'' if complete else ' and on the graphs measured so far'}, our mean top-1 is above "
        f"that of the paper's GHN-QAT in {len(above)} of {len(ours)} cells{': ' * bool(above)}{', '.join(above)}."
    )


def page(summary: dict[str, Any]) -> str:
    """The part of docs/results.md."""
    setting = summary["setting"]
    graphs, images, names = setting["graphs"], setting["images"], setting["weights"]
    options = " --baseline runs/ghn-q/best" if BASELINE in names else ""
    options += f" --images {images}" if images != IMAGES else ""
    options += f" --graphs {' '.join(map(str, graphs.values()))}" if graphs != GRAPHS else ""
    checksums = ", ".join(f"{name} `{checksum}`" for name, checksum in names.items())
    return TEXT.format(
        passed=passed(summary),
        baseline=BASELINE_NOTE if BASELINE in names else "",
        options=options,
        tables=tables(summary),
        images=images,
        fewer=", fewer in the rows that say so" if setting["fewer_images"] else "",
        seed=setting["seed"],
        graphs=" / ".join(map(str, graphs.values())),
        weights=f"\n- SHA-256 of the weights: {checksums}." if summary["figures"] else "",
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="image folder, or torchvision's CIFAR-10")
    parser.add_argument(
        "--weights", default=str(pretrained._EMBEDDED), help="folder (default: those that ship)"
    )
    parser.add_argument(
        "--baseline", help="folder of weights trained in float, or SHA-256 of those measured before"
    )
    parser.add_argument(
        "--graphs", type=int, nargs=len(SPLITS), default=GRAPHS.values(), metavar=tuple(SPLITS)
    )
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--protocols", nargs="+", choices=PROTOCOLS, default=list(PROTOCOLS))
    parser.add_argument("--processes", type=int, default=2, help="of one thread each")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="take no new work after so many"
    )
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
    for count, line in enumerate(
        measure_all(missing, each, LINES, options.processes, options.minutes), 1
    ):
        what = f"{line['protocol']} {line['split']} {line['graph']} {owner[line['weights']]}"
        print(f"{count} of {len(missing)}: {what}, top-1 {line['top1']}", flush=True)
    summary = summarise(read(LINES), names, graphs, options.images, options.seed)
    write_atomically(SUMMARY, (json.dumps(summary, indent=1) + "\n").encode())
    if options.write_docs:
        write_part(PART, page(summary))
    print(passed(summary), tables(summary), sep="\n\n")


if __name__ == "__main__":
    main()
