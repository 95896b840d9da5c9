"""Batch-norm statistics and static activation ranges from data: what makes evaluation independent of the batch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ghnqat_sdk.bits import FLOAT_BITS
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.progress import progress_bar
from ghnqat_sdk.quantization.functional import (
    mean_squared_error_range,
    min_max_range,
    percentile_range,
    scale_and_zero_point,
)
from ghnqat_sdk.quantization.layers import (
    NORMS,
    QuantizationState,
    evaluating,
    fake_quantized_layers,
)
from ghnqat_sdk.quantization.quantizers import LearnedStepQuantizer

CHUNK = 64
"""Images that share statistics while calibrating, as in the paper's protocol."""


Method = Literal["mean", "min-max", "percentile", "mse"]
_METHODS: tuple[Method, ...] = ("mean", "min-max", "percentile", "mse")
_BINS = 2048


@dataclass(frozen=True)
class CalibrationReport:
    """What calibration fixed; printed as a table of layers.

    Attributes:
        method: How ranges were chosen.
        images: How many images it saw.
        bits: Layer name to the bits of its input.
        ranges: Layer name to the (low, high) range of its input; layers with float inputs are left out.
        norms: Names of the batch norms whose statistics were re-estimated.
        unreached: Fake-quantized layers and batch norms that no image reached, left as they were.
    """

    method: Method
    images: int
    bits: dict[str, int]
    ranges: dict[str, tuple[float, float]]
    norms: tuple[str, ...]
    unreached: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{self.images} images, {len(self.norms)} batch norms, ranges by {self.method!r}"]
        width = max((len(name) for name in self.ranges), default=0)
        for name, (low, high) in self.ranges.items():
            scale, zero_point = scale_and_zero_point(low, high, self.bits[name])
            lines.append(
                f"  {name:{width}}  {self.bits[name]} bits  [{low:9.4g}, {high:9.4g}]  scale {scale.item():.4g}  "
                f"zero point {zero_point.item():.0f}"
            )
        return "\n".join([*lines, *(f"  {name}: no image reached it" for name in self.unreached)])


@dataclass
class _Moments:
    """Sums over all values of each channel."""

    count: int = 0
    total: Tensor = field(default_factory=lambda: torch.zeros(()))
    squares: Tensor = field(default_factory=lambda: torch.zeros(()))

    def add(self, x: Tensor) -> None:
        rows = x.detach().double().movedim(1, 0).flatten(1)  # (C, values)
        self.count += rows.shape[1]
        self.total = self.total + rows.sum(1)
        self.squares = self.squares + rows.square().sum(1)


@dataclass
class _Observed:
    """What the hooks gathered, by module name."""

    moments: dict[str, _Moments] = field(default_factory=dict)
    ranges: dict[str, list[tuple[int, float, float]]] = field(default_factory=dict)
    """(images, low, high) of each chunk, as the model would quantize it."""
    extremes: dict[str, tuple[float, float]] = field(default_factory=dict)
    """(smallest, largest) value."""
    histograms: dict[str, Tensor] = field(default_factory=dict)
    """Counts over the extremes, from a second pass."""


def calibrate(
    qmodel: nn.Module,
    batches: Iterable[Any],
    *,
    method: Method = "mean",
    percentile: float = 99.9,
    progress: bool = True,
) -> CalibrationReport:
    """Re-estimate batch-norm statistics and freeze activation ranges, in place, so that `.eval()` is deployable.

    Batch norm uses batch statistics meanwhile, and quantization is on. Batches are put together and cut again into
    chunks of 64, so that the result does not depend on the batch size. A batch norm's statistics are those of all
    values it saw. The range of a layer's input follows from `method`:

    - "mean": the mean of the ranges with which the model quantizes each chunk, which it was predicted for;
    - "min-max": the smallest and the largest value;
    - "percentile": all values but `100 - percentile` percent on either side;
    - "mse": the range with the smallest mean squared error of quantization.

    The last two take a second pass and keep the batches in memory. Learned steps (`learn_steps`) stay as they are.

    Args:
        qmodel: From `predict_quantized_params`.
        batches: Tensors (N, C, H, W), or tuples and lists whose first entry is one, as a DataLoader gives. For a
            model with several inputs, dicts of keyword arguments, all tensors with N rows.
        method: How activation ranges are chosen.
        percentile: For the method of that name, in (50, 100].
        progress: Show a bar, on terminals only.

    Returns:
        What was fixed. Calling again replaces it.

    Raises:
        ArgumentError: no batches, a batch that is no tensor, a model that is not fake-quantized or cannot be run on
            the batches, values that are not finite, or an unknown method.
    """
    _check_method(method, percentile)
    state = _state_of(qmodel)
    observed, images = _Observed(), 0
    chunks: Iterable[dict[str, Tensor]] = _rechunk(batches)
    again = method in ("percentile", "mse")
    if again:
        chunks = list(chunks)
    with _observing(qmodel, state, _first_hooks(qmodel, observed)), torch.no_grad():
        for chunk in _bar(chunks, "calibrating", progress):
            images += _length(chunk)
            _run(qmodel, chunk)
    _check_finite(observed)
    if again:
        with _observing(qmodel, state, _second_hooks(qmodel, observed)), torch.no_grad():
            for chunk in _bar(chunks, "choosing ranges", progress):
                _run(qmodel, chunk)
    if images == 0:
        raise ArgumentError(
            "calibrate got no batches. Pass at least one tensor (N, C, H, W), better several hundred images."
        )
    _write_statistics(qmodel, observed.moments)
    layers = fake_quantized_layers(qmodel)
    bits = {name: layers[name].input_quantizer.bits for name in observed.ranges}
    ranges = {
        name: _chosen(observed, name, bits[name], method, percentile) for name in observed.ranges
    }
    for name, (low, high) in ranges.items():
        layers[name].input_quantizer.freeze(low, high)
    state.calibrated = True
    return CalibrationReport(
        method, images, bits, ranges, tuple(observed.moments), tuple(_unreached(qmodel, observed))
    )


