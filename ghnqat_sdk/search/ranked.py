"""A ranking of networks: its table, its picture, and the front within a budget."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.plotting import figure_class

_COSTS = {"macs": "multiply-accumulates", "weight_bits": "bits of weights"}
"""What networks cost, and how a picture calls it."""


@dataclass(frozen=True)
class RankedNetwork:
    """One network with predicted parameters.

    Attributes:
        name: As given.
        accuracy: Top-1 in percent on images that nothing was fitted to.
        macs: Multiply-accumulates of its quantized layers for one image.
        weight_bits: Bits of all their weights together.
    """

    name: str
    accuracy: float
    macs: int
    weight_bits: int


@dataclass(frozen=True)
class Ranking:
    """Networks from the best to the worst; printed as a table.

    Attributes:
        networks: By falling accuracy.
        failed: Name to the reason why a network has no accuracy.
    """

    networks: tuple[RankedNetwork, ...]
    failed: dict[str, str]

    def front(
        self, *, macs: float | None = None, weight_bits: float | None = None
    ) -> tuple[RankedNetwork, ...]:
        """Networks within the budget that none beats in accuracy at the same cost or less: the
        Pareto front.

        Costs that are not given play no part; with none, the best network alone is on the front.
        """
        limits = {"macs": macs, "weight_bits": weight_bits}
        given = {cost: limit for cost, limit in limits.items() if limit is not None}
        within = [x for x in self.networks if all(getattr(x, c) <= m for c, m in given.items())]
        return tuple(x for x in within if not any(_beats(other, x, given) for other in within))

    def __str__(self) -> str:
        width = max((len(network.name) for network in self.networks), default=7)
        lines = [f"{'network':{width}}  {'accuracy':>9}  {'MACs':>14}  {'weight bits':>14}"]
        lines += [
            f"{x.name:{width}}  {x.accuracy:7.1f} %  {x.macs:14,}  {x.weight_bits:14,}"
            for x in self.networks
        ]
        return "\n".join([*lines, *(f"{name}: {why}" for name, why in self.failed.items())])

    def to_json(self) -> str:
        """For machines."""
        return json.dumps({"networks": [*map(asdict, self.networks)], "failed": self.failed})

    def plot(self, path: str | Path, cost: str = "macs") -> None:
        """Draw accuracy against "macs" or "weight_bits", with the Pareto front (needs matplotlib).

        Raises:
            ArgumentError: matplotlib is not installed, or another cost.
        """
        if cost not in _COSTS:
            raise ArgumentError(
                f"cost={cost!r} is unknown. Write one of {', '.join(map(repr, _COSTS))}."
            )
        figure = figure_class()(layout="constrained")
        axes = figure.add_subplot()
        best = sorted(self.front(**{cost: float("inf")}), key=lambda x: getattr(x, cost))
        for networks, style in ((self.networks, "o"), (best, "-")):
            costs = [getattr(network, cost) for network in networks]
            axes.plot(costs, [network.accuracy for network in networks], style)
        for network in best:
            axes.annotate(network.name, (getattr(network, cost), network.accuracy))
        axes.set_xscale("log")
        axes.set_xlabel(_COSTS[cost])
        axes.set_ylabel("accuracy, %")
        figure.savefig(path)


def _beats(other: RankedNetwork, network: RankedNetwork, costs: Iterable[str]) -> bool:
    """Whether `other` is at least as good in everything and better in something."""
    gains = [other.accuracy - network.accuracy]
    gains += [getattr(network, cost) - getattr(other, cost) for cost in costs]
    return min(gains) >= 0 and max(gains) > 0
