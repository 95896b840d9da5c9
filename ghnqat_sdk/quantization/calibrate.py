"""Batch-norm statistics and static activation ranges from data: what makes evaluation independent of the batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.graph.graph import FLOAT_BITS
from ghnqat_sdk.quantization.convert import NORMS, QuantizationState, fake_quantized_layers

CHUNK = 64
"""Images that share statistics while calibrating, as in the paper's protocol."""


@dataclass(frozen=True)
class CalibrationReport:
    """What calibration fixed.

    Attributes:
        images: How many images it saw.
        ranges: Layer name to the (low, high) range of its input; layers with float inputs are left out.
        norms: Names of the batch norms whose statistics were re-estimated.
        unreached: Fake-quantized layers and batch norms that no image reached, left as they were.
    """

    images: int
    ranges: dict[str, tuple[float, float]]
    norms: tuple[str, ...]
    unreached: tuple[str, ...]


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
    """What the hooks of one pass gathered, by module name."""

    moments: dict[str, _Moments] = field(default_factory=dict)
    ranges: dict[str, list[tuple[int, float, float]]] = field(default_factory=dict)


def calibrate(qmodel: nn.Module, batches: Iterable[Any]) -> CalibrationReport:
    """Re-estimate batch-norm statistics and freeze activation ranges, in place, so that `.eval()` is deployable.

    One pass in which batch norm uses batch statistics and quantization is on. Batches are put together and cut again
    into chunks of 64, so that the result does not depend on the batch size. A layer's range is the mean of its
    chunks' ranges; a batch norm's statistics are those of all values it saw.

    Args:
        qmodel: From `predict_quantized_params`.
        batches: Tensors (N, C, H, W), or tuples and lists whose first entry is one, as a DataLoader gives. For a
            model with several inputs, dicts of keyword arguments, all tensors with N rows.

    Returns:
        What was fixed. Calling again replaces it.

    Raises:
        ArgumentError: no batches, a batch that is no tensor, or a model that is not fake-quantized.
    """
    state = _state_of(qmodel)
    observed, images = _Observed(), 0
    with _observing(qmodel, state, observed), torch.no_grad():
        for chunk in _rechunk(batches):
            images += _length(chunk)
            _run(qmodel, chunk)
    if images == 0:
        raise ArgumentError(
            "calibrate got no batches. Pass at least one tensor (N, C, H, W), better several hundred images."
        )
    _write_statistics(qmodel, observed.moments)
    ranges = _freeze_ranges(qmodel, observed.ranges)
    state.calibrated = True
    return CalibrationReport(images, ranges, tuple(observed.moments), tuple(_unreached(qmodel, observed)))


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
        ready = {key: torch.cat([waiting[key], rows]) if waiting else rows for key, rows in arrived.items()}
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
def _observing(qmodel: nn.Module, state: QuantizationState, observed: _Observed) -> Iterator[None]:
    """Evaluation mode with batch statistics and dynamic ranges; afterwards, modes are as before."""
    modes = {module: module.training for module in qmodel.modules()}
    handles = []
    for name, module in qmodel.named_modules():
        if type(module) in NORMS.values() and module.running_mean is not None:
            handles.append(module.register_forward_pre_hook(_moments_hook(observed, name)))
    for name, layer in fake_quantized_layers(qmodel).items():
        if layer.input_quantizer.bits != FLOAT_BITS:
            handles.append(layer.register_forward_pre_hook(_range_hook(observed, name)))
    before = state.calibrated, state.warn
    frozen = {layer: layer.input_quantizer.frozen_range for layer in fake_quantized_layers(qmodel).values()}
    try:
        state.calibrated, state.warn = False, False
        for layer in frozen:
            layer.input_quantizer.frozen_range = None
        qmodel.eval()
        yield
    finally:
        state.calibrated, state.warn = before
        for layer, range_ in frozen.items():
            layer.input_quantizer.frozen_range = range_
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training


def _moments_hook(observed: _Observed, name: str) -> Any:
    def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        observed.moments.setdefault(name, _Moments()).add(args[0])

    return hook


def _range_hook(observed: _Observed, name: str) -> Any:
    def hook(layer: Any, args: tuple[Tensor, ...]) -> None:
        low, high = layer.input_quantizer.range_of(args[0])
        observed.ranges.setdefault(name, []).append((len(args[0]), float(low), float(high)))

    return hook


def _write_statistics(qmodel: nn.Module, moments: dict[str, _Moments]) -> None:
    with torch.no_grad():
        for name, seen in moments.items():
            norm: Any = qmodel.get_submodule(name)
            mean = seen.total / seen.count
            variance = (seen.squares / seen.count - mean * mean).clamp_(min=0)
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance * (seen.count / max(seen.count - 1, 1)))


def _freeze_ranges(
    qmodel: nn.Module, ranges: dict[str, list[tuple[int, float, float]]]
) -> dict[str, tuple[float, float]]:
    layers, frozen = fake_quantized_layers(qmodel), {}
    for name, seen in ranges.items():
        total = sum(count for count, _, _ in seen)
        low = sum(count * low for count, low, _ in seen) / total
        high = sum(count * high for count, _, high in seen) / total
        layers[name].input_quantizer.freeze(low, high)
        frozen[name] = (low, high)
    return frozen


def _unreached(qmodel: nn.Module, observed: _Observed) -> Iterator[str]:
    for name, module in qmodel.named_modules():
        if type(module) in NORMS.values() and module.running_mean is not None and name not in observed.moments:
            yield name
    for name, layer in fake_quantized_layers(qmodel).items():
        if layer.input_quantizer.bits != FLOAT_BITS and name not in observed.ranges:
            yield name
