"""The vocabulary of node types, one row each; the only table of operations in the package.

A row says what a traced call is compared with (`functions`), which of its arguments may hold
parameters and the role each plays (`slots`), which classes conversion must know (`modules`),
whether and how its layers are fake-quantized, how a norm gathers its statistics, and what it costs.
A function that no row names is transparent (a reshape, an index, a copy): data flows through it
without a node, unless a parameter enters there, which makes it an `other` node. Relatives share a
row, which is named for the most common of them: mish is a `silu`, and x - y a `sum`.

To add a node type, add a row; checkpoints store the names, so its place does not matter. What else
to touch:

- its colour: a family of `draw.FAMILIES`, of which every type has one (a test asks for it);
- its test: a case of `test_every_kind_of_layer_has_its_node_type` in tests/graph/test_trace.py;
- `torch_calls.refine` and `torch_calls.geometry`, where its type or its kernel follow from
  arguments;
- of a quantized type, the row's `macs`, how its weight is cut (`hypernetwork/tiles.py`), and its
  step in training (`training/plan.py`), which refuses types without one;
- `ACTIVATIONS` in training/spaces/blocks.py, or another block there, for networks to train on that
  have it. A hypernetwork's vocabulary is saved with it: one trained before reads the new type as
  "other".
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
"""What a parameter does in its node, which decides what is predicted for it.

weight: multiplies and sums what comes in, as of a convolution, a linear layer or a matmul.
bias: is added to the output of such a weight, in a node of its own.
scale: multiplies each channel, as of a norm or a layer scale; predicted around 1.
shift: is added to each channel, as of a norm; predicted around 0.
table: is looked up, added or concatenated as it is: positions, tokens, embeddings.
slope: of the negative side of a PReLU; predicted around 0.25.
"""

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
        modules: Layer classes that conversion changes or refuses; subclasses count. Leave empty
            for others.
        quantized: Whether its weight and its input are fake-quantized: the slot of the role
            "weight", and the first argument, which torch calls `input`.
        macs: Multiply-accumulates of one call, from the shapes of input, weight and output.
        statistics: Of a norm with running statistics: over the batch, or of each image, averaged.
        opaque: Whether its module's layers are read, not called, so that they stay float:
            `nn.MultiheadAttention` hands the weight of its `out_proj` to a function.
        keeps_shape: Whether the output is shaped as the first argument; such a call is not run
            while shapes alone are traced.
        joins: Whether it has a node only if two data sources, or a parameter, meet: x + y is a
            node, x + 1 is none.
        default_role: Role of a parameter that enters outside the slots, unless its shape tells
            more (`torch_calls.extra_role`): in x * p, with p a parameter, it is a "scale".
        mixes: Whether each channel of the output is made of several that come in, so that channels
            mean something new behind it.
        axis: Of the channels, in what comes in and goes out.
        epsilon: Position of the number, `eps`, that a norm adds to a variance; None for others.
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
    default_role: Role = "table"
    mixes: bool = False
    axis: int = 1
    epsilon: int | None = None

    @property
    def weight(self) -> Slot:
        """The slot of the weight of a quantized type, which has one."""
        return next(slot for slot in self.slots if slot.role == "weight")


def _macs_by_output(_: Shape, weight: Shape, output: Shape) -> int:
    """Each output value is a sum over one entry of the weight's first dimension."""
    return math.prod(output) * math.prod(weight[1:])


def _macs_by_input(input: Shape, weight: Shape, _: Shape) -> int:
    """Each input value meets one entry of the weight's first dimension."""
    return math.prod(input) * math.prod(weight[1:])


_T = torch.Tensor
_WEIGHT_AND_BIAS = (Slot(1, "weight", "weight"), Slot(2, "bias", "bias"))


def _norm(scale: int, shift: int) -> tuple[Slot, Slot]:
    return Slot(scale, "weight", "scale"), Slot(shift, "bias", "shift")


