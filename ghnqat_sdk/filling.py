"""A copy of a model for predicted tensors, and the checked copy of these tensors into it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ghnqat_sdk.copying import copy_module
from ghnqat_sdk.errors import GhnqatError


def copy_with(model: nn.Module, predicted: Mapping[str, Tensor]) -> nn.Module:
    """A deep copy of `model` whose parameters `copy_into` can fill at once.

    A predicted tensor that is just like its parameter becomes the copy's parameter; the others of
    these names are left empty.
    """
    ready: dict[int, Any] = {}
    for name, parameter in model.named_parameters():
        if name in predicted and type(parameter) is nn.Parameter:
            value = predicted[name]
            if not _alike(value, parameter):
                value = torch.empty_like(parameter, requires_grad=False)
            ready[id(parameter)] = nn.Parameter(value, parameter.requires_grad)
    return copy_module(model, ready)


def _alike(value: Tensor, parameter: Tensor) -> bool:
    """Whether the memory of `value` can be that of `parameter`: it is as large, laid out alike, and
    holds nothing else."""
    same = all(
        getattr(value, what) == getattr(parameter, what) for what in ("shape", "dtype", "device")
    )
    return (
        same
        and value.stride() == parameter.stride()
        and value.untyped_storage().nbytes() == value.nbytes
    )


def copy_into(
    model: nn.Module,
    predicted: Mapping[str, Tensor],
    kept: Mapping[str, str],
    replaced: dict[str, Tensor] | None = None,
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Copy predicted tensors into the parameters of `model`, in place, and account for every
    parameter.

    Args:
        model: The model to change; dtype, device and requires_grad of its parameters stay.
        predicted: Tensors by parameter name.
        kept: Reasons for parameters that are not predicted.
        replaced: Gets the values that were there before, by name, in the memory of the predicted
            ones where they fit; `predicted` is used up then.

    Raises:
        GhnqatError: a tensor has another shape than its parameter, holds NaN or infinity, or a
            parameter is neither predicted nor kept with a reason.
    """
    parameters = dict(model.named_parameters())
    _check(parameters, predicted, kept)
    with torch.no_grad():
        for name, value in predicted.items():
            parameter = parameters[name]
            if replaced is not None:
                # Complete at every point: a failure may come between any two lines.
                replaced[name] = parameter.clone()
            if parameter.data_ptr() != value.data_ptr():
                parameter.copy_(value)
            if replaced is not None and _alike(value, parameter):
                replaced[name] = value.copy_(replaced[name])
    return (
        tuple(name for name in parameters if name in predicted),
        {name: kept[name] for name in parameters if name not in predicted},
    )


def _check(
    parameters: Mapping[str, Tensor], predicted: Mapping[str, Tensor], kept: Mapping[str, str]
) -> None:
    for name, value in predicted.items():
        if name not in parameters or parameters[name].shape != value.shape:
            wanted = tuple(parameters[name].shape) if name in parameters else "no such parameter"
            raise GhnqatError(
                f"Predicted {name!r} has shape {tuple(value.shape)}; the model has {wanted}."
            )
        # NaN and infinity reach the sum, which reads the tensor once; only an overflow needs the
        # second look.
        if not value.sum().isfinite() and not value.isfinite().all():
            raise GhnqatError(
                f"Predicted {name!r} holds NaN or infinity; the hypernetwork's weights are damaged."
            )
    missing = [name for name in parameters if name not in predicted and name not in kept]
    if missing:
        raise GhnqatError(
            f"Neither predicted nor kept with a reason: {missing}. This is a bug; please report it."
        )