def _check_method(method: Any, percentile: Any) -> None:
    if method not in _METHODS:
        raise ArgumentError(
            f"method={method!r} is unknown. Write one of {', '.join(map(repr, _METHODS))}."
        )
    if (
        isinstance(percentile, bool)
        or not isinstance(percentile, (int, float))
        or not 50 < percentile <= 100
    ):
        raise ArgumentError(
            f"percentile={percentile!r} is not above 50 and at most 100. Write percentile=99.9."
        )


def _check_finite(observed: _Observed) -> None:
    for name, ends in observed.extremes.items():
        if not all(map(math.isfinite, ends)):
            raise ArgumentError(
                f"The input of {name!r} was not finite while calibrating. Check the batches for NaN and infinity, and "
                f"normalize them as in training."
            )


def _bar(
    chunks: Iterable[dict[str, Tensor]], what: str, progress: bool
) -> Iterable[dict[str, Tensor]]:
    return progress_bar(chunks, what) if progress else chunks


def _chosen(
    observed: _Observed, name: str, bits: int, method: Method, percentile: float
) -> tuple[float, float]:
    """The range of one layer's input."""
    low, high = observed.extremes[name]
    if method == "mean":
        seen = observed.ranges[name]
        total = sum(count for count, _, _ in seen)
        return sum(n * x for n, x, _ in seen) / total, sum(n * x for n, _, x in seen) / total
    if method == "min-max" or not low < high:
        return low, high
    counts = observed.histograms[name]
    if method == "percentile":
        return percentile_range(counts, low, high, percentile)
    return mean_squared_error_range(counts, low, high, bits)


def _run(qmodel: nn.Module, chunk: Mapping[str, Tensor]) -> None:
    try:
        qmodel(chunk[_ALONE]) if _ALONE in chunk else qmodel(**chunk)
    except Exception as error:  # whatever the user's forward raises
        shapes = {key or "input": tuple(rows.shape) for key, rows in chunk.items()}
        raise ArgumentError(
            f"The model could not be run on a batch of shape {shapes}: {type(error).__name__}: {error}. Pass batches "
            f"that the model takes."
        ) from error


def _state_of(qmodel: nn.Module) -> QuantizationState:
    for module in qmodel.modules() if isinstance(qmodel, nn.Module) else ():
        if isinstance(getattr(module, "quantization", None), QuantizationState):
            return module.quantization  # type: ignore[return-value]
    raise ArgumentError(
        f"calibrate needs a model from predict_quantized_params; this {type(qmodel).__name__} has no fake-quantized "
        f"layer. Write qmodel = predict_quantized_params(model) first."
    )


_ALONE = ""
"""Key of a batch that is a single positional argument."""


def _rechunk(batches: Iterable[Any]) -> Iterator[dict[str, Tensor]]:
    """The same rows in chunks of 64 to 127."""
    if not isinstance(batches, Iterable) or isinstance(batches, (str, bytes, Mapping, Tensor)):
        raise ArgumentError(
            f"calibrate got batches of type {type(batches).__name__}; expected an iterable of batches. Write "
            f"calibrate(qmodel, [images]) for a single batch."
        )
    waiting: dict[str, Tensor] = {}
    for batch in batches:
        arrived = _named(batch)
        if waiting and _kinds(waiting) != _kinds(arrived):
            raise ArgumentError(
                f"calibrate got batches of different kinds: {_kinds(waiting)}, then {_kinds(arrived)}. Pass the same "
                f"arguments with images of one size in every batch."
            )
        ready = {
            key: torch.cat([waiting[key], rows]) if waiting else rows
            for key, rows in arrived.items()
        }
        # Keep between one and two chunks back, so that the last one is never a few leftover images.
        while _length(ready) >= 2 * CHUNK:
            yield {key: rows[:CHUNK] for key, rows in ready.items()}
            ready = {key: rows[CHUNK:] for key, rows in ready.items()}
        waiting = ready
    if waiting and _length(waiting):
        yield waiting


