"""What calibration gathers while images run: moments of norms' inputs, ranges of layers' inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ghnqat_sdk.bits import FLOAT_BITS
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.graph.ops import op_of
from ghnqat_sdk.quantization.chunks import RANGE_ROWS
from ghnqat_sdk.quantization.lookup import fake_quantized_layers
from ghnqat_sdk.quantization.norms import calibrated_norms
from ghnqat_sdk.quantization.quantizers import LearnedStepQuantizer
from ghnqat_sdk.quantization.ranges import min_max_range
from ghnqat_sdk.quantization.state import in_evaluation, states_of, uncompiled

BINS = 2048
BLOCK = 2**18
"""Values that are summed at once: few enough for a processor's cache."""
Hooks = dict[str, Callable[[Tensor], None]]
Method = Literal["auto", "mean", "min-max", "percentile", "mse"]
"""How `calibrate` chooses the range of a layer's input."""
UNCLIPPED_BITS = 8
"""Of which "auto" takes the widest range: a step is small, and what few images have is not."""


class PartRange(NamedTuple):
    """The range that the model would quantize a part of a layer's input with.

    Attributes:
        rows: Of the part.
        low, high: The ends.
        turn: Which of the layer's calls in one run of the model it was.
    """

    rows: int
    low: float
    high: float
    turn: int = 0


