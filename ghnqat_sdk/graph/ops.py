"""The vocabulary of node types, one row each: what it matches, its parameter slots, whether it is quantized.

A row's `functions` are the torch callables that a traced call is compared with; `slots` name the arguments that may
hold parameters and the role each plays. A function that no row names is transparent (a reshape, an index, a copy):
data flows through it without a node, unless a parameter enters there, which makes it an `other` node.
To add a node type, add a row: checkpoints store the names in order, so nothing shifts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F

Role = Literal["weight", "bias", "scale", "shift", "table", "slope"]


@dataclass(frozen=True)
class Slot:
    """An argument that may hold a parameter: its position, its keyword, and the parameter's role."""

    position: int
    keyword: str
    role: Role


@dataclass(frozen=True)
class Op:
    """One node type.

    Attributes:
        name: What checkpoints and graphs call it.
        functions: torch callables that become this node when a model calls them.
        slots: Arguments that may hold parameters.
        quantized: Whether its weight and its input are fake-quantized.
    """

    name: str
    functions: tuple[Callable[..., Any], ...] = ()
    slots: tuple[Slot, ...] = ()
    quantized: bool = False


_T = torch.Tensor
_CONV_WEIGHT = (Slot(1, "weight", "weight"), Slot(2, "bias", "bias"))


def _norm(scale: int, shift: int) -> tuple[Slot, Slot]:
    return Slot(scale, "weight", "scale"), Slot(shift, "bias", "shift")


OPS: tuple[Op, ...] = (
    Op("input"),
    Op("output"),
    Op("conv", (F.conv1d, F.conv2d, F.conv3d), _CONV_WEIGHT, quantized=True),
    Op("depthwise_conv", (), _CONV_WEIGHT, quantized=True),
    Op("grouped_conv", (), _CONV_WEIGHT, quantized=True),
    Op(
        "transposed_conv",
        (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
        _CONV_WEIGHT,
        quantized=True,
    ),
    Op("linear", (F.linear,), _CONV_WEIGHT, quantized=True),
    Op("classifier", (), _CONV_WEIGHT, quantized=True),
    Op("bias"),
    Op("batch_norm", (F.batch_norm, torch.batch_norm), _norm(3, 4)),
    Op("group_norm", (F.group_norm, torch.group_norm), _norm(2, 3)),
    Op("layer_norm", (F.layer_norm, torch.layer_norm), _norm(2, 3)),
    Op("instance_norm", (F.instance_norm, torch.instance_norm), _norm(3, 4)),
    Op("relu", (F.relu, F.relu_, torch.relu, torch.relu_, _T.relu, _T.relu_)),
    Op("relu6", (F.relu6, F.hardtanh, F.hardtanh_, torch.clamp, _T.clamp, _T.clamp_)),
    Op("hardswish", (F.hardswish,)),
    Op("silu", (F.silu, F.mish)),
    Op("gelu", (F.gelu,)),
    Op("leaky_relu", (F.leaky_relu, F.leaky_relu_, F.elu, F.elu_, F.selu, F.celu, F.softplus)),
    Op("prelu", (F.prelu, torch.prelu), (Slot(1, "weight", "slope"),)),
    Op("sigmoid", (F.sigmoid, F.hardsigmoid, torch.sigmoid, _T.sigmoid, _T.sigmoid_)),
    Op("tanh", (F.tanh, torch.tanh, _T.tanh, _T.tanh_)),
    Op(
        "softmax",
        (F.softmax, F.log_softmax, torch.softmax, _T.softmax, torch.log_softmax, _T.log_softmax),
    ),
    Op("max_pool", (F.max_pool1d, F.max_pool2d, F.max_pool3d)),
    Op("avg_pool", (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)),
    Op("global_pool", ()),
    Op(
        "adaptive_pool",
        (
            F.adaptive_avg_pool1d,
            F.adaptive_avg_pool2d,
            F.adaptive_max_pool2d,
            F.adaptive_avg_pool3d,
        ),
    ),
    Op("interpolate", (F.interpolate, F.pixel_shuffle, F.pixel_unshuffle)),
    Op(
        "sum",
        (
            torch.add,
            _T.add,
            _T.add_,
            _T.__add__,
            _T.__radd__,
            _T.__iadd__,
            torch.sub,
            _T.sub,
            _T.__sub__,
        ),
    ),
    Op(
        "product",
        (
            torch.mul,
            _T.mul,
            _T.mul_,
            _T.__mul__,
            _T.__rmul__,
            _T.__imul__,
            torch.div,
            _T.div,
            _T.__truediv__,
        ),
    ),
    Op(
        "concat",
        (torch.cat, torch.concat, torch.concatenate, torch.stack, torch.hstack, torch.vstack),
    ),
    Op(
        "matmul",
        (torch.matmul, _T.matmul, _T.__matmul__, torch.bmm, _T.bmm, torch.einsum, torch.baddbmm),
    ),
    Op("attention", (F.scaled_dot_product_attention,)),
    Op(
        "multi_head_attention",
        (F.multi_head_attention_forward,),
        (
            Slot(5, "in_proj_weight", "weight"),
            Slot(6, "in_proj_bias", "bias"),
            Slot(7, "bias_k", "table"),
            Slot(8, "bias_v", "table"),
            Slot(11, "out_proj_weight", "weight"),
            Slot(12, "out_proj_bias", "bias"),
        ),
    ),
    Op("embedding", (F.embedding,), (Slot(1, "weight", "table"),)),
    Op("other"),
)

VOCABULARY: tuple[str, ...] = tuple(op.name for op in OPS)
BY_NAME: dict[str, Op] = {op.name: op for op in OPS}
BY_FUNCTION: dict[Callable[..., Any], Op] = {
    function: op for op in OPS for function in op.functions
}
