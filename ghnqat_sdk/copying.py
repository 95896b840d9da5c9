"""A copy of a model that shares nothing with it that matters."""

from __future__ import annotations

import copy
import copyreg
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.functions import fill, named, reached, twin_of

_ATOMS = frozenset(
    (
        *(bool, int, float, complex, str, bytes, type(None), type, slice, range),
        *(torch.dtype, torch.device, torch.Size, types.ModuleType, types.BuiltinFunctionType),
    )
)
"""Types whose values are never changed, and so need no copy."""

_COMPILED = "_compiled_call_impl"
"""Attribute of a module that `module.compile()` made: it runs the module that was compiled, no
copy."""


def copy_module(
    model: nn.Module,
    ready: Mapping[int, Any] | None = None,
    *,
    share: bool = False,
    tensor: Callable[[Tensor], Tensor] | None = None,
) -> nn.Module:
    """A deep copy of `model`, several times as fast as `copy.deepcopy`.

    What `copy.deepcopy` refuses or leaves pointing at `model` is the copy's own as well: tensors
    with a history, weak references to modules, and modules and their tensors that functions have
    closed over, take by default, or name as globals, which are then as they stand. Under
    `torch.inference_mode` as well, the copy can be trained.

    Args:
        model: Stays as it is.
        ready: What stands for an object of the model in the copy, by the object's id.
        share: Whether what cannot be copied (a lock, an open file) is shared, instead of refused.
        tensor: Gives the copy of a tensor that is not in `ready`.

    Raises:
        ArgumentError: something cannot be copied; the message names the attribute.
    """
    copier = _Copier(model, ready or {}, share, tensor)
    with torch.inference_mode(False):  # its tensors could never be trained
        return copier.copied(model, type(model).__name__)


class _Copier:
    """One deep copy.

    Attributes:
        memo: The copies so far, by the id of the original, as `copy.deepcopy` keeps them.
        inside: The ids of the modules that are copied, and of their parameters and buffers.
    """

    def __init__(
        self,
        model: nn.Module,
        ready: Mapping[int, Any],
        share: bool,
        tensor: Callable[[Tensor], Tensor] | None,
    ) -> None:
        self.memo: dict[int, Any] = dict(ready)
        self.kept: list[Any] = [model]  # deepcopy keeps alive what it has copied; ids stay unique
        self.memo[id(self.memo)] = self.kept
        tensors = (*model.parameters(), *model.buffers())
        self.inside = {id(part) for part in (*model.modules(), *tensors)}
        self.share = share
        self.tensor = tensor

    def copied(self, value: Any, name: str) -> Any:
        """The copy of any value; `name` is what messages call it."""
        kind = type(value)
        if kind in _ATOMS:
            return value
        if id(value) in self.memo:
            return self.memo[id(value)]
        maker = _MAKERS.get(kind)
        if maker is not None:
            return maker(self, value, name)
        if _is_plain(kind):
            return self.of_object(value, name)
        return self.of_tensor(value, name) if isinstance(value, Tensor) else self.other(value, name)

    def of_object(self, value: Any, name: str) -> Any:
        """An object that is no more than its attributes, such as a module."""
        kind: Any = type(value)
        twin = kind.__new__(kind)
        self.memo[id(value)] = twin
        if _keeps_state(kind):
            state = value.__getstate__() if hasattr(value, "__getstate__") else vars(value)
            self.kept.append(state)
            _set_state(twin, self.copied(state, name))
            return twin
        attributes = vars(twin)
        for key, item in vars(value).items():
            if key != _COMPILED:
                attributes[key] = self.copied(item, f"{kind.__name__}.{key}")
        return twin

    def of_dict(self, value: dict[Any, Any], name: str) -> Any:
        """Values are copied, and keys that are modules."""
        twin = type(value)()
        self.memo[id(value)] = twin
        for key, item in value.items():
            twin[self.of_key(key, name)] = self.copied(item, f"{name}[{key!r}]")
        return twin

    def of_key(self, key: Any, name: str) -> Any:
        """The key of a dict."""
        return key if isinstance(key, (str, int)) else self.copied(key, name)

    def of_list(self, value: list[Any], name: str) -> Any:
        """Entry by entry."""
        twin: list[Any] = []
        self.memo[id(value)] = twin
        twin.extend(self.copied(item, f"{name}[{index}]") for index, item in enumerate(value))
        return twin

    def of_set(self, value: set[Any], name: str) -> Any:
        """Entry by entry; every module has one, of names of buffers."""
        twin: set[Any] = set()
        self.memo[id(value)] = twin
        twin.update(self.copied(item, f"an entry of {name}") for item in value)
        return twin

    def of_tuple(self, value: tuple[Any, ...], name: str) -> Any:
        """Entry by entry, where an entry may change."""
        if all(type(item) in _ATOMS for item in value):
            return value
        twin = tuple(self.copied(item, f"{name}[{index}]") for index, item in enumerate(value))
        same = all(one is other for one, other in zip(twin, value, strict=True))
        return value if same else self.memo.setdefault(id(value), twin)

    def of_tensor(self, value: Tensor, name: str) -> Any:
        """A tensor with a history becomes one without."""
        if self.tensor is not None:
            twin = self.tensor(value)
        elif _is_simple(value):
            twin = value.detach().clone()
            if type(value) is nn.Parameter:
                twin = nn.Parameter(twin, value.requires_grad)
        else:
            return self.other(value, name)
        return self.memo.setdefault(id(value), twin)

    def of_generator(self, value: torch.Generator, name: str) -> Any:
        """A random number generator in the same state."""
        return self.memo.setdefault(id(value), value.clone_state())

    def of_reference(self, value: weakref.ref[Any], name: str) -> Any:
        """A weak reference to a module of the model is one to its copy."""
        target = value()
        return weakref.ref(self.copied(target, name)) if self.belongs(target) else value

    def of_proxy(self, value: Any, name: str) -> Any:
        """A weak proxy of a module of the model is one of its copy."""
        modules = getattr(value, "modules", None)
        target = getattr(modules, "__self__", None)
        return weakref.proxy(self.copied(target, name)) if self.belongs(target) else value

    def of_method(self, value: types.MethodType, name: str) -> Any:
        """A method of the copy."""
        return types.MethodType(value.__func__, self.copied(value.__self__, name))

    def of_function(self, value: types.FunctionType, name: str) -> Any:
        """A function that holds or names modules of the model runs those of its copy."""
        if not self.belongs(value):
            return value
        twin = twin_of(value, self.globals_for(value))
        self.memo[id(value)] = twin
        fill(twin, value, lambda held: self.copied(held, name) if self.belongs(held) else held)
        return twin

    def globals_for(self, function: types.FunctionType) -> dict[str, Any]:
        """The global names of a function's twin: those of the function, or where they name what
        belongs to the model, others for all functions that share them."""
        names = function.__globals__
        if not any(self.belongs(held) for held in named(function).values()):
            return names
        return self.memo.setdefault(id(names), dict(names))

    def belongs(self, value: Any, seen: set[int] | None = None) -> bool:
        """Whether it is a module or tensor of the model, a method, or a function around them."""
        kind = type(value)
        if kind is types.MethodType:
            return id(value.__self__) in self.inside
        if kind is not types.FunctionType:
            return id(value) in self.inside
        seen = set() if seen is None else seen
        if id(value) in seen:
            return False
        seen.add(id(value))
        return any(self.belongs(held, seen) for held in reached(value))

    def other(self, value: Any, name: str) -> Any:
        """Whatever its class makes of `copy.deepcopy`."""
        try:
            if self.tensor is None:
                return copy.deepcopy(value, self.memo)
            with _TensorsBy(self.tensor):
                return copy.deepcopy(value, self.memo)
        except Exception as error:  # whatever the user's class raises
            if self.share:
                return value
            raise ArgumentError(
                f"{name} cannot be copied: {type(error).__name__}: {error}. Take it out of the "
                f"model before, or write inplace=True where the model itself may change."
            ) from error


