"""Models that a callable of the user's own makes: MODULE:CALLABLE."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ghnqat_sdk.errors import ArgumentError

if TYPE_CHECKING:
    from torch import nn

DEFAULT_CLASSES = 10
"""Where neither the user nor the model says how many."""
_KEYWORD = "num_classes"


def of_callable(name: str, classes: int | None, asked: bool, otherwise: int) -> nn.Module:
    """What `name`, MODULE:CALLABLE, returns; arguments and errors as of `build_model`."""
    from torch import nn

    module, _, attribute = name.partition(":")
    with _running_code_of(name):
        factory: Any = reduce(getattr, attribute.split("."), importlib.import_module(module))
    words = _class_words(name, factory, classes, asked, otherwise)
    with _running_code_of(name):
        model: Any = factory(**words)
    if not isinstance(model, nn.Module):
        raise ArgumentError(
            f"{name!r} gives a {type(model).__name__}, not an nn.Module. Write MODULE:CALLABLE "
            "that returns a model"
        )
    return model


@contextmanager
def _running_code_of(name: str) -> Iterator[None]:
    """Modules are found from here; whatever the user's code raises becomes one line."""
    sys.path.insert(0, "")
    try:
        yield
    except (Exception, SystemExit) as error:  # whatever the user's module does
        raise ArgumentError(
            f"{name!r} cannot be made: {type(error).__name__}: {error}. Write MODULE:CALLABLE, a "
            "module that can be imported from here and what it calls without arguments, or with "
            "num_classes, to make a model"
        ) from error
    finally:
        sys.path.remove("")


def _class_words(
    name: str, factory: Any, classes: int | None, asked: bool, otherwise: int
) -> dict[str, int]:
    """The number of classes for a user's callable, where it takes one.

    Raises:
        ArgumentError: it takes none, and the user asked for it.
    """
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # written in C
        parameters = MappingProxyType({})
    own = parameters.get(_KEYWORD)
    if classes is None:
        needed = own is not None and own.default is own.empty
        return {_KEYWORD: otherwise} if needed else {}
    open_ended = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    if own is None and asked and not open_ended:
        raise ArgumentError(
            f"--classes {classes} is for callables that take {_KEYWORD}, and {name!r} does not. "
            f"Leave it out, or write def {re.split('[:.]', name)[-1]}({_KEYWORD}): ..."
        )
    return {_KEYWORD: classes} if own is not None or asked else {}
