"""The vocabulary of node types, one row each; the only table of operations in the package.

A row says what a traced call is compared with (`functions`), which of its arguments may hold
parameters and the role each plays (`slots`), which modules run it (`modules`), whether and how its
layers are fake-quantized, how a norm gathers its statistics, and what it costs. A function that no
row names is transparent (a reshape, an index, a copy): data flows through it without a node, unless
a parameter enters there, which makes it an `other` node. To add a node type, add a row: checkpoints
store the names in order, so nothing shifts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

Role = Literal["weight", "bias", "scale", "shift", "table", "slope"]
Statistics = Literal["batch", "instance"]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Slot:
    """An argument that may hold a parameter: its position, its keyword, and the parameter's
    role."""

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
        modules: Module classes that run it on their own parameters; subclasses count.
        quantized: Whether its weight and its input are fake-quantized.
        macs: Multiply-accumulates of one call, from the shapes of input, weight and output.
        statistics: Of a norm with running statistics: over the batch, or of each image, averaged.
        opaque: Whether its module's layers are read, not called, so that they stay float.
        keeps_shape: Whether the output is shaped as the first argument.
        joins: Whether it means nothing with a single source of data and no parameter.
        entering: Role of a parameter that enters outside the slots.
    """

    name: str
    functions: tuple[Callable[..., Any], ...] = ()
    slots: tuple[Slot, ...] = ()
    modules: tuple[type[nn.Module], ...] = ()
    quantized: bool = False
    macs: Callable[[Shape, Shape, Shape], int] | None = None
    statistics: Statistics | None = None
    opaque: bool = False
    keeps_shape: bool = False
    joins: bool = False
    entering: Role = "table"


def _macs_by_output(_: Shape, weight: Shape, output: Shape) -> int:
    """Each output value is a sum over one entry of the weight's first dimension."""
    return math.prod(output) * math.prod(weight[1:])


def _macs_by_input(input: Shape, weight: Shape, _: Shape) -> int:
    """Each input value meets one entry of the weight's first dimension."""
    return math.prod(input) * math.prod(weight[1:])


_T = torch.Tensor
_CONV_WEIGHT = (Slot(1, "weight", "weight"), Slot(2, "bias", "bias"))


def _norm(scale: int, shift: int) -> tuple[Slot, Slot]:
    return Slot(scale, "weight", "scale"), Slot(shift, "bias", "shift")


OPS: tuple[Op, ...] = (
    Op("input"),
    Op("output"),
    Op(
        "conv",
        (F.conv1d, F.conv2d, F.conv3d),
        _CONV_WEIGHT,
        (nn.Conv1d, nn.Conv2d, nn.Conv3d),
        quantized=True,
        macs=_macs_by_output,
    ),
    Op("depthwise_conv", (), _CONV_WEIGHT, quantized=True, macs=_macs_by_output),
    Op("grouped_conv", (), _CONV_WEIGHT, quantized=True, macs=_macs_by_output),
    Op(
        "transposed_conv",
        (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
        _CONV_WEIGHT,
        (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
        quantized=True,
        macs=_macs_by_input,
    ),
    Op("linear", (F.linear,), _CONV_WEIGHT, (nn.Linear,), quantized=True, macs=_macs_by_output),
    Op("classifier", (), _CONV_WEIGHT, quantized=True, macs=_macs_by_output),
    Op("bias"),
    Op(
        "batch_norm",
        (F.batch_norm, torch.batch_norm),
        _norm(3, 4),
        (nn.modules.batchnorm._BatchNorm,),
        statistics="batch",
        keeps_shape=True,
    ),
    Op("group_norm", (F.group_norm, torch.group_norm), _norm(2, 3), keeps_shape=True),
    Op("layer_norm", (F.layer_norm, torch.layer_norm), _norm(2, 3), keeps_shape=True),
    Op(
        "instance_norm",
        (F.instance_norm, torch.instance_norm),
        _norm(3, 4),
        (nn.modules.instancenorm._InstanceNorm,),
        statistics="instance",
        keeps_shape=True,
    ),
    Op("relu", (F.relu, F.relu_, torch.relu, torch.relu_, _T.relu, _T.relu_), keeps_shape=True),
    Op(
        "relu6",
        (F.relu6, F.hardtanh, F.hardtanh_, torch.clamp, _T.clamp, _T.clamp_),
        keeps_shape=True,
    ),
    Op("hardswish", (F.hardswish,), keeps_shape=True),
    Op("silu", (F.silu, F.mish), keeps_shape=True),
    Op("gelu", (F.gelu,), keeps_shape=True),
    Op(
        "leaky_relu",
        (F.leaky_relu, F.leaky_relu_, F.elu, F.elu_, F.selu, F.celu, F.softplus),
        keeps_shape=True,
    ),
    Op("prelu", (F.prelu, torch.prelu), (Slot(1, "weight", "slope"),)),
    Op(
        "sigmoid",
        (F.sigmoid, F.hardsigmoid, torch.sigmoid, _T.sigmoid, _T.sigmoid_),
        keeps_shape=True,
    ),
    Op("tanh", (F.tanh, torch.tanh, _T.tanh, _T.tanh_), keeps_shape=True),
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
        joins=True,
        entering="shift",
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
        joins=True,
        entering="scale",
    ),
    Op(
        "concat",
        (torch.cat, torch.concat, torch.concatenate, torch.stack, torch.hstack, torch.vstack),
        joins=True,
    ),
    Op(
        "matmul",
        (torch.matmul, _T.matmul, _T.__matmul__, torch.bmm, _T.bmm, torch.einsum, torch.baddbmm),
        entering="weight",
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
        (nn.MultiheadAttention,),
        opaque=True,
        entering="weight",
    ),
    Op("embedding", (F.embedding,), (Slot(1, "weight", "table"),)),
    Op("other"),
)

VOCABULARY: tuple[str, ...] = tuple(op.name for op in OPS)
_WITH_MODULES = tuple(op for op in OPS if op.modules)
BY_NAME: dict[str, Op] = {op.name: op for op in OPS}
BY_FUNCTION: dict[Callable[..., Any], Op] = {
    function: op for op in OPS for function in op.functions
}


def op_of(module: nn.Module) -> Op | None:
    """The row of what a module runs on its own parameters, by its class or one that it derives
    from."""
    return next((op for op in _WITH_MODULES if isinstance(module, op.modules)), None)


def quantizable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that run a quantized op and are called for it, by name.

    Those whose `forward` was replaced on the object are left out: no class decides what they run.
    """
    found: dict[str, nn.Module] = {}
    hidden: set[int] = set()
    for name, module in model.named_modules():
        op = op_of(module)
        if op is not None and op.opaque:
            hidden.update(id(inner) for inner in module.modules())
        if op is not None and op.quantized and "forward" not in vars(module):
            found[name] = module
    return {name: module for name, module in found.items() if id(module) not in hidden}
