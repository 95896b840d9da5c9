"""What to write instead, where a model could not be run on what a user passed.

Nothing is refused here: each rule looks at a run that has failed already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ghnqat_sdk.calls import Call, tensors_in
from ghnqat_sdk.errors import ArgumentError, GhnqatError
from ghnqat_sdk.signatures import names_advice, parameters_of

ONE_IMAGE = (
    "This is one image, without N. Write images[None], or for a data set "
    "torch.utils.data.DataLoader(dataset, batch_size=64)."
)
"""Advice; a command line has its own."""

SPATIAL_DIMS = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}


def require_module(model: Any, call: str) -> None:
    """Raises an ArgumentError that says to write `call`, unless `model` is an nn.Module."""
    if not isinstance(model, nn.Module):
        raise ArgumentError(
            f"model is a {type(model).__name__}; expected an nn.Module. Write {call}."
        )


def require_batches(batches: Any, function: str, one: str) -> Iterable[Any]:
    """`batches`, which `function` reads one by one.

    Args:
        batches: Anything.
        function: Its name, for the message.
        one: The call with a single batch.

    Raises:
        ArgumentError: a single batch, a data set whose items are single images, or nothing that
            can be read.
    """
    whole = isinstance(batches, (str, bytes, Mapping, Tensor))
    if isinstance(batches, Iterable) and not whole:
        return batches
    what = f"{function} got batches of type {type(batches).__name__}"
    if hasattr(batches, "batches"):
        raise ArgumentError(f"{what}. Write {function}(qmodel, images.batches(64)).")
    if hasattr(batches, "__getitem__") and not whole:
        raise ArgumentError(
            f"{what}, which gives one image at a time. Write {function}(qmodel, "
            "torch.utils.data.DataLoader(dataset, batch_size=64))."
        )
    raise ArgumentError(f"{what}; expected an iterable of batches. Write {one} for a single batch.")


def run_or_explain(model: Callable[..., Any], call: Call, what: str, otherwise: str) -> Any:
    """As `call.run(model)`, where the model is a user's; errors end in what to write instead, or
    `otherwise`.

    Raises:
        ArgumentError: the model cannot be run on `what`, "a batch" for example; errors of the
            package's own family pass.
    """
    try:
        return call.run(model)
    except GhnqatError:
        raise
    except Exception as error:  # whatever the user's forward raises
        raise ArgumentError(
            f"The model could not be run on {what} of shapes {call.shapes()}: "
            f"{type(error).__name__}: {error}. {advice_for(model, call, error) or otherwise}"
        ) from error


def run_batch(model: nn.Module, call: Call) -> Any:
    """`run_or_explain` of one of many batches."""
    return run_or_explain(model, call, "a batch", "Pass batches that the model takes.")


def advice_for(model: Any, call: Call, error: Exception) -> str | None:
    """What to write instead of `call`, on which `model` failed; None where nothing is known."""
    if not isinstance(model, nn.Module):
        return None
    found = (rule(model, call, error) for rule in _RULES)
    return next((advice for advice in found if advice), None)


def _no_tensor(model: nn.Module, call: Call, error: Exception) -> str | None:
    """Something else stands where tensors are expected."""
    arguments = (*call.args, *call.kwargs.values())
    if arguments and all(isinstance(each, int) for each in arguments):
        sizes = ", ".join(map(str, arguments))
        return f"These are the sizes of a tensor. Write torch.empty({sizes})."
    other = next((each for each in arguments if not any(True for _ in tensors_in(each))), None)
    if other is None:
        return None
    return f"A {type(other).__name__} is no tensor. Write {tensor_of(other)}."


def tensor_of(other: Any) -> str:
    """How to write a tensor of images where `other` stands."""
    words = [words for kind, words in _INSTEAD.items() if isinstance(other, kind)]
    if hasattr(other, "__array__"):
        words.append("torch.from_numpy(images)")
    return words[0] if words else "images, a tensor such as torch.empty(2, 3, 32, 32)"


def _names(model: nn.Module, call: Call, error: Exception) -> str | None:
    """Keywords that forward does not have: labels, most often."""
    names = _parameters(model)
    if names is None or not (unknown := [name for name in call.kwargs if name not in names]):
        return None
    return names_advice(names, call.kwargs, unknown)


def _count(model: nn.Module, call: Call, error: Exception) -> str | None:
    """More entries than forward has arguments."""
    names = _parameters(model)
    if names is None or len(call.args) <= len(names):
        return None
    inputs = ", ".join(names) + ("," if len(names) == 1 else "")
    return (
        f"forward takes {len(names)} of these {len(call.args)} entries. Leave out labels: write "
        f"({inputs})."
    )


def _nested(model: nn.Module, call: Call, error: Exception) -> str | None:
    """Tensors in a list of their own."""
    for index, each in enumerate(call.args):
        if isinstance(each, (tuple, list)):
            return (
                f"Entry {index} is a {type(each).__name__} of {len(each)}. Where forward takes "
                "tensors one by one, write them side by side: (a, b, labels), not "
                "((a, b), labels)."
            )
    return None


def _dtype(model: nn.Module, call: Call, error: Exception) -> str | None:
    """Images of another type than the parameters."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    images = next((tensor for tensor in call.tensors() if tensor.ndim > 2), None)
    if dtype is None or images is None or images.dtype == dtype:
        return None
    change = "images.float()" if dtype == torch.float32 else f"images.to({dtype})"
    if images.dtype == torch.uint8:
        change = f"{change} / 255, normalized as in training"
    return f"The images are {images.dtype}, the parameters {dtype}. Write {change}."


def _shape(model: nn.Module, call: Call, error: Exception) -> str | None:
    """One image instead of a batch, or other channels than those of the first convolution."""
    first = next((m for m in model.modules() if isinstance(m, tuple(SPATIAL_DIMS))), None)
    tensor = next(iter(call.tensors()), None)
    if first is None or tensor is None:
        return None
    dims = next(dims for kind, dims in SPATIAL_DIMS.items() if isinstance(first, kind))
    if tensor.ndim == dims + 1:
        return ONE_IMAGE
    channels = getattr(first, "in_channels", 0)
    if tensor.ndim != dims + 2 or tensor.shape[1] == channels:
        return None
    if "channel" not in str(error).lower():
        return None  # it is another layer that failed, or another input
    if tensor.shape[-1] == channels:
        return f"Channels come second. Write images.movedim(-1, 1), (N, {channels}, ...)."
    return (
        f"The images have {tensor.shape[1]} channels, and the first convolution takes {channels}. "
        f"Build the model for {tensor.shape[1]}, or write images[:, "
        f"{[min(i, tensor.shape[1] - 1) for i in range(channels)]}]."
    )


def _parameters(model: nn.Module) -> list[str] | None:
    """Names of forward's arguments; None where it takes any, or nobody can say."""
    parameters = parameters_of(model)
    if parameters is None:
        return None
    if any(each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD) for each in parameters):
        return None
    return [each.name for each in parameters]


_RULES: tuple[Callable[[nn.Module, Call, Exception], str | None], ...] = (
    _no_tensor,
    _names,
    _count,
    _nested,
    _dtype,
    _shape,
)
_INSTEAD: dict[type, str] = {
    DataLoader: "next(iter(loader))[0]",
    Dataset: "dataset[0][0][None]",
}
