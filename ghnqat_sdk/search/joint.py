"""The best network and its bits under one budget: a ranking, and bits for each layer of the first
of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from ghnqat_sdk.bits import Pair
from ghnqat_sdk.checks import check_whole
from ghnqat_sdk.data import ImageSet
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.generators import random_numbers_stay, seed_generators
from ghnqat_sdk.hypernetwork.ghn import GraphHypernetwork
from ghnqat_sdk.hypernetwork.pretrained import DEFAULT, hypernetwork_of
from ghnqat_sdk.search.measuring import bits_in_float, built
from ghnqat_sdk.search.ranking import held_out, named_entries, rank_architectures
from ghnqat_sdk.search.suggestion import check_budget, check_candidates, suggest_bits

_LOOKED_AT = 16  # images that a suggestion is made on


@dataclass(frozen=True)
class Candidate:
    """A network at bits that are within the budget.

    Attributes:
        name: As given.
        bits: (weight, activation) of all layers, or layer name to pair; for
            `predict_quantized_params` as they are.
        accuracy: Top-1 in percent with predicted parameters, on the images that candidates are
            compared by: of the best of many, a little too good.
    """

    name: str
    bits: Pair | dict[str, Pair]
    accuracy: float

    @property
    def mixed(self) -> bool:
        """Whether layers have bits of their own."""
        return isinstance(self.bits, dict)


@dataclass(frozen=True)
class SearchResult:
    """What was found; printed as a table.

    Attributes:
        candidates: The best first: each network at the most bits for all of its layers that
            the budget affords, and the first of them at suggested bits as well.
        beyond: Name to what is beyond the budget at the fewest bits.
        failed: Name to the reason why a network has no accuracy.
    """

    candidates: tuple[Candidate, ...]
    beyond: dict[str, str]
    failed: dict[str, str]

    @property
    def best(self) -> Candidate:
        """Of the highest accuracy."""
        return self.candidates[0]

    def __str__(self) -> str:
        width = max(len(candidate.name) for candidate in self.candidates)
        lines = [f"{'network':{width}}  {'accuracy':>9}  bits"]
        for candidate in self.candidates:
            bits = "of each layer" if candidate.mixed else "W{}/A{}".format(*candidate.bits)
            lines.append(f"{candidate.name:{width}}  {candidate.accuracy:7.1f} %  {bits}")
        lines += [f"{name}: {why}" for name, why in {**self.beyond, **self.failed}.items()]
        return "\n".join(lines)


def search_architectures(
    models: Iterable[Any],
    images: ImageSet,
    *,
    weight_bytes: float | None = None,
    bit_operations: float | None = None,
    candidates: Sequence[Pair] | None = None,
    finalists: int = 3,
    validation: ImageSet | None = None,
    hypernetwork: str | Path | GraphHypernetwork = DEFAULT,
    processes: int = 1,
    results: str | Path | None = None,
    progress: bool = True,
) -> SearchResult:
    """Find the network, and the bits of its layers, that promise most under a budget, without
    training any.

    Each network is ranked at the most bits for all of its layers that the budget affords
    (`rank_architectures`). Then `suggest_bits` spends the budget layer by layer in the best of
    them, which are measured once more.

    Args:
        models: As in `rank_architectures`.
        images: To calibrate with, and to fit classifiers to.
        weight_bytes, bit_operations, candidates: As in `suggest_bits`.
        finalists: How many networks are suggested bits for each layer.
        validation, hypernetwork, processes, results, progress: As in `rank_architectures`.

    Raises:
        ArgumentError: what `rank_architectures` and `suggest_bits` refuse; `finalists` that is no
            whole number from 0; or a budget that no network meets.
    """
    pairs = check_candidates(candidates, weight_bytes)
    check_budget(weight_bytes, bit_operations)
    check_whole("finalists", finalists, 0, "finalists=3")
    fitting, measured = held_out(images, validation)
    settings = {
        "validation": measured,
        "hypernetwork": hypernetwork_of(hypernetwork),
        "processes": processes,
        "results": results,
        "progress": progress,
    }
    search = _Search(named_entries(models), fitting, pairs, weight_bytes, bit_operations, settings)
    return search.result(finalists)


@dataclass
class _Search:
    """One search: its networks by name, and the arguments of `search_architectures`.

    Attributes:
        settings: Of `rank_architectures`.
    """

    entries: dict[str, Any]
    fitting: ImageSet
    pairs: list[Pair]
    weight_bytes: float | None
    bit_operations: float | None
    settings: dict[str, Any]
    found: list[Candidate] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def result(self, finalists: int) -> SearchResult:
        beyond = self._rank_all()
        if not self.found:
            reasons = [f"{name}: {why}" for name, why in {**beyond, **self.failed}.items()]
            raise ArgumentError(
                f"No network can be measured within the budget. {'; '.join(reasons)}. Raise it, or "
                "add cheaper candidates."
            )
        for name in [candidate.name for candidate in self._sorted()[:finalists]]:
            self._refine(name)
        return SearchResult(tuple(self._sorted()), beyond, self.failed)

    def _rank_all(self) -> dict[str, str]:
        """Each network at the most bits that it affords; what is beyond the budget at the
        fewest."""
        left = dict.fromkeys(self.entries, "")
        for pair in sorted(self.pairs, key=lambda x: (self._price(x), sum(x)), reverse=True):
            left = self._rank(left, pair, self._limits(pair)) if left else left
        return left

    def _rank(
        self,
        names: Iterable[str],
        bits: Pair | dict[str, Pair],
        budget: Mapping[str, float] | None = None,
    ) -> dict[str, str]:
        """Keep what is found; gives what is beyond the budget."""
        models = [(name, self.entries[name]) for name in names]
        ranking = rank_architectures(models, bits, self.fitting, budget=budget, **self.settings)
        self.found += [Candidate(x.name, bits, x.accuracy) for x in ranking.networks]
        self.failed |= ranking.failed
        return ranking.beyond

    def _sorted(self) -> list[Candidate]:
        return sorted(self.found, key=lambda candidate: -candidate.accuracy)

    def _price(self, pair: Pair) -> int:
        """What bits cost, in proportion."""
        return pair[0] if self.bit_operations is None else pair[0] * pair[1]

    def _limits(self, pair: Pair) -> dict[str, float]:
        """The budget of networks that have these bits everywhere."""
        if self.weight_bytes is not None:
            return {"weight_bits": 8 * self.weight_bytes}
        assert self.bit_operations is not None
        return {"macs": self.bit_operations / self._price(pair)}

    def _refine(self, name: str) -> None:
        """Keep what it reaches at bits of each layer's own."""
        try:
            with random_numbers_stay():
                seed_generators()
                bits = self._suggested(built(self.entries[name], self.fitting))
        except Exception as error:  # whatever a user's network raises
            self.failed[name] = f"no bits for each layer: {error}"
        else:
            self._rank([name], bits)

    def _suggested(self, model: nn.Module) -> dict[str, Pair]:
        images = self.fitting.sample(min(_LOOKED_AT, len(self.fitting)), seed=0)
        weight_bytes = self.weight_bytes
        suggestion = suggest_bits(
            model,
            self.fitting.normalize(images.images),
            weight_bytes=None if weight_bytes is None else weight_bytes - bits_in_float(model) / 8,
            bit_operations=self.bit_operations,
            candidates=self.pairs,
            hypernetwork=self.settings["hypernetwork"],
        )
        return suggestion.bits