_MAKERS: dict[type, Callable[[_Copier, Any, str], Any]] = {
    dict: _Copier.of_dict,
    OrderedDict: _Copier.of_dict,
    list: _Copier.of_list,
    set: _Copier.of_set,
    tuple: _Copier.of_tuple,
    Tensor: _Copier.of_tensor,
    nn.Parameter: _Copier.of_tensor,
    torch.Generator: _Copier.of_generator,
    weakref.ReferenceType: _Copier.of_reference,
    weakref.ProxyType: _Copier.of_proxy,
    weakref.CallableProxyType: _Copier.of_proxy,
    types.MethodType: _Copier.of_method,
    types.FunctionType: _Copier.of_function,
}


class _TensorsBy(TorchFunctionMode):
    """Tensors that `copy.deepcopy` comes upon are copied by a function."""

    def __init__(self, tensor: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.tensor = tensor

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is Tensor.__deepcopy__:
            return self.tensor(args[0])
        return function(*args, **kwargs or {})


def _is_simple(tensor: Tensor) -> bool:
    """Whether a copy of its values is a copy of it: it has a history, or memory of its own
    alone."""
    if not tensor.is_leaf:
        return True
    plain = type(tensor) is nn.Parameter or (type(tensor) is Tensor and not tensor.requires_grad)
    alone = tensor.layout is torch.strided and not vars(tensor) and tensor.grad is None
    return plain and alone and tensor.untyped_storage().nbytes() == tensor.nbytes


def _is_plain(kind: type) -> bool:
    """Whether its instances are copied attribute by attribute, as `copy.deepcopy` would."""
    module = issubclass(kind, nn.Module)
    return (
        kind.__reduce_ex__ is object.__reduce_ex__
        and kind.__reduce__ is object.__reduce__
        and not hasattr(kind, "__deepcopy__")
        and (module or (kind.__new__ is object.__new__ and kind.__dictoffset__ != 0))
        and kind not in copyreg.dispatch_table
        and not any(vars(base).get("__slots__") for base in kind.__mro__)
    )


def _keeps_state(kind: type) -> bool:
    """Whether a class says itself what of it is copied, and how."""
    get, put = getattr(kind, "__getstate__", None), getattr(kind, "__setstate__", None)
    plain_get = get in (
        None,
        *(getattr(each, "__getstate__", None) for each in (object, nn.Module)),
    )
    # Those of torch's own layers add attributes that files of old versions lack.
    plain_put = put is None or getattr(put, "__module__", "").startswith("torch.nn.")
    return not (plain_get and plain_put)


def _set_state(twin: Any, state: Any) -> None:
    if hasattr(twin, "__setstate__"):
        twin.__setstate__(state)
    else:
        vars(twin).update(state)