OPS: tuple[Op, ...] = (
    Op("input"),  # by Recorder.add_input, for each tensor that the model is given
    Op("output"),  # by Recorder.finish
    Op(
        "conv",
        (F.conv1d, F.conv2d, F.conv3d),
        _WEIGHT_AND_BIAS,
        (nn.Conv1d, nn.Conv2d, nn.Conv3d),
        quantized=True,
        macs=_macs_by_output,
        mixes=True,
    ),
    # Made from "conv" by torch_calls.refine.
    Op("depthwise_conv", (), _WEIGHT_AND_BIAS, quantized=True, macs=_macs_by_output),
    Op("grouped_conv", (), _WEIGHT_AND_BIAS, quantized=True, macs=_macs_by_output, mixes=True),
    Op(
        "transposed_conv",
        (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
        _WEIGHT_AND_BIAS,
        (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
        quantized=True,
        macs=_macs_by_input,
        mixes=True,
    ),
    Op(
        "linear",
        (F.linear,),
        _WEIGHT_AND_BIAS,
        (nn.Linear,),
        quantized=True,
        macs=_macs_by_output,
        mixes=True,
        axis=-1,
    ),
    # Made from "linear" and "conv" by Recorder._mark_classifiers: the last on each path.
    Op("classifier", (), _WEIGHT_AND_BIAS, quantized=True, macs=_macs_by_output),
    Op("bias"),  # by Recorder._with_bias, behind each weight that has one
    Op(
        "batch_norm",
        (F.batch_norm, torch.batch_norm),
        _norm(3, 4),
        (nn.modules.batchnorm._BatchNorm,),
        statistics="batch",
        keeps_shape=True,
        epsilon=7,
    ),
    Op("group_norm", (F.group_norm, torch.group_norm), _norm(2, 3), keeps_shape=True, epsilon=4),
    Op(
        "layer_norm",
        (F.layer_norm, torch.layer_norm),
        _norm(2, 3),
        keeps_shape=True,
        axis=-1,
        epsilon=4,
    ),
    Op(
        "instance_norm",
        (F.instance_norm, torch.instance_norm),
        _norm(3, 4),
        (nn.modules.instancenorm._InstanceNorm,),
        statistics="instance",
        keeps_shape=True,
        epsilon=7,
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
    Op("global_pool"),  # made from the two around it and means by torch_calls.refine
    Op(
        "adaptive_pool",
        (
            F.adaptive_avg_pool1d,
            F.adaptive_avg_pool2d,
            F.adaptive_avg_pool3d,
            F.adaptive_max_pool1d,
            F.adaptive_max_pool2d,
            F.adaptive_max_pool3d,
        ),
    ),
    Op("interpolate", (F.interpolate, F.pixel_shuffle, F.pixel_unshuffle)),
    Op(
        "sum",
        (
            *(torch.add, _T.add, _T.add_, _T.__add__, _T.__radd__, _T.__iadd__),
            *(torch.sub, _T.sub, _T.sub_, _T.__sub__, _T.__rsub__, _T.__isub__, torch.rsub),
            *(torch.subtract, _T.subtract, _T.subtract_),
        ),
        joins=True,
        default_role="shift",
    ),
    Op(
        "product",
        (
            *(torch.mul, _T.mul, _T.mul_, _T.__mul__, _T.__rmul__, _T.__imul__),
            *(torch.multiply, _T.multiply, _T.multiply_),
            *(torch.div, _T.div, _T.div_, _T.__truediv__, _T.__rtruediv__, _T.__itruediv__),
            *(torch.divide, _T.divide, _T.divide_, torch.true_divide, _T.true_divide),
        ),
        joins=True,
        default_role="scale",
    ),
    Op(
        "concat",
        (torch.cat, torch.concat, torch.concatenate, torch.stack, torch.hstack, torch.vstack),
        joins=True,
    ),
    Op(
        "matmul",
        (
            *(torch.matmul, _T.matmul, _T.__matmul__, torch.bmm, _T.bmm, torch.mm, _T.mm),
            *(torch.einsum, torch.baddbmm, torch.addmm, _T.addmm),
        ),
        default_role="weight",
        mixes=True,
        axis=-1,
    ),
    Op("attention", (F.scaled_dot_product_attention,), mixes=True, axis=-1),
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
        default_role="weight",
        mixes=True,
        axis=-1,
    ),
    Op("embedding", (F.embedding,), (Slot(1, "weight", "table"),), mixes=True, axis=-1),
    Op("other"),  # by torch_calls.type_or_other: any other call that a parameter enters
)

VOCABULARY: tuple[str, ...] = tuple(op.name for op in OPS)
_WITH_MODULES = tuple(op for op in OPS if op.modules)
BY_NAME: dict[str, Op] = {op.name: op for op in OPS}
BY_FUNCTION: dict[Callable[..., Any], Op] = {
    function: op for op in OPS for function in op.functions
}


def op_of(module: nn.Module) -> Op | None:
    """The row among whose `modules` is the class of a module, or one that it derives from; None for
    one that conversion need not know."""
    return next((op for op in _WITH_MODULES if isinstance(module, op.modules)), None)
