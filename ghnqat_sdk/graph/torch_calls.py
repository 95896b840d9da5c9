"""What one torch call says of itself: its arguments, the node it becomes, the tensor it writes
into."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ghnqat_sdk.graph.graph import Node
from ghnqat_sdk.graph.ops import BY_NAME, Op, Role

EPSILON = 1e-5
"""What torch's norms add to variances by default."""

_SET_DATA = Tensor.data.__set__  # type: ignore[attr-defined]


def refine(op: Op | None, function: Any, args: Any, kwargs: Any, output: Tensor) -> str | None:
    """The node type of a call on data, None for a transparent one."""
    given = argument(args, kwargs, 0, "input")
    first = given if isinstance(given, Tensor) else None
    if op is None:
        if first is None or first.ndim != 4 or function not in (torch.mean, Tensor.mean):
            return None
        return "global_pool" if output.numel() == first.shape[:2].numel() else None
    if op.name == "conv":
        weight, groups = (
            argument(args, kwargs, 1, "weight"),
            argument(args, kwargs, 6, "groups", 1),
        )
        if groups == 1:
            return "conv"
        return (
            "depthwise_conv"
            if weight.shape[1] == 1 and groups == _channels(first, weight)
            else "grouped_conv"
        )
    pooled = op.name in ("adaptive_pool", "avg_pool")
    if (
        pooled
        and first is not None
        and output.shape[2:].numel() == 1
        and first.shape[2:].numel() > 1
    ):
        return "global_pool"
    return op.name


def _channels(data: Tensor | None, weight: Tensor) -> int:
    """Input channels of a convolution, of a batch or of a single image."""
    return 0 if data is None else data.shape[-(weight.ndim - 1)]


def type_or_other(op: Op | None) -> str:
    """Node type of a call that is transparent but for a parameter that enters it."""
    return op.name if op is not None else "other"


def extra_role(name: str, tensor: Tensor) -> Role:
    flat = sum(size > 1 for size in tensor.shape) <= 1
    if name in ("matmul", "multi_head_attention") and flat:
        return "bias"
    if name == "sum" and not flat:
        return "table"
    return BY_NAME[name].default_role


def in_place(function: Any, kwargs: Any) -> bool:
    name = getattr(function, "__name__", "")
    plain = name.endswith("_") and not name.endswith("__")
    assigned = name == "__setitem__" or function == _SET_DATA
    return bool(kwargs.get("inplace")) or plain or assigned


def written_tensor(function: Any, args: Any, kwargs: Any) -> Tensor | None:
    """The tensor that a call writes into in place, if it does."""
    target = kwargs.get("out")
    if target is None and in_place(function, kwargs):
        target = args[0] if args else kwargs.get("input")
    return target if isinstance(target, Tensor) else None


def argument(args: Any, kwargs: Any, position: int, keyword: str, default: Any = None) -> Any:
    return args[position] if len(args) > position else kwargs.get(keyword, default)


def _pair(value: Any) -> tuple[int, int]:
    """(height, width) of what torch takes for a size: a number, or one number for each
    dimension."""
    if isinstance(value, int):
        return value, value
    values = tuple(value)[-2:]
    return (1, int(values[0])) if len(values) == 1 else (int(values[0]), int(values[1]))


def geometry(name: str, args: Any, kwargs: Any) -> Node:
    """A node with the kernel, stride, dilation and groups of a convolution or a pooling, or a
    norm's epsilon."""
    epsilon = BY_NAME[name].epsilon
    if epsilon is not None:
        given = argument(args, kwargs, epsilon, "eps", EPSILON)
        return Node(
            name, epsilon=float(given or EPSILON)
        )  # with none there is nothing to scale for
    if name in ("conv", "depthwise_conv", "grouped_conv", "transposed_conv"):
        transposed = name == "transposed_conv"
        kernel = _pair(tuple(argument(args, kwargs, 1, "weight").shape[2:]))
        stride = _pair(argument(args, kwargs, 3, "stride", 1))
        dilation = _pair(argument(args, kwargs, 7 if transposed else 5, "dilation", 1))
        return Node(name, "", (), kernel, stride, dilation, argument(args, kwargs, 6, "groups", 1))
    if name in ("max_pool", "avg_pool"):
        kernel = _pair(argument(args, kwargs, 1, "kernel_size", 1))
        return Node(
            name, kernel=kernel, stride=_pair(argument(args, kwargs, 2, "stride") or kernel)
        )
    return Node(name)
