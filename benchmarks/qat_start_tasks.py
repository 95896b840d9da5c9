"""What qat_initialization.py trains, and in which order: networks, starts, learning rates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

from common import RESULTS, read_lines
from networks import cheap

LINES = RESULTS / "qat_initialization.jsonl"
BITS = {"W4/A4": (4, 4), "W2/A2": (2, 2)}
STARTS = {
    "predicted": "predicted",
    "he": "He",
    "default": "PyTorch's default",
    "float": "He, float training",
}
# What might make the predicted start better, tried on the validation networks alone.
CHANGES = {
    "noise": "plus noise of 0.3 standard deviations",
    "flat": "with square roots of the singular values",
    "head": "with half of the last layer",
    "steps": "with learned steps",
}
TORCHVISION = (
    "mobilenet_v2",
    "squeezenet1_1",
    "regnet_x_400mf",
    "shufflenet_v2_x1_0",
    "efficientnet_b0",
    "mobilenet_v3_large",
)
MOST = 12e6  # multiply-accumulates of a network, for one image
GRAPHS = {"families/test": 3, "deepnets/id": 3}
# Tried for predicted starts, whose best ones are smaller in short runs, and for the others.
RATES = {True: (0.003, 0.01, 0.03, 0.1, 0.3), False: (0.01, 0.03, 0.1, 0.3)}
TUNING_GRAPHS = {"families/val": 2, "deepnets/val": 1}
TUNING_STEPS = (100, 400)
MARKS = (0, 25, 50, 100, 200, 400, 800, 1600, 3200, 6400)


class Task(NamedTuple):
    """One network at one bit-width from one start: what a line of results is found by.

    Attributes:
        weights: SHA-256 of the hypernetwork's; empty for starts that are not predicted.
        net: See networks.py.
        bits, start: Keys of BITS, and of STARTS or CHANGES.
        steps: With quantization.
        rate: Learning rate.
    """

    weights: str
    net: str
    bits: str
    start: str
    steps: int
    rate: float


Lines = dict[Task, dict[str, Any]]


def read() -> Lines:
    return {Task(*(line[field] for field in Task._fields)): line for line in read_lines(LINES)}


@cache
def networks() -> tuple[str, ...]:
    """Torchvision's and the first of each split that are cheap enough, in turns."""
    columns = [tuple(f"torchvision/{name}" for name in TORCHVISION)]
    columns += [cheap(place, count, MOST) for place, count in GRAPHS.items()]
    turns = range(max(map(len, columns)))
    return tuple(column[turn] for turn in turns for column in columns if turn < len(column))


@cache
def tuning_networks() -> tuple[str, ...]:
    """Validation networks, by which learning rates are chosen."""
    return tuple(net for place, count in TUNING_GRAPHS.items() for net in cheap(place, count, MOST))


def plan(
    weights: str, steps: int, starts: Sequence[str], known: Lines, rate: float | None = None
) -> list[Task]:
    """All tasks: learning rates are tried first, then networks for the starts that have theirs.

    At a given `rate` nothing is tried.
    """

    def task(net: str, bits: str, start: str, steps: int, rate: float) -> Task:
        return Task(weights if is_predicted(start) else "", net, bits, start, steps, rate)

    settings = [(bits, start) for bits in BITS for start in starts]
    if rate is not None:
        return [task(net, *setting, steps, rate) for net in networks() for setting in settings]
    first, nets = tuning_steps(steps), tuning_networks()
    tuning = [
        task(net, bits, start, first, rate)
        for bits, start in settings
        for rate in RATES[is_predicted(start)]
        for net in nets
    ]
    best = best_rates(known[t] for t in tuning if t in known)
    chosen = [
        (bits, start, best[bits, start, first])
        for bits, start in settings
        if (bits, start, first) in best and start in STARTS
    ]
    return tuning + [
        task(net, bits, start, steps, rate) for net in networks() for bits, start, rate in chosen
    ]


def tuning_steps(steps: int) -> int:
    """After how many steps of the validation networks the learning rate of a run is chosen."""
    return next((tuned for tuned in TUNING_STEPS if steps <= tuned), TUNING_STEPS[-1])


def best_rates(lines: Iterable[dict[str, Any]]) -> dict[tuple[str, str, int], float]:
    """Learning rate by (bits, start, steps it was tried for).

    Only where all rates were tried on all validation networks.
    """
    found: dict[tuple[str, str, int], dict[float, list[float]]] = {}
    for line in lines:
        steps = line["steps"]
        if line["net"] in tuning_networks() and steps in TUNING_STEPS:
            rates = RATES[is_predicted(line["start"])]
            by_rate = found.setdefault(
                (line["bits"], line["start"], steps), {rate: [] for rate in rates}
            )
            by_rate[line["rate"]].append(line["val"][str(steps)])
    complete = len(tuning_networks())
    return {
        key: max(
            by_rate, key=lambda rate: (round(sum(by_rate[rate]), 2), rate)
        )  # of equals the larger
        for key, by_rate in found.items()
        if all(len(values) == complete for values in by_rate.values())
    }


def is_predicted(start: str) -> bool:
    return start == "predicted" or start in CHANGES