@dataclass
class Moments:
    """Of a norm's input: sums over all values of each channel (batch), or of each image's moments.

    Attributes:
        instance: Whether mean and variance are of each image, averaged, as instance norm has it.
    """

    instance: bool = False
    count: int = 0
    total: Tensor = field(default_factory=lambda: torch.zeros((), device="cpu"))
    squares: Tensor = field(default_factory=lambda: torch.zeros((), device="cpu"))

    def add(self, x: Tensor) -> None:
        """Values (N, C, ...)."""
        rows = max(1, BLOCK * len(x) // max(1, x.numel()))
        for block in x.detach().split(rows):
            self._add(block.double().flatten(2) if x.ndim > 2 else block.double().unsqueeze(2))

    def _add(self, x: Tensor) -> None:
        """Values (N, C, positions), float64, of which nothing else is made."""
        if self.instance:
            self.count += len(x)
            self.total = self.total + x.mean(2).sum(0)
            self.squares = self.squares + x.var(2, correction=0).sum(0)
        else:
            self.count += len(x) * x.shape[2]
            self.total = self.total + x.sum((0, 2))
            self.squares = self.squares + x.square().sum((0, 2))

    def result(self) -> tuple[Tensor, Tensor]:
        """Mean and variance, each (C,): those that the norm would divide a batch of all by."""
        mean = self.total / self.count
        if self.instance:
            return mean, self.squares / self.count
        return mean, (self.squares / self.count - mean * mean).clamp_(min=0)


@dataclass
class Observed:
    """What was gathered, by module name.

    A layer's input is quantized meanwhile as that of a calibrated model will be: with the range
    that follows from all the images which run together.

    Attributes:
        method: How it follows; the two that need the distribution start from "auto".
        images: How many have come.
        rows: How many of them run together.
        moments: Of norms.
        ranges: Of each part of a layer's input.
        turns: How many images had come when a layer was called last, and which call of that run it
            was.
        extremes: (smallest, largest) value.
        histograms: Counts over the extremes, from a second pass.
    """

    method: Method = "auto"
    images: int = 0
    rows: int = 0
    moments: dict[str, Moments] = field(default_factory=dict)
    ranges: dict[str, list[PartRange]] = field(default_factory=dict)
    turns: dict[str, tuple[int, int]] = field(default_factory=dict)
    extremes: dict[str, tuple[float, float]] = field(default_factory=dict)
    histograms: dict[str, Tensor] = field(default_factory=dict)

    def of_norms(self, qmodel: nn.Module) -> Hooks:
        """Gather moments."""
        return {name: self._of_norm(name, norm) for name, norm in calibrated_norms(qmodel).items()}

    def _of_norm(self, name: str, norm: nn.Module) -> Callable[[Tensor], None]:
        op = op_of(norm)
        instance = op is not None and op.statistics == "instance"

        def see(x: Tensor) -> None:
            self.moments.setdefault(name, Moments(instance)).add(x)

        return see

    def of_input(self, name: str, quantizer: Any) -> Callable[[Tensor], None]:
        """Gathers ranges and extremes."""

        def see(x: Tensor) -> None:
            if not x.numel():
                return
            low, high = (float(end) for end in min_max_range(x))
            if not (math.isfinite(low) and math.isfinite(high)):
                raise ArgumentError(
                    f"The input of {name!r} was not finite while calibrating. Check the batches "
                    f"for NaN and infinity, and normalize them as in training."
                )
            before = self.extremes.get(name, (low, high))
            self.extremes[name] = min(before[0], low), max(before[1], high)
            ranges = self._ranges(x, quantizer, self._turn(name))
            self.ranges.setdefault(name, []).extend(ranges)
            quantizer.freeze(*self._settled(ranges, (low, high), quantizer.bits))

        return see

    def _turn(self, name: str) -> int:
        """Which call of the layer in this run of the model this is."""
        images, turn = self.turns.get(name, (self.images, -1))
        self.turns[name] = (self.images, turn + 1 if images == self.images else 0)
        return self.turns[name][1]

    def range_of_input(self, name: str, bits: int) -> tuple[float, float]:
        """What follows from all ranges and extremes of a layer's input."""
        return self._settled(self.ranges[name], self.extremes[name], bits)

    def _settled(
        self, ranges: list[PartRange], extremes: tuple[float, float], bits: int
    ) -> tuple[float, float]:
        if self.method == "min-max":
            return extremes
        if self.method != "mean" and bits >= UNCLIPPED_BITS:
            return mean_range(widest_by_turn(ranges))
        return mean_range(ranges)

    def _ranges(self, x: Tensor, quantizer: Any, turn: int = 0) -> list[PartRange]:
        """Of parts of `RANGE_ROWS` images or more; of the whole where rows are no images."""
        quantizer.frozen_range = None
        parts = self.rows // RANGE_ROWS if len(x) % max(1, self.rows) == 0 else 1
        found = []
        for part in x.tensor_split(max(1, parts)):
            low, high = quantizer.range_of(part)
            found.append(PartRange(len(part), float(low), float(high), turn))
        return found

    def histogram_of_input(self, name: str, quantizer: Any) -> Callable[[Tensor], None]:
        """Gathers a histogram between the extremes."""

        def see(x: Tensor) -> None:
            counts = torch.histc(x.detach().float().cpu(), BINS, *self.extremes[name]).double()
            self.histograms[name] = self.histograms.get(name, 0) + counts
            if x.numel():
                ranges = self._ranges(x, quantizer)
                quantizer.freeze(*self._settled(ranges, self.extremes[name], quantizer.bits))

        return see


def mean_range(ranges: list[PartRange]) -> tuple[float, float]:
    """The mean of the ranges of parts; a part weighs as much as it has rows."""
    total = sum(part.rows for part in ranges)
    low = sum(part.rows * part.low for part in ranges) / total
    high = sum(part.rows * part.high for part in ranges) / total
    return low, high


def widest_by_turn(ranges: list[PartRange]) -> list[PartRange]:
    """The widest range of each of the calls that a layer gets in one run of the model."""
    found: dict[int, PartRange] = {}
    for part in ranges:
        known = found.get(part.turn, part._replace(rows=0))
        ends = min(known.low, part.low), max(known.high, part.high)
        found[part.turn] = PartRange(known.rows + part.rows, *ends, part.turn)
    return list(found.values())


def layers_with_ranges(qmodel: nn.Module) -> dict[str, Any]:
    """The fake-quantized layers whose inputs are neither float nor quantized by a learned step."""
    return {
        name: layer
        for name, layer in fake_quantized_layers(qmodel).items()
        if layer.input_quantizer.bits != FLOAT_BITS
        and not isinstance(layer.input_quantizer, LearnedStepQuantizer)
    }


@contextmanager
def observing(
    qmodel: nn.Module,
    norms: Hooks,
    inputs: Hooks,
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> Iterator[None]:
    """Evaluation with batch statistics and with `ranges`, dynamic ones of other layers, seen by
    observers; then all as before."""
    ranges = ranges or {}
    states = states_of(qmodel)
    calibrated = [state.calibrated for state in states]
    quantizers = {n: x.input_quantizer for n, x in fake_quantized_layers(qmodel).items()}
    frozen = {name: quantizer.frozen_range for name, quantizer in quantizers.items()}
    observed = calibrated_norms(qmodel)
    try:
        for state in states:
            state.calibrated, state.calibrating = False, True
        for name, quantizer in quantizers.items():
            quantizer.frozen_range = ranges.get(name)
            quantizer.observe = inputs.get(name)
        for name, norm in observed.items():
            norm.observe = norms.get(name)
        with in_evaluation(qmodel), uncompiled(), torch.no_grad():
            yield
    finally:
        for state, before in zip(states, calibrated, strict=True):
            state.calibrated, state.calibrating = before, False
        for name, quantizer in quantizers.items():
            quantizer.frozen_range = frozen[name]
            quantizer.observe = None
        for norm in observed.values():
            vars(norm).pop("observe", None)
