"""`Signature`: which entries of a batch are a model's inputs, and which are labels."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ghnqat_sdk.errors import ArgumentError

LABELS = ("label", "labels", "target", "targets", "y")
"""Names of the labels in a batch that is a mapping."""
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@dataclass(frozen=True)
class Signature:
    """Which entries of a batch are a model's inputs; the others are labels.

    Attributes:
        positional: How many entries of a tuple or list, from the first.
        keywords: Entries of a mapping that are inputs whatever their names: those of the example
            inputs.
        arguments: Names that the model's forward takes, and whether each has to be given.
        others: Whether it takes other names as well.
    """

    positional: int = 1
    keywords: tuple[str, ...] | None = None
    arguments: Mapping[str, bool] = field(default_factory=dict)
    others: bool = True

    def of(self, model: Any) -> Signature:
        """The same, with what the forward of `model` takes by name."""
        parameters = parameters_of(model)
        if parameters is None:
            return self
        named = (each for each in parameters if each.kind in _NAMED)
        arguments = {each.name: each.default is each.empty for each in named}
        others = any(each.kind is each.VAR_KEYWORD for each in parameters)
        return dataclasses.replace(self, arguments=arguments, others=others)

    def takes(self, name: str) -> bool:
        """Whether an entry of a mapping is an input: one that forward takes, and no label unless
        forward needs it."""
        if name in (self.keywords or ()) or self.arguments.get(name, False):
            return True
        return name not in LABELS and (self.others or name in self.arguments)

    def inputs_of(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The entries of a mapping that are inputs.

        Raises:
            ArgumentError: an entry is neither an input nor called a label.
        """
        unknown = [name for name in batch if name not in LABELS and not self.takes(name)]
        if unknown:
            raise ArgumentError(
                f"A batch has the entry {unknown[0]!r}, no input of the model and no label, which "
                f"would be one of {', '.join(map(repr, LABELS))}. "
                f"{names_advice([*self.arguments], batch, unknown)}"
            )
        return {name: value for name, value in batch.items() if self.takes(name)}


def parameters_of(model: Any) -> list[inspect.Parameter] | None:
    """What the forward of a model takes; None where nobody can say."""
    try:
        return list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):  # written in C
        return None


def names_advice(names: Sequence[str], given: Collection[str], unknown: Sequence[str]) -> str:
    """What to write instead of the entries `given`, where forward takes `names` and some are
    `unknown`."""
    kept = {name: name for name in given if name not in unknown}
    if names and not any(name in names for name in kept):
        kept = {names[0]: unknown[0]} | kept
    entries = ", ".join(f"{name!r}: batch[{entry!r}]" for name, entry in kept.items())
    return (
        f"forward takes {', '.join(map(repr, names))}, and not {', '.join(map(repr, unknown))}. "
        f"Leave out what is no input, or name it so: write {{{entries}}}."
    )
