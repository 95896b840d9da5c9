"""Classes of a user's own in a config: named by where they are imported from.

A config that a user trains with imports what it names. One that came with weights, from a folder or
the Hub, imports nothing: it finds only what the user has imported, and only classes that are of the
kind that is asked for, so that reading a file never runs code that the user did not choose.

Example:
    >>> import collections
    >>> find("collections.Counter", dict)
    <class 'collections.Counter'>
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue, TypeAdapter, ValidationError

from ghnqat_sdk.configs import Part
from ghnqat_sdk.errors import ArgumentError, GhnqatError, problems

T = TypeVar("T")


def find(factory: str, kind: type[T]) -> type[T]:
    """The subclass of `kind` that a name such as "package.module.Class" stands for.

    Raises:
        ArgumentError: its module is not imported, has no such class, or one of another kind.
    """
    module, _, name = factory.rpartition(".")
    if module not in sys.modules:
        raise ArgumentError(
            f"The config names {factory!r}, and {module!r} is not imported. Nothing is imported "
            f"because a file says so: if you trust it, write `import {module}` first."
        )
    # Not getattr, for which some modules import others.
    found = vars(sys.modules[module]).get(name)
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise ArgumentError(
            f"The config names {factory!r}, and {module!r} has no class {name!r} that is "
            f"{_article(kind.__name__)}. Write `class {name}({kind.__name__}): ...` there."
        )
    return found


def imported(factory: str) -> str:
    """`factory`, after its module was imported: for configs of a user's own.

    Raises:
        ArgumentError: it cannot be imported, or has nothing of that name to call.
    """
    module, _, name = factory.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise ArgumentError(
            f"{factory!r} cannot be imported ({error}). Write the module's full name, and put its "
            f"folder on PYTHONPATH."
        ) from error
    except Exception as error:  # whatever the user's module does
        raise ArgumentError(
            f"{factory!r} cannot be imported: its module raises {_reason(error)}. Correct it."
        ) from error
    if not callable(found) and module == "__main__":
        raise ArgumentError(
            f"{factory!r} was in the script that wrote the config, where no other process finds "
            f"it. Move {name!r} to a module of its own, import it from there, and write the config "
            f"again."
        )
    if not callable(found):
        raise ArgumentError(
            f"{module!r} has no class or function {name!r}. Write one there, or correct the name."
        )
    return factory


def _named(factory: Any) -> Any:
    """The name of a class or function, which itself may be given instead."""
    if callable(factory):
        return f"{factory.__module__}.{factory.__qualname__}"
    return factory


def _well_formed(factory: str) -> str:
    parts = factory.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise ArgumentError(
            f"factory came as {factory!r}; expected where a class is imported from. Write, for "
            f'example, "my_package.my_module.MyClass".'
        )
    return factory


def _reason(error: Exception) -> str:
    """What a user's code raised."""
    if isinstance(error, ValidationError):
        return problems(error)
    return f"{type(error).__name__}: {str(error).rstrip('.')}"


def _article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "AEIOU" else f"a {noun}"


Factory = Annotated[str, BeforeValidator(_named), AfterValidator(_well_formed)]


def by_name(given: Any) -> Any:
    """For a union told apart by `type`: the name of a variant stands for it with its defaults."""
    return {"type": given} if isinstance(given, str) else given


class Custom(Part):
    """A variant of a user's own, in a config that may have come with a file: see `find`."""

    factory: Factory
    """Where its class is imported from, as "package.module.Class"; or the class itself."""
    settings: dict[str, JsonValue] = Field(default_factory=dict)
    """Keyword arguments of its own."""
    expected: ClassVar[str] = "Correct the settings, or the arguments that it takes."
    """What the class must do, for messages."""

    def make(self, kind: type[T], *arguments: Any, **more: Any) -> T:
        """An instance, made of `arguments`, `more` and the settings.

        Raises:
            ArgumentError: see `find`; or the class does not take the settings.
        """
        return self._called(find(self.factory, kind), *arguments, **more)

    @contextmanager
    def running(self, problem: str) -> Iterator[None]:
        """Around code of the user's own: what it raises becomes an error that says whose it is,
        what the `problem` is and what is expected; errors of the package's family say it all."""
        try:
            yield
        except GhnqatError:
            raise
        except Exception as error:  # whatever the user's class does
            raise self.refusal(f"{problem}: {_reason(error)}") from error

    def refusal(self, problem: str) -> ArgumentError:
        """The error for what the class does that is not expected of it."""
        return ArgumentError(f"{self.factory} {problem}. {self.expected}")

    def _called(self, factory: Any, *arguments: Any, **more: Any) -> Any:
        with self.running(f"cannot be made of settings={self.settings}"):
            return factory(*arguments, **more, **self.settings)


class CustomRule(Custom):
    """A variant that does what its `rule` does, an object of the user's class."""

    rule_type: ClassVar[type]
    """What that class derives from."""

    @cached_property
    def rule(self) -> Any:
        """The object, made once.

        Raises:
            ArgumentError: its class is not imported, or cannot be made.
        """
        return self.make(self.rule_type)


def variant(given: Any, name: str, kind: type[T], union: Any, example: str) -> T:
    """The variant that `given` is or, where it is a string, names; one of a user's own is made.

    Args:
        given: An object of `kind`, or the name of a variant without settings.
        name: Of the argument, for messages.
        kind: What all variants derive from.
        union: Of the variants, told apart by `type`.
        example: Of what to write, for messages.

    Raises:
        ArgumentError: it is none; or its class is not imported, or cannot be made.
    """
    if isinstance(given, str):
        with suppress(ValidationError):
            given = TypeAdapter(union).validate_python(given)
    if not isinstance(given, kind):
        raise ArgumentError(
            f"{name}={given!s:.80} is no {kind.__name__} object. Write {name}={example}."
        )
    if isinstance(given, Custom):
        given.make(kind)
    return given


class ImportedCustom(Custom):
    """A variant of a user's own, in a config of the user's own: its module is imported."""

    factory: Annotated[Factory, AfterValidator(imported)]

    def call(self, *arguments: Any, **more: Any) -> Any:
        """What the class or function makes of `arguments`, `more` and the settings.

        Raises:
            ArgumentError: it does not take them.
        """
        module, _, name = self.factory.rpartition(".")
        return self._called(getattr(sys.modules[module], name), *arguments, **more)


def with_imports(config: T) -> T:
    """`config`, after the modules that its own fields name were imported."""
    for part in vars(config).values():
        if isinstance(part, Custom):
            imported(part.factory)
    return config
