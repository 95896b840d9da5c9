"""A ranking of networks: its table, its picture, and the front within a budget."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.files import as_json
from ghnqat_sdk.plotting import figure_class, save_figure
from ghnqat_sdk.search.budget import COSTS, Budget
from ghnqat_sdk.search.promise import MEASURES, promises

_NAMED = 4  # parameters in a table


@dataclass(frozen=True)
class RankedNetwork:
    """One network with predicted parameters.

    Attributes:
        name: As given.
        accuracy: Top-1 in percent on images that nothing was fitted to.
        macs: Multiply-accumulates of its quantized layers for one image.
        weight_bits: Bits of all weights together: one that layers share counts once, and those
            that are not quantized 32 for each value.
        latency_ms: Median milliseconds of the float network for one image, on as many threads as
            torch has; None where it was not measured.
        kept: Parameters that were not predicted, nor fitted: the accuracy is that of the values
            that they had, which may be random ones.
        loss: Mean cross-entropy on the images that the accuracy is of.
        gradient_norm: Of the first gradient from He's initialization, summed over weights; as the
            next, None where networks are not ranked by how they will train.
        promise: Mean of the ranks in loss and gradient norm among all networks of the ranking, from
            0 to 1, which is the best.
    """

    name: str
    accuracy: float
    macs: int
    weight_bits: int
    latency_ms: float | None = None
    kept: tuple[str, ...] = ()
    loss: float | None = None
    gradient_norm: float | None = None
    promise: float | None = None


@dataclass(frozen=True)
class Ranking:
    """Networks from the best to the worst; printed as a table.

    Attributes:
        networks: By falling accuracy, or promise where there is one.
        failed: Name to the reason why a network has no accuracy.
        beyond: Name to what is beyond the budget; these networks were not predicted.
        budget: Within which networks were ranked.
    """

    networks: tuple[RankedNetwork, ...]
    failed: dict[str, str] = field(default_factory=dict)
    beyond: dict[str, str] = field(default_factory=dict)
    budget: Budget = field(default_factory=Budget)

    def front(
        self,
        *,
        macs: float | None = None,
        weight_bits: float | None = None,
        latency_ms: float | None = None,
    ) -> tuple[RankedNetwork, ...]:
        """Networks within the limits that none beats in accuracy at the same cost or less: the
        Pareto front.

        Without limits those of the ranking's budget count. Costs without one play no part; with
        none at all, the best network alone is on the front.

        Raises:
            ArgumentError: a limit that is no number above 0, or one of latencies that were not
                measured.
        """
        given = {"macs": macs, "weight_bits": weight_bits, "latency_ms": latency_ms}
        limits = Budget.of(given).limits or self.budget.limits
        return self._front(limits)

    def _front(self, limits: Mapping[str, float]) -> tuple[RankedNetwork, ...]:
        self._check_measured(limits)
        within = [x for x in self.networks if all(getattr(x, c) <= m for c, m in limits.items())]
        return tuple(x for x in within if not any(_beats(other, x, limits) for other in within))

    def _check_measured(self, costs: Iterable[str]) -> None:
        for cost in costs:
            if any(getattr(network, cost) is None for network in self.networks):
                raise ArgumentError(
                    f"The networks were ranked without {cost}. Write rank_architectures(..., "
                    f"budget={{{cost!r}: 5}}), which measures it."
                )

    def __str__(self) -> str:
        lines = self._table()
        lines += [
            f"{x.name}: not predicted, measured as given: {', '.join(x.kept[:_NAMED])}"
            + (f" and {len(x.kept) - _NAMED} more" if len(x.kept) > _NAMED else "")
            for x in self.networks
            if x.kept
        ]
        lines += [f"{name}: {why}" for name, why in {**self.beyond, **self.failed}.items()]
        return "\n".join(lines)

    def _table(self) -> list[str]:
        width = max((len(network.name) for network in self.networks), default=7)
        timed = any(network.latency_ms is not None for network in self.networks)
        promising = any(network.promise is not None for network in self.networks)
        head = f"{'network':{width}}  {'accuracy':>9}  {'MACs':>14}  {'weight bits':>14}"
        head += f"  {'promise':>7}" if promising else ""
        lines = [head + ("  latency, ms" if timed else "")]
        for x in self.networks:
            row = f"{x.name:{width}}  {x.accuracy:7.1f} %  {x.macs:14,}  {x.weight_bits:14,}"
            row += "" if x.promise is None else f"  {x.promise:7.2f}"
            lines.append(row if x.latency_ms is None else f"{row}  {x.latency_ms:11.2f}")
        return lines

    def to_json(self) -> str:
        """For machines."""
        networks = [*map(asdict, self.networks)]
        return as_json({"networks": networks, "failed": self.failed, "beyond": self.beyond})

    def plot(self, path: str | Path, cost: str = "macs") -> None:
        """Draw accuracy against "macs", "weight_bits" or "latency_ms", with the Pareto front (needs
        matplotlib).

        Raises:
            ArgumentError: matplotlib is not installed, another cost, latencies that were not
                measured, or a picture that cannot be written.
        """
        if cost not in COSTS:
            raise ArgumentError(
                f"cost={cost!r} is unknown. Write one of {', '.join(map(repr, COSTS))}."
            )
        figure = figure_class()(layout="constrained")
        axes = figure.add_subplot()
        best = sorted(self._front({cost: math.inf}), key=lambda x: getattr(x, cost))
        for networks, style in ((self.networks, "o"), (best, "-")):
            costs = [getattr(network, cost) for network in networks]
            axes.plot(costs, [network.accuracy for network in networks], style)
        for network in best:
            axes.annotate(network.name, (getattr(network, cost), network.accuracy))
        axes.set_xscale("log")
        axes.set_xlabel(COSTS[cost])
        axes.set_ylabel("accuracy, %")
        save_figure(figure, path, "ranking.plot('ranking.png')")


def by_promise(ranking: Ranking) -> Ranking:
    """The same networks by falling promise, which is of each among all of them."""
    networks = ranking.networks
    measures = [{name: getattr(network, name) for name in MEASURES} for network in networks]
    promising = [
        replace(network, promise=round(promise, 4))
        for network, promise in zip(networks, promises(measures), strict=True)
    ]
    return replace(ranking, networks=tuple(sorted(promising, key=_order)))


def _order(network: RankedNetwork) -> tuple[float, float]:
    return -(network.promise or 0.0), -network.accuracy


def _beats(other: RankedNetwork, network: RankedNetwork, costs: Iterable[str]) -> bool:
    """Whether `other` is at least as good in everything and better in something."""
    gains = [other.accuracy - network.accuracy]
    gains += [getattr(network, cost) - getattr(other, cost) for cost in costs]
    return min(gains) >= 0 and max(gains) > 0
