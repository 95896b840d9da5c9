"""The part of docs/results.md as a function of the curves that qat_initialization.py measured."""

from __future__ import annotations

import statistics

from common import head, row
from qat_start_curves import Curves, steps_to_reach
from qat_start_tasks import BITS, CHANGES, GRAPHS, MOST, RATES, STARTS, TUNING_STEPS

TABLE_MARKS = (0, 25, 100, 400, 1600, 6400)
TEXT = """{tables}

- Networks: {networks}.
- Starts: predicted parameters; He's normal initialization (fan in); that of PyTorch's layers; and
  He's followed by as many steps in float as then follow with quantization.
- All train alike: SGD with momentum 0.9 and weight decay 5e-4 at a constant learning rate, batches
  of 128 flipped and shifted training images. The learning rate is the best of {rates} (predicted)
  or {other_rates} (others) on validation images{best}.
- To be measured, a copy is calibrated on 512 training images and classifies 1,000 test images. ± is
  the standard error over networks; columns are of the networks trained for that long.
- SHA-256 of the weights{earlier}: `{weights}`.

```bash
python benchmarks/qat_initialization.py --data data/cifar10 --steps 100
```
"""


def table(curves: Curves, bits: str) -> str:
    """Means over the networks that have both a predicted and a He start, and how often the former
    is ahead."""
    columns = {mark: nets for mark in TABLE_MARKS if (nets := curves.common(mark, bits))}
    names = [bits, *(f"{mark:,} steps" for mark in columns)]
    lines = [head(names, texts=len(names))]
    for start, name in STARTS.items():
        cells = []
        for mark, nets in columns.items():
            found = curves.at(mark, bits, start)
            cells.append(mean_of([found[net] for net in nets if net in found], len(nets)))
        lines.append(row([name, *cells]))
    wins = []
    for mark, nets in columns.items():
        mine, other = (curves.at(mark, bits, start) for start in ("predicted", "he"))
        wins.append(f"{sum(mine[net] > other[net] for net in nets)} of {len(nets)}")
    return "\n".join([*lines, row(["predicted ahead of He", *wins])])


def changes_table(curves: Curves) -> str:
    """The predicted start and its changes: validation accuracy before the first step, and after the
    last."""
    columns = [f"{bits}, {steps} steps" for bits in BITS for steps in (0, TUNING_STEPS[0])]
    lines = [head(["start", *columns], texts=1 + len(columns))]
    for start, name in {"predicted": "predicted", **CHANGES}.items():
        cells = []
        for bits in BITS:
            found = [ends for (*key, _), ends in curves.tuning.items() if key == [bits, start]]
            means = [[statistics.fmean(ends) for ends in zip(*nets, strict=True)] for nets in found]
            cells += (
                [f"{mean:.1f}" for mean in max(means, key=lambda ends: ends[1])]
                if means
                else ["–", "–"]
            )
        lines.append(row([name, *cells]))
    return "\n".join(lines)


def mean_of(values: list[float], expected: int) -> str:
    if not values:
        return "–"
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    missing = f" ({len(values)} of {expected})" if len(values) < expected else ""
    return f"{statistics.fmean(values):.1f} ± {error:.1f}{missing}"


def page(curves: Curves, shipped: str) -> str:
    """The part of docs/results.md."""
    tables = [
        part
        for bits in BITS
        for part in (table(curves, bits), steps_to_reach(curves, bits))
        if part
    ]
    return TEXT.format(
        tables="\n\n".join(tables),
        networks=networks_of(curves),
        rates=", ".join(map(str, RATES[True])),
        other_rates=", ".join(map(str, RATES[False])),
        best=rates_of(curves),
        weights=curves.weights,
        earlier="" if curves.weights == shipped else ", which came before those that ship",
    )


def networks_of(curves: Curves) -> str:
    """Which networks were trained."""
    nets = curves.nets()
    own = [net.partition("/")[2] for net in nets if net.startswith("torchvision/")]
    texts = [f"torchvision's {', '.join(own)} at 32 × 32 pixels"] if own else []
    for place in GRAPHS:
        if count := sum(net.startswith(f"{place}/") for net in nets):
            texts.append(
                f"the first {count} of `{place}` of at most {MOST / 1e6:.0f} M multiply-accumulates"
            )
    return ", ".join(texts)


def rates_of(curves: Curves) -> str:
    """The learning rates, by the steps after which they were chosen."""
    texts = []
    for steps in TUNING_STEPS:
        chosen = {
            bits: {
                start: curves.rates[bits, start, steps]
                for start in STARTS
                if (bits, start, steps) in curves.rates
            }
            for bits in BITS
        }
        named = [
            f"{bits} " + ", ".join(f"{STARTS[start]} {rate}" for start, rate in rates.items())
            for bits, rates in chosen.items()
            if rates
        ]
        if named:
            texts.append(f"after {steps} steps, {'; '.join(named)}")
    return ": " + ". For longer runs: ".join(texts) if texts else ""
