"""What a Python function runs with besides its arguments: closures, defaults and globals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import CellType, CodeType, FunctionType
from typing import Any


def reached(function: FunctionType) -> Iterator[Any]:
    """What a function has closed over, its defaults, and the globals that it names."""
    yield from closed_over(function)
    yield from named(function).values()


def closed_over(function: FunctionType) -> Iterator[Any]:
    """What a function has closed over, and its defaults."""
    yield from map(_content, function.__closure__ or ())
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()


def named(function: FunctionType) -> dict[str, Any]:
    """The globals that a function names, but for functions of other files, which know nothing of
    this one's globals."""
    names = function.__globals__
    return {
        name: held
        for name, held in every_named(function).items()
        if type(held) is not FunctionType or held.__globals__ is names
    }


def every_named(function: FunctionType) -> dict[str, Any]:
    """The globals that a function names."""
    names = function.__globals__
    return {name: names[name] for name in _names(function.__code__) if name in names}


def twin_of(function: FunctionType, names: dict[str, Any]) -> FunctionType:
    """A function with the same code and the global `names`, for `fill` to fill."""
    cells = tuple(CellType() for _ in function.__closure__ or ())
    twin = FunctionType(function.__code__, names, function.__name__, None, cells)
    twin.__dict__.update(function.__dict__)
    return twin


def fill(twin: FunctionType, function: FunctionType, copied: Callable[[Any], Any]) -> None:
    """Give `twin` what `copied` makes of all that `function` reaches."""
    for cell, other in zip(function.__closure__ or (), twin.__closure__ or (), strict=True):
        other.cell_contents = copied(_content(cell))
    twin.__defaults__ = tuple(map(copied, function.__defaults__ or ())) or None
    by_keyword = function.__kwdefaults__ or {}
    twin.__kwdefaults__ = {key: copied(held) for key, held in by_keyword.items()} or None
    for key, held in named(function).items():
        other = copied(held)
        if other is not held:
            twin.__globals__[key] = other


def _content(cell: CellType) -> Any:
    """What a closure holds; None for a variable that is not set yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _names(code: CodeType) -> Iterator[str]:
    """Those that code uses which are no local variables, also in the functions that it makes."""
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names(inner)
