"""Which class a module has in a fake-quantized model, and which it had before.

Layers of torch have a class each that can be imported. For any class that derives from one a
subclass is made, so that `isinstance` stays true; it is pickled as the class that it was made for.
"""

from __future__ import annotations

import copy
import weakref
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from ghnqat_sdk.graph.ops import OPS, Op
from ghnqat_sdk.graph.refusals import QUANTIZERS
from ghnqat_sdk.quantization import layers, norms, unfused
from ghnqat_sdk.quantization.state import QuantizationState

LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: layers.FakeQuantizedConv1d,
    nn.Conv2d: layers.FakeQuantizedConv2d,
    nn.Conv3d: layers.FakeQuantizedConv3d,
    nn.ConvTranspose1d: layers.FakeQuantizedConvTranspose1d,
    nn.ConvTranspose2d: layers.FakeQuantizedConvTranspose2d,
    nn.ConvTranspose3d: layers.FakeQuantizedConvTranspose3d,
    nn.Linear: layers.FakeQuantizedLinear,
}
OTHERS: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: norms.CalibratedBatchNorm1d,
    nn.BatchNorm2d: norms.CalibratedBatchNorm2d,
    nn.BatchNorm3d: norms.CalibratedBatchNorm3d,
    nn.SyncBatchNorm: norms.CalibratedSyncBatchNorm,
    nn.InstanceNorm1d: norms.CalibratedInstanceNorm1d,
    nn.InstanceNorm2d: norms.CalibratedInstanceNorm2d,
    nn.InstanceNorm3d: norms.CalibratedInstanceNorm3d,
    nn.TransformerEncoder: unfused.UnfusedTransformerEncoder,
    nn.TransformerEncoderLayer: unfused.UnfusedTransformerEncoderLayer,
}
CHANGED = (layers.FakeQuantizedLayer, norms.CalibratedNorm, unfused.Unfused)
"""What the classes of a fake-quantized model derive from."""
MEMBERS = ("quantization", "observe", "reached", "__module__")
"""Attributes that modules have in a fake-quantized model alone, beside quantizers."""

_OURS = LAYERS | OTHERS
_FLOAT = {ours: theirs for theirs, ours in _OURS.items()}
_MIXINS: dict[type[nn.Module], type] = {
    nn.TransformerEncoder: unfused.UnfusedEncoder,
    nn.TransformerEncoderLayer: unfused.UnfusedLayer,
}
_made: weakref.WeakKeyDictionary[type, weakref.ref[type[nn.Module]]] = weakref.WeakKeyDictionary()


def fake_quantized_class(kind: type[nn.Module]) -> type[nn.Module]:
    """The class that stands for `kind`: a convolution, linear layer, norm or transformer
    encoder."""
    if kind in _OURS:
        return _OURS[kind]
    if _is_parametrized(kind):
        return _on_others(kind, tuple(fake_quantized_class(base) for base in kind.__bases__))
    reference = _made.get(kind)
    made = reference() if reference is not None else None
    if made is None:
        made = _subclass(kind)
        _made[kind] = weakref.ref(made)
    return made


def change_class(module: nn.Module, state: QuantizationState) -> None:
    """Make a module one of a fake-quantized model; a layer's quantizers are put in besides."""
    # Past any `__setattr__` of the user's.
    object.__setattr__(module, "__class__", fake_quantized_class(type(module)))
    vars(module)["quantization"] = state
    vars(module)["__module__"] = "torch.nn"  # torch.fx keeps modules of torch.nn whole


def taken(module: nn.Module) -> str | None:
    """An attribute of the user's that has the name of one of ours, if there is one."""
    own = (vars(module), module._modules, module._parameters, module._buffers)
    names = (*QUANTIZERS, *MEMBERS)
    return next((name for name in names if any(name in each for each in own)), None)


def float_class(kind: type) -> type:
    """The class that `fake_quantized_class` stands in for, also where another was put over it."""
    if kind in _FLOAT:
        return _FLOAT[kind]
    if "float_class" in vars(kind):
        return vars(kind)["float_class"]
    bases = tuple(float_class(base) for base in kind.__bases__)
    return kind if bases == kind.__bases__ else _on_others(kind, bases)


def _is_parametrized(kind: type) -> bool:
    """Whether torch put the class over that of one module, to make its weight a property."""
    state = vars(kind).get("__getstate__")
    return getattr(state, "__module__", None) == parametrize.__name__


def _on_others(kind: type, bases: tuple[type, ...]) -> type:
    """A class like `kind` on other bases."""
    own = {name: x for name, x in vars(kind).items() if name not in ("__dict__", "__weakref__")}
    return type(kind)(kind.__name__, bases, own)


def _subclass(kind: type[nn.Module]) -> type[nn.Module]:
    """A subclass of `kind`, which derives from a class of torch."""
    members: dict[str, Any] = {
        "float_class": kind,
        "__reduce_ex__": _reduced,
        "__doc__": f"`{kind.__name__}`, as a fake-quantized model has it.",
    }
    if hasattr(kind, "__deepcopy__"):
        members["__deepcopy__"] = _deepcopied
    return type(f"FakeQuantized{kind.__name__}", (_ours(kind), kind), members)


def _ours(kind: type[nn.Module]) -> type:
    """What comes before `kind` and changes what it computes."""
    mixin = next((_MIXINS[base] for base in kind.__mro__ if base in _MIXINS), None)
    if mixin is not None:
        return mixin
    row = _row(kind)
    if row.statistics is not None:
        return norms.CalibratedNorm
    base = next((each for each in kind.__mro__ if each in LAYERS), None)
    if base is not None and runs_as(kind, base):
        return LAYERS[base]
    return type(f"OwnForward_{row.name}", (layers.OwnForward,), {"op": row.name})


def runs_as(kind: type, base: type) -> bool:
    """Whether `kind` computes by the methods of `base`."""
    return all(
        getattr(kind, name, None) is getattr(base, name, None)
        for name in ("forward", "_conv_forward", "_output_padding", "__call__")
    )


def _row(kind: type) -> Op:
    """The row of `graph.ops` whose modules `kind` is one of."""
    return next(op for op in OPS if issubclass(kind, op.modules))


def _reduced(module: Any, protocol: Any) -> Any:
    """Pickles a module by its float class, which can be imported; its own is made again."""
    state = object.__reduce_ex__(module, protocol)[2]
    return _new_module, (type(module).float_class,), state


def _new_module(kind: type[nn.Module]) -> nn.Module:
    ours = fake_quantized_class(kind)
    return ours.__new__(ours)


def _deepcopied(module: Any, memo: dict[int, Any]) -> Any:
    """Attribute by attribute: what the float class makes of a copy knows of no quantizers."""
    twin = _new_module(type(module).float_class)
    memo[id(module)] = twin
    vars(twin).update(copy.deepcopy(vars(module), memo))
    return twin
