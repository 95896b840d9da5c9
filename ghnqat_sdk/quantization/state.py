"""What the layers of a fake-quantized model know in common, and questions about the whole model."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

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
            warnings.warn(
                "This fake-quantized model is evaluated before calibration: batch norm uses the "
                "statistics of each batch, and activation ranges follow each batch, so a result "
                "depends on what is batched together. Call ghnqat_sdk.calibrate(model, batches) to "
                "make it deployable.",
                UncalibratedWarning,
                stacklevel=3,
            )
            self.warn = False  # only now: as an error, it is raised by every such evaluation
        return self.calibrated

    def tell_unreached(self) -> None:
        """Say once that something runs that no image reached while calibrating."""
        if self.warn_unreached and not torch.compiler.is_compiling():
            warnings.warn(
                "A part of this calibrated model is evaluated that no image reached while "
                "calibrating: its activation ranges, and the statistics of its norms, follow each "
                "batch. The report of calibrate(model, batches) names such parts in `unreached`. "
                "Pass batches that reach them, such as images of every size.",
                UncalibratedWarning,
                stacklevel=3,
            )
            self.warn_unreached = False


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

    What a forward brings up to date, too: counters and averages in buffers, attributes of modules.
    """
    kept = _Kept(model)
    with in_evaluation(model):
        try:
            yield
        finally:
            kept.restore()


@contextmanager
def in_evaluation(model: nn.Module) -> Iterator[None]:
    """As `evaluating`, but what a forward writes into its modules stays.

    Random number generators are as before: a model may draw from them in evaluation.
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
def restored_after_failure(model: nn.Module) -> Iterator[None]:
    """All but the parameters and the tree of a model is as it was before, if the block fails."""
    kept = _Kept(model)
    try:
        yield
    except BaseException:
        kept.restore()
        raise


class _Kept:
    """All but the parameters of a model, as it was: classes and attributes of its modules, values
    of its buffers, and what its layers know in common.

    Attributes go together with buffers: a forward may keep a grid in a buffer, and the size that it
    is for beside it. Lazy layers are left out, so that they keep the sizes that they find.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = [each for each in model.modules() if not isinstance(each, LazyModuleMixin)]
        self._kinds = [(module, type(module)) for module in modules]
        held = [each for module in modules for each in (vars(module), module._buffers)]
        held += map(vars, states_of(model))
        # Those of TorchScript keep their buffers in no dict, and cannot replace them.
        self._attributes = [(each, each.copy()) for each in held if isinstance(each, dict)]
        buffers = [each for module in modules for each in module.buffers(recurse=False)]
        self._values = [(each, each.detach().clone()) for each in buffers if not each.is_meta]

    def restore(self) -> None:
        """Put everything back, values into the tensors that there were."""
        for module, kind in self._kinds:
            if type(module) is not kind:
                object.__setattr__(module, "__class__", kind)
        for now, before in self._attributes:
            if now.keys() != before.keys() or any(now[n] is not x for n, x in before.items()):
                now.clear()
                now.update(before)
        with torch.no_grad():
            for buffer, value in self._values:
                if not _equal(buffer, value):  # a write would spoil a graph that has saved it
                    buffer.copy_(value)


def _equal(x: Tensor, y: Tensor) -> bool:
    """Whether tensors of one layout are; sparse ones cannot be compared."""
    return x.layout == torch.strided and torch.equal(x, y)


@contextmanager
def modes_stay(model: nn.Module) -> Iterator[None]:
    """After the block, each module is in the mode, training or evaluation, that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
