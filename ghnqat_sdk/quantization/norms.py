"""Norms with running statistics, as a fake-quantized model has them: one class for each of
torch's."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.graph.ops import op_of
from ghnqat_sdk.quantization.state import QuantizationState

_IMAGES_OF_A_BATCH = 64


class CalibratedNorm:
    """A norm that evaluates with the statistics of the batch until the model is calibrated.

    Predicted weights come without running statistics; the buffers of the user's model belong to
    other weights, and what training gathers in them before the first `calibrate` is not used. So it
    is in a predicted model as long as no image has reached the norm while calibrating.
    """

    quantization: QuantizationState
    reached = False
    observe: Callable[[Tensor], None] | None = None

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        """As the norm's own, with the statistics that hold; the first argument is what it
        normalizes."""
        forward = functools.partial(super().forward, *args, **kwargs)  # type: ignore[misc]
        if self.training:
            if not self.quantization.frozen_norms:
                return forward()
            with _evaluating(self):
                return forward()
        input = next(iter((*args, *kwargs.values())))
        if self.observe is not None:
            self.observe(input)
        if self.quantization.check_calibrated():
            if self.reached or not self.quantization.normalized:
                return forward()
            self.quantization.tell_unreached()
        self._check_values(input)
        with _batch_statistics(self):
            return forward()

    def _check_values(self: Any, input: Tensor) -> None:
        op = op_of(self)
        if op is None or op.statistics != "batch" or input.ndim < 2:
            return
        if input.numel() // max(1, input.shape[1]) < 2:
            when, instead = (
                ("while calibrating", "Pass batches of two or more images.")
                if self.quantization.calibrating
                else (
                    "before calibration",
                    "Call ghnqat_sdk.calibrate(model, batches) first, or pass two or more images.",
                )
            )
            raise ArgumentError(
                f"Batch norm got an input of shape {tuple(input.shape)}, one value per channel, "
                f"{when}, when it needs the statistics of a batch. {instead}"
            )


@contextmanager
def _evaluating(norm: nn.Module) -> Iterator[None]:
    _set(norm, training=False)
    try:
        yield
    finally:
        _set(norm, training=True)


@contextmanager
def _batch_statistics(norm: Any) -> Iterator[None]:
    """Without running statistics, torch's norms in evaluation mode take those of their input; a
    forward of the user's does so in training, where it may read and write the statistics."""
    changes: dict[str, Any] = {
        "running_mean": None,
        "running_var": None,
        "track_running_stats": False,
    }
    if _has_own_forward(norm):
        buffers = norm._buffers.items()
        changes = {"training": True} | {n: x.clone() for n, x in buffers if x is not None}
    before = {name: getattr(norm, name) for name in changes}
    _set(norm, **changes)
    try:
        yield
    finally:
        _set(norm, **before)


def _has_own_forward(norm: nn.Module) -> bool:
    kinds = type(norm).__mro__
    after = kinds[kinds.index(CalibratedNorm) + 1 :]
    kind = next(each for each in after if "forward" in vars(each))
    return not kind.__module__.startswith("torch.nn.modules.")


def _set(norm: nn.Module, **values: Any) -> None:
    """As torch does, whatever the norm's class makes of an assignment."""
    for name, value in values.items():
        nn.Module.__setattr__(norm, name, value)


class CalibratedBatchNorm1d(CalibratedNorm, nn.BatchNorm1d):
    """`nn.BatchNorm1d` that uses batch statistics until calibration."""


class CalibratedBatchNorm2d(CalibratedNorm, nn.BatchNorm2d):
    """`nn.BatchNorm2d` that uses batch statistics until calibration."""


class CalibratedBatchNorm3d(CalibratedNorm, nn.BatchNorm3d):
    """`nn.BatchNorm3d` that uses batch statistics until calibration."""


class CalibratedSyncBatchNorm(CalibratedNorm, nn.SyncBatchNorm):
    """`nn.SyncBatchNorm` that evaluates with its process's batch statistics until calibration."""


class CalibratedInstanceNorm1d(CalibratedNorm, nn.InstanceNorm1d):
    """`nn.InstanceNorm1d` that uses each image's own statistics until calibration."""


class CalibratedInstanceNorm2d(CalibratedNorm, nn.InstanceNorm2d):
    """`nn.InstanceNorm2d` that uses each image's own statistics until calibration."""


class CalibratedInstanceNorm3d(CalibratedNorm, nn.InstanceNorm3d):
    """`nn.InstanceNorm3d` that uses each image's own statistics until calibration."""


def is_norm(module: nn.Module) -> bool:
    """Whether it is a norm with running statistics, which calibration re-estimates."""
    op = op_of(module)
    has = getattr(module, "running_mean", None) is not None
    return has and op is not None and op.statistics is not None


def batchwise_norms(model: nn.Module) -> tuple[str, ...]:
    """The names of batch norms that have no running statistics, and so always use those of the
    batch."""
    return tuple(
        name
        for name, module in model.named_modules()
        if (op := op_of(module)) is not None
        and op.statistics == "batch"
        and getattr(module, "running_mean", None) is None
    )


def count_batches(norm: Any, images: int) -> None:
    """Let statistics of so many images count as those of batches: a norm that averages over all
    its batches (`momentum=None`) would take the next one's for the whole otherwise."""
    if norm.num_batches_tracked == 0:
        norm.num_batches_tracked.fill_(math.ceil(images / _IMAGES_OF_A_BATCH))


def calibrated_norms(model: nn.Module) -> dict[str, Any]:
    """The norms with running statistics of a fake-quantized model, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, CalibratedNorm) and is_norm(module)  # type: ignore[arg-type]
    }
