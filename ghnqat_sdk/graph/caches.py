"""Containers beside a model that a run of it may write to, such as a cache of grids by size."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

from torch import nn

from ghnqat_sdk.calls import tensors_in
from ghnqat_sdk.functions import closed_over, every_named

_CONTAINERS = (dict, OrderedDict, defaultdict, list, set)
_KNOWN = ("torch.", "torchvision.")
"""Libraries that keep no tensors of a run in their classes."""


@contextmanager
def caches_stay(model: nn.Module) -> Iterator[None]:
    """Tensors that a run inside puts into dicts, lists and sets are out of them afterwards: those
    of the classes of its modules, and those that their functions name or have closed over."""
    before = [(container, container.copy()) for container in _containers(model)]
    try:
        yield
    finally:
        for container, entries in before:
            _restore(container, entries)


def _containers(model: nn.Module) -> list[Any]:
    """Those in classes of the modules, and those that their functions reach, also functions that
    were put on one module."""
    kinds = {type(module) for module in model.modules()}
    held = [value for kind in kinds for one in _own_classes(kind) for value in vars(one).values()]
    for module in model.modules():
        held += [value for value in vars(module).values() if _function_of(value) is not None]
    return [*_reached_from(held)]


def _own_classes(kind: type) -> list[type]:
    return [one for one in kind.__mro__ if _is_of_users(one)]


def _is_of_users(value: Any) -> bool:
    """Whether a class or a function is of no library that is known."""
    return not f"{value.__module__}.".startswith(_KNOWN)


def _reached_from(values: list[Any]) -> Iterator[Any]:
    """Containers among values, in containers, and among what functions reach."""
    seen: set[int] = set()
    left = values
    while left:
        value = left.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if type(value) in _CONTAINERS:
            yield value
            inside = value.values() if isinstance(value, dict) else value
            left += [item for item in inside if type(item) in _CONTAINERS]
        elif (function := _function_of(value)) is not None:
            left += [*closed_over(function), *every_named(function).values()]


def _function_of(value: Any) -> FunctionType | None:
    """The Python function in a method, a property or a wrapper; None for what else there is, and
    for functions of libraries that are known."""
    for attribute in ("__func__", "fget", "__wrapped__"):
        value = getattr(value, attribute, value)
    return value if isinstance(value, FunctionType) and _is_of_users(value) else None


def _restore(container: Any, entries: Any) -> None:
    """Put back what there was in place of new tensors."""
    known = {id(item) for item in (entries.values() if isinstance(entries, dict) else entries)}

    def is_new(item: Any) -> bool:
        return id(item) not in known and any(True for _ in tensors_in(item))

    if isinstance(container, dict):
        for key in [key for key, item in container.items() if is_new(item)]:
            if key in entries:
                container[key] = entries[key]
            else:
                del container[key]
    elif any(map(is_new, container)):
        container.clear()
        extend = container.extend if isinstance(container, list) else container.update
        extend(entries)
