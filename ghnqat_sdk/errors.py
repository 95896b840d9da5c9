"""One family of errors: every message says what came, what was expected, and what to write
instead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError


def problems(error: ValidationError, most: int | None = None) -> str:
    """What pydantic found wrong, field by field in one line, of which at most `most` are named."""
    found = [
        ": ".join(filter(None, (".".join(map(str, one["loc"])), _in_words(one))))
        for one in error.errors(include_url=False)
    ]
    return first_few(found, most)


def first_few(found: Sequence[str], most: int | None) -> str:
    """At most so many, and how many there are besides."""
    named = "; ".join(found[:most])
    left = len(found[most:]) if most is not None else 0
    return f"{named}; and {left} more" if left else named


def _in_words(one: Any) -> str:
    """One thing that pydantic found wrong (its `ErrorDetails`), without a full stop."""
    if one["type"] == "extra_forbidden":
        return "there is no field of this name"
    raised = one.get("ctx", {}).get("error")
    # Pydantic puts words of its own before those of our checks.
    said = str(raised) if isinstance(raised, Exception) else one["msg"]
    return said.rstrip(".")


class GhnqatError(Exception):
    """Base of every error that ghnqat_sdk raises on purpose."""


class ArgumentError(GhnqatError, ValueError):
    """An argument has the wrong type, value or shape."""


class SpaceIndexError(ArgumentError, IndexError):
    """A space of networks has none at this index; as an IndexError it ends loops over a space."""


class TraceError(GhnqatError, RuntimeError):
    """A model could not be turned into a computation graph."""


class CheckpointError(GhnqatError, RuntimeError):
    """Files of a hypernetwork, a quantized model, a run or a teacher are missing, damaged, or of
    another version; one of them, or an ONNX file, cannot be written; or a run diverges."""


class ExportError(GhnqatError, RuntimeError):
    """An exported model does not do what the model does, or the runtime refuses its file."""


class DataError(GhnqatError, RuntimeError):
    """A data set is missing, empty, or holds something other than images."""


class GhnqatWarning(UserWarning):
    """Base of every warning of ghnqat_sdk."""


class UncalibratedWarning(GhnqatWarning):
    """An evaluation that depends on its batch: `calibrate` has not been called, or no image of it
    reached a part that runs now."""


class ReplacedWeightsWarning(GhnqatWarning):
    """A prediction replaces the weights of a model that has been trained."""


class RandomHeadWarning(GhnqatWarning):
    """A classifier keeps the user's values, because its class count is not the hypernetwork's."""


class UnfamiliarDataWarning(GhnqatWarning):
    """Images unlike those that the hypernetwork's networks were trained on."""


class UntracedWarning(GhnqatWarning):
    """A model that is quantized without its graph, which tells what reads the model's inputs."""
