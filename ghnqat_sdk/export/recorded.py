"""A model as torch.export records it, and the sizes of inputs that the recording is right for."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ghnqat_sdk.calls import Call
from ghnqat_sdk.export.sizes import other_size

_NO_END = 2**62
"""Larger than any size."""
_SCALES = (1.0, 2.0, 4.0)
"""Of the images that a model is recorded with."""


class _BoundedError(Exception):
    """torch has recorded a model for some sizes of its inputs only."""


@contextmanager
def quiet_export() -> Iterator[None]:
    """Without what torch says of sizes that it cannot tell beforehand: it finds another way by
    itself."""
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    disabled = logger.disabled
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            logger.disabled = True
            yield
        finally:
            logger.disabled = disabled


def _two_rows(x: Tensor) -> Tensor:
    """torch.export takes a single row for a constant, and remembers a layout other than the
    usual."""
    return (x if len(x) > 1 else torch.cat([x, x])).contiguous()


def _varying(x: Tensor, dimensions: tuple[int, ...]) -> dict[int, Any]:
    """What torch.export is told of one input; only images have a height and a width."""
    mine = dimensions if x.ndim == 4 else dimensions[:1]
    return dict.fromkeys(mine, torch.export.Dim.AUTO)


def recorded_for_any(
    model: nn.Module, inputs: Any, dimensions: tuple[int, ...]
) -> tuple[Any, dict[int, int]]:
    """The model as torch.export records it, and the least sizes of the dimensions that vary.

    Where the last features of a network are of one pixel, torch takes that for a rule, which ends
    at some size of the images; it does not where they are several times as high and wide.

    Raises:
        _BoundedError: the recording is of some sizes only.
    """
    call = Call.of(inputs).map(_two_rows if 0 in dimensions else Tensor.contiguous)
    for scale in _SCALES if 2 in dimensions else _SCALES[:1]:
        larger = call.map(partial(_scaled, scale=scale))
        recorded = _recorded(model, larger, dimensions)
        lowest, highest = _sizes(recorded)
        ends = {place: size for place, size in highest.items() if size < _NO_END}
        if not ends:
            return recorded, lowest
        if 0 in ends:  # larger images change nothing
            break
    raise _BoundedError(f"dimensions of the inputs have a largest size: {ends}")


def _scaled(x: Tensor, scale: float) -> Tensor:
    return other_size(x, len(x), (scale, scale))


def _recorded(model: nn.Module, call: Call, dimensions: tuple[int, ...]) -> Any:
    shapes = [_varying(x, dimensions) for x in call.tensors()]
    dynamic = tuple(shapes) if call.args else dict(zip(call.kwargs, shapes, strict=True))
    kwargs = dict(call.kwargs)
    with quiet_export(), torch.no_grad():
        # By itself torch.onnx goes on with a mere recording where this fails: of one branch only.
        return torch.export.export(model, call.args, kwargs, dynamic_shapes=dynamic, strict=False)


def _sizes(recorded: Any) -> tuple[dict[int, int], dict[int, Any]]:
    """The least and the largest size of each dimension of inputs that varies; the latter may be
    torch's infinity."""
    lowest: dict[int, int] = {}
    highest: dict[int, Any] = {}
    names = set(recorded.graph_signature.user_inputs)
    for node in recorded.graph.nodes:
        if node.op != "placeholder" or node.name not in names:
            continue
        for place, size in enumerate(node.meta["val"].shape):
            if isinstance(size, int):
                continue
            bounds = recorded.range_constraints[size.node.expr]
            lowest[place] = max(lowest.get(place, 0), int(bounds.lower))
            highest[place] = min(highest.get(place, bounds.upper), bounds.upper)
    return lowest, highest
