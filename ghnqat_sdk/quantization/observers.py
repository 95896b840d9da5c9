"""What calibration gathers while images run: moments of norms' inputs, ranges of layers' inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ghnqat_sdk.bits import FLOAT_BITS
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.graph.ops import op_of
from ghnqat_sdk.quantization.functional import min_max_range
from ghnqat_sdk.quantization.lookup import fake_quantized_layers
from ghnqat_sdk.quantization.norms import calibrated_norms
from ghnqat_sdk.quantization.quantizers import LearnedStepQuantizer
from ghnqat_sdk.quantization.state import evaluating, states_of

BINS = 2048
Hooks = dict[str, Callable[[Tensor], None]]


@dataclass
class Moments:
    """Of a norm's input: sums over all values of each channel (batch), or of each image's moments.

    Attributes:
        instance: Whether mean and variance are of each image, averaged, as instance norm has it.
    """

    instance: bool = False
    count: int = 0
    total: Tensor = field(default_factory=lambda: torch.zeros(()))
    squares: Tensor = field(default_factory=lambda: torch.zeros(()))

    def add(self, x: Tensor) -> None:
        """Values (N, C, ...)."""
        rows = x.detach().double().movedim(1, 0).flatten(2 if self.instance else 1)
        if self.instance:  # (C, N, values)
            self.count += rows.shape[1]
            self.total = self.total + rows.mean(2).sum(1)
            self.squares = self.squares + rows.var(2).sum(1)
        else:  # (C, values)
            self.count += rows.shape[1]
            self.total = self.total + rows.sum(1)
            self.squares = self.squares + rows.square().sum(1)

    def result(self) -> tuple[Tensor, Tensor]:
        """Mean and unbiased variance, each (C,)."""
        mean = self.total / self.count
        if self.instance:
            return mean, self.squares / self.count
        variance = (self.squares / self.count - mean * mean).clamp_(min=0)
        return mean, variance * (self.count / max(self.count - 1, 1))


@dataclass
class Observed:
    """What was gathered, by module name.

    Attributes:
        moments: Of norms.
        ranges: (images, low, high) of each call, as the model would quantize it.
        extremes: (smallest, largest) value.
        histograms: Counts over the extremes, from a second pass.
    """

    moments: dict[str, Moments] = field(default_factory=dict)
    ranges: dict[str, list[tuple[int, float, float]]] = field(default_factory=dict)
    extremes: dict[str, tuple[float, float]] = field(default_factory=dict)
    histograms: dict[str, Tensor] = field(default_factory=dict)

    def of_norm(self, name: str, norm: nn.Module) -> Callable[[Tensor], None]:
        """Gathers moments."""
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
            smallest, largest = (float(end) for end in min_max_range(x))
            if not (math.isfinite(smallest) and math.isfinite(largest)):
                raise ArgumentError(
                    f"The input of {name!r} was not finite while calibrating. Check the batches "
                    f"for NaN and infinity, and normalize them as in training."
                )
            low, high = quantizer.range_of(x)
            self.ranges.setdefault(name, []).append((len(x), float(low), float(high)))
            before = self.extremes.get(name, (smallest, largest))
            self.extremes[name] = min(before[0], smallest), max(before[1], largest)

        return see

    def histogram_of_input(self, name: str) -> Callable[[Tensor], None]:
        """Gathers a histogram between the extremes."""

        def see(x: Tensor) -> None:
            counts = torch.histc(x.detach().float().cpu(), BINS, *self.extremes[name]).double()
            self.histograms[name] = self.histograms.get(name, 0) + counts

        return see


def layers_with_ranges(qmodel: nn.Module) -> dict[str, Any]:
    """The fake-quantized layers whose inputs are neither float nor quantized by a learned step."""
    return {
        name: layer
        for name, layer in fake_quantized_layers(qmodel).items()
        if layer.input_quantizer.bits != FLOAT_BITS
        and not isinstance(layer.input_quantizer, LearnedStepQuantizer)
    }


@contextmanager
def observing(qmodel: nn.Module, norms: Hooks, inputs: Hooks) -> Iterator[None]:
    """Evaluation with batch statistics and dynamic ranges, seen by observers; then all as
    before."""
    states = states_of(qmodel)
    calibrated = [state.calibrated for state in states]
    quantizers = {n: x.input_quantizer for n, x in fake_quantized_layers(qmodel).items()}
    frozen = {name: quantizer.frozen_range for name, quantizer in quantizers.items()}
    observed = calibrated_norms(qmodel)
    try:
        for state in states:
            state.calibrated = False
        for name, quantizer in quantizers.items():
            quantizer.frozen_range = None
            quantizer.observe = inputs.get(name)
        for name, norm in observed.items():
            norm.observe = norms.get(name)
        with evaluating(qmodel), torch.no_grad():
            yield
    finally:
        for state, before in zip(states, calibrated, strict=True):
            state.calibrated = before
        for name, quantizer in quantizers.items():
            quantizer.frozen_range = frozen[name]
            quantizer.observe = None
        for norm in observed.values():
            vars(norm).pop("observe", None)
