"""What the layers of a fake-quantized model know in common, and questions about the whole model."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import nn

from ghnqat_sdk.bits import Bits
from ghnqat_sdk.devices import at_home
from ghnqat_sdk.errors import UncalibratedWarning
from ghnqat_sdk.generators import random_numbers_stay
from ghnqat_sdk.signatures import Signature


@dataclass
class QuantizationState:
    """What the layers of one fake-quantized model know in common.

    Attributes:
        bits: Resolved (weight, activation) bits by module name.
        unquantized: Modules that compute with a weight in float or keep running statistics, name to
            reason.
        stale: Those of them whose running statistics `calibrate` does not re-estimate.
        signature: Which entries of a batch are the model's inputs.
        calibrated: Whether evaluation uses stored statistics and ranges, not those of the batch.
        normalized: Whether it was predicted, and so made for normalized images.
        calibrating: Whether `calibrate` is running the model.
        frozen_norms: Whether training uses the stored statistics as well.
        warn: Whether an uncalibrated evaluation still has to be pointed out.
        warn_unreached: Whether that of a part which no image reached while calibrating has to.
    """

    bits: dict[str, Bits] = field(default_factory=dict)
    unquantized: dict[str, str] = field(default_factory=dict)
    stale: dict[str, str] = field(default_factory=dict)
    signature: Signature = field(default_factory=Signature)
    calibrated: bool = False
    normalized: bool = False
    calibrating: bool = False
    frozen_norms: bool = False
    warn: bool = True
    warn_unreached: bool = True

    def check_calibrated(self) -> bool:
        """Whether to use stored statistics; says once that they are missing."""
        if not self.calibrated and self.warn and not torch.compiler.is_compiling():
            self.warn = False
            warnings.warn(
                "This fake-quantized model is evaluated before calibration: batch norm uses the "
                "statistics of each batch, and activation ranges follow each batch, so a result "
                "depends on what is batched together. Call ghnqat_sdk.calibrate(model, batches) to "
                "make it deployable.",
                UncalibratedWarning,
                stacklevel=3,
            )
        return self.calibrated

    def tell_unreached(self) -> None:
        """Say once that something runs that no image reached while calibrating."""
        if self.warn_unreached and not torch.compiler.is_compiling():
            self.warn_unreached = False
            warnings.warn(
                "A part of this calibrated model is evaluated that no image reached while "
                "calibrating: its activation ranges, and the statistics of its norms, follow each "
                "batch. The report of calibrate(model, batches) names such parts in `unreached`. "
                "Pass batches that reach them, such as images of every size.",
                UncalibratedWarning,
                stacklevel=3,
            )


def states_of(model: nn.Module) -> list[QuantizationState]:
    """The states of a fake-quantized model: one, or more where it is put together of several."""
    found: dict[int, QuantizationState] = {}
    for module in model.modules():
        state = vars(module).get("quantization")
        if isinstance(state, QuantizationState):
            found[id(state)] = state
    return list(found.values())


def signature_of(model: nn.Module) -> Signature:
    """Which entries of a batch are the model's inputs: as at its trace, one where it has parts; by
    name, what its forward takes."""
    states = states_of(model)
    return (states[0].signature if len(states) == 1 else Signature()).of(model)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, without the warning before calibration; afterwards all is as before.

    Random number generators, too: a model may draw from them in evaluation.
    """
    states = states_of(model)
    warned = [(state.warn, state.warn_unreached) for state in states]
    with modes_stay(model), random_numbers_stay(), at_home(model):
        try:
            for state in states:
                state.warn = state.warn_unreached = False
            model.eval()
            yield
        finally:
            for state, before in zip(states, warned, strict=True):
                state.warn, state.warn_unreached = before


def uncompiled() -> AbstractContextManager[object]:
    """Around what looks at layers while a model runs: what is compiled of it runs as it is written,
    as what looks is no part of a graph."""
    if "torch._dynamo" not in sys.modules:  # a slow import; nothing is compiled without it
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


@contextmanager
def modes_stay(model: nn.Module) -> Iterator[None]:
    """After the block, each module is in the mode, training or evaluation, that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