def _named(batch: Any) -> dict[str, Tensor]:
    """A batch as keyword arguments, or as one positional argument."""
    if isinstance(batch, Mapping):
        named = dict(batch)
    else:
        named = {_ALONE: batch[0] if isinstance(batch, (tuple, list)) and batch else batch}
    if not named or not all(isinstance(rows, Tensor) and rows.ndim for rows in named.values()):
        raise ArgumentError(
            f"calibrate got a batch of type {type(batch).__name__}; expected tensors (N, C, H, W), tuples that start "
            f"with one, or dicts of tensors. Write calibrate(qmodel, [images]) for a single batch."
        )
    lengths = {key: len(rows) for key, rows in named.items()}
    if len(set(lengths.values())) > 1 or (_ALONE in named and named[_ALONE].ndim < 2):
        raise ArgumentError(
            f"calibrate got a batch with shapes {[tuple(rows.shape) for rows in named.values()]}; expected (N, ...) "
            f"with one N. Write calibrate(qmodel, [images]) for a single batch."
        )
    return named


def _kinds(chunk: Mapping[str, Tensor]) -> dict[str, tuple[object, ...]]:
    """Argument name to the shape of one row and its type."""
    return {key: (*rows.shape[1:], rows.dtype) for key, rows in chunk.items()}


def _length(chunk: Mapping[str, Tensor]) -> int:
    return len(next(iter(chunk.values())))


@contextmanager
def _observing(qmodel: nn.Module, state: QuantizationState, handles: list[Any]) -> Iterator[None]:
    """Evaluation mode with batch statistics and dynamic ranges; afterwards, modes are as before and hooks gone."""
    calibrated = state.calibrated
    frozen = {
        layer: layer.input_quantizer.frozen_range
        for layer in fake_quantized_layers(qmodel).values()
    }
    try:
        state.calibrated = False
        for layer in frozen:
            layer.input_quantizer.frozen_range = None
        with evaluating(qmodel, state):
            yield
    finally:
        state.calibrated = calibrated
        for layer, range_ in frozen.items():
            layer.input_quantizer.frozen_range = range_
        for handle in handles:
            handle.remove()


def _first_hooks(qmodel: nn.Module, observed: _Observed) -> list[Any]:
    """Gather moments of batch norms, and ranges and extremes of quantized inputs."""

    def moments(name: str) -> Any:
        return lambda _, args: observed.moments.setdefault(name, _Moments()).add(args[0])

    def ranges(name: str) -> Any:
        def hook(layer: Any, args: tuple[Tensor, ...]) -> None:
            low, high = layer.input_quantizer.range_of(args[0])
            observed.ranges.setdefault(name, []).append((len(args[0]), float(low), float(high)))
            smallest, largest = (float(end) for end in min_max_range(args[0]))
            before = observed.extremes.get(name, (smallest, largest))
            observed.extremes[name] = min(before[0], smallest), max(before[1], largest)

        return hook

    norms = [
        module.register_forward_pre_hook(moments(name))
        for name, module in qmodel.named_modules()
        if type(module) in NORMS.values() and module.running_mean is not None
    ]
    return norms + [
        layer.register_forward_pre_hook(ranges(name)) for name, layer in _with_ranges(qmodel)
    ]


def _second_hooks(qmodel: nn.Module, observed: _Observed) -> list[Any]:
    """Gather histograms of quantized inputs."""

    def histogram(name: str) -> Any:
        def hook(_: Any, args: tuple[Tensor, ...]) -> None:
            low, high = observed.extremes[name]
            counts = torch.histc(args[0].detach().float().cpu(), _BINS, low, high).double()
            observed.histograms[name] = observed.histograms.get(name, 0) + counts

        return hook

    return [
        layer.register_forward_pre_hook(histogram(name)) for name, layer in _with_ranges(qmodel)
    ]


def _with_ranges(qmodel: nn.Module) -> Iterator[tuple[str, Any]]:
    """The fake-quantized layers whose inputs are neither float nor quantized by a learned step."""
    for name, layer in fake_quantized_layers(qmodel).items():
        learned = isinstance(layer.input_quantizer, LearnedStepQuantizer)
        if layer.input_quantizer.bits != FLOAT_BITS and not learned:
            yield name, layer


def _write_statistics(qmodel: nn.Module, moments: dict[str, _Moments]) -> None:
    with torch.no_grad():
        for name, seen in moments.items():
            norm: Any = qmodel.get_submodule(name)
            mean = seen.total / seen.count
            variance = (seen.squares / seen.count - mean * mean).clamp_(min=0)
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance * (seen.count / max(seen.count - 1, 1)))


def _unreached(qmodel: nn.Module, observed: _Observed) -> Iterator[str]:
    for name, module in qmodel.named_modules():
        if (
            type(module) in NORMS.values()
            and module.running_mean is not None
            and name not in observed.moments
        ):
            yield name
    yield from (name for name, _ in _with_ranges(qmodel) if name not in observed.ranges)
