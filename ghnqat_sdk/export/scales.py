"""Scales and zero points of the inputs and weights of layers in a model of torch.export."""

from __future__ import annotations

import operator
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ghnqat_sdk.bits import FLOAT_BITS
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.export.foldable import computed_weight
from ghnqat_sdk.export.xnnpack import INTEGER_LAYERS
from ghnqat_sdk.quantization.functional import scale_and_zero_point
from ghnqat_sdk.quantization.lookup import fake_quantized_layers, fixed_input_range

_aten = torch.ops.aten
_CONVOLUTIONS = {
    _aten.conv1d.default, _aten.conv1d.padding, _aten.conv2d.default, _aten.conv2d.padding,
    _aten.conv3d.default, _aten.conv3d.padding, _aten.linear.default,
}  # fmt: skip
_TRANSPOSED = {
    _aten.conv_transpose1d.default,
    _aten.conv_transpose2d.input,
    _aten.conv_transpose3d.input,
}


@dataclass(frozen=True)
class Numbers:
    """Scale and zero point, the levels there are, and the dimension of the channels where each has
    its own."""

    scale: Tensor
    zero_point: Tensor
    lowest: int
    highest: int
    axis: int | None = None

    @property
    def affine(self) -> tuple[Tensor, Tensor]:
        return self.scale, self.zero_point

    @property
    def key(self) -> tuple[float | None, ...]:
        """Equal where numbers are."""
        return (self.axis, self.lowest, self.highest, *torch.cat(self.affine).tolist())

    @property
    def dtype(self) -> torch.dtype:
        return torch.int8 if self.lowest < 0 else torch.uint8

    @property
    def scheme(self) -> torch.qscheme:
        if self.axis is None:
            return torch.per_tensor_affine
        return torch.per_channel_symmetric if self.lowest < 0 else torch.per_channel_affine


def numbers_of_layers(
    model: Any, qmodel: nn.Module, *, signed: bool, xnnpack: bool
) -> dict[Any, dict[Any, Numbers]]:
    """How each convolution and linear layer of the exported `model` quantizes its input and its
    weight; nothing for those that are float in `qmodel`. Weights that are stored as signed bytes
    are put on their levels in `model`.

    Raises:
        ArgumentError: `model` is not the float twin of `qmodel`, or has a layer that cannot be
            quantized so.
    """
    layers = fake_quantized_layers(qmodel)
    modules = {name for name, _ in qmodel.named_modules(remove_duplicate=False)}
    weights = _Weights(model)
    numbers: dict[Any, dict[Any, Numbers]] = {}
    for node in model.graph.nodes:
        if node.target not in _CONVOLUTIONS | _TRANSPOSED:
            continue
        numbers[node] = {}
        name = _layer_of(node, layers, modules)
        if name is None:
            continue
        layer = layers[name]
        if layer.input_quantizer.bits != FLOAT_BITS:
            numbers[node][node.args[0]] = _of_input(name, layer, xnnpack)
        if layer.weight_quantizer.bits != FLOAT_BITS:
            as_bytes = xnnpack or (signed and node.target not in _TRANSPOSED)
            of_weight = weights.numbers(node, name, layer, as_bytes)
            if not xnnpack or (node.target in INTEGER_LAYERS and numbers[node]):
                numbers[node][node.args[1]] = of_weight
    return numbers


def _layer_of(node: Any, layers: dict[str, Any], modules: set[str]) -> str | None:
    """The fake-quantized layer that a node of the exported model ran in, if it ran in one."""
    paths = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
    for path in reversed(paths):
        if path in layers:
            return path
    if paths and paths[-1] in modules:
        return None
    raise ArgumentError(
        f"The exported model has a {node.target} in {paths[-1] if paths else 'no module'!r}, which "
        "the fake-quantized model has not. Export to_float(qmodel).eval()."
    )


def _of_input(name: str, layer: Any, xnnpack: bool) -> Numbers:
    bits = layer.input_quantizer.bits
    if xnnpack and bits != 8:  # it clips to the ends of a byte
        raise ArgumentError(
            f"XNNPACK needs inputs of 8 bits, and {name!r} has {bits}. Use bits such as (4, 8)."
        )
    scale, zero_point = scale_and_zero_point(*fixed_input_range(name, layer), bits)
    lowest = -128 if xnnpack else 0
    affine = scale.reshape(1), zero_point.reshape(1) + lowest
    return Numbers(*affine, lowest, lowest + 2**bits - 1)


class _Weights:
    """The weights of an exported model, where several layers may read one."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._readers: Counter[str] = Counter()
        for node in model.graph.nodes:
            if node.op == "get_attr":
                self._readers[node.target] += len(node.users)
        self._own: dict[Any, Any] = {}

    def numbers(self, node: Any, name: str, layer: Any, as_bytes: bool) -> Numbers:
        """How a layer quantizes its weight, which is put on these levels where bytes are to be
        signed."""
        _require_stored(name, layer, node)
        axis = int(node.target in _TRANSPOSED)
        weight = operator.attrgetter(node.args[1].target)(self._model).detach()
        affine = _folded_numbers(name, layer, weight, axis)
        if self._readers[node.args[1].target] > 1:
            _require_unfolded(name, layer, weight)
        numbers = Numbers(*affine, 0, 2**layer.weight_quantizer.bits - 1, axis)
        if not as_bytes:
            return numbers
        signed, on_levels = _signed(weight, numbers)
        self._put(node, (node.args[1].target, numbers.key), on_levels)
        return signed

    def _put(self, node: Any, key: Any, weight: Tensor) -> None:
        """Have a node read another weight; those that read the one before with other numbers go on
        with it."""
        target, source = key[0], node.args[1]
        if self._readers[target] == 1:
            self._write(target, weight)
            return
        if key not in self._own:
            name = f"{target}_{len(self._own)}_on_levels"
            self._write(name, weight)
            with self._model.graph.inserting_before(node):
                self._own[key] = self._model.graph.get_attr(name)
            self._own[key].meta = dict(source.meta)
        node.update_arg(1, self._own[key])

    def _write(self, target: str, weight: Tensor) -> None:
        """A weight of the exported model; the one before may be the user's own."""
        owner, _, last = target.rpartition(".")
        frozen = nn.Parameter(weight, requires_grad=False)
        setattr(self._model.get_submodule(owner), last, frozen)


def _require_stored(name: str, layer: Any, node: Any) -> None:
    if node.args[1].op != "get_attr":
        raise computed_weight(name, layer)


def _require_unfolded(name: str, layer: Any, weight: Tensor) -> None:
    """Raise for a weight that is read several times and has a batch norm folded into it: torchao
    folds the norm of one reader for all."""
    if not torch.equal(weight.cpu(), layer.weight.detach().cpu()):
        raise ArgumentError(
            f"torchao cannot fold batch norms into the weight of {name!r}, which is read several "
            "times. Give each call a layer of its own, or write export_onnx(qmodel, 'model.onnx', "
            "images)."
        )


def _signed(weight: Tensor, numbers: Numbers) -> tuple[Numbers, Tensor]:
    """The same levels counted from the zero point, and the weight on them: outermost levels are no
    ends of a signed byte, so that nothing else would clip it."""
    axis = numbers.axis or 0
    by_channel = [-1 if each == axis else 1 for each in range(weight.ndim)]
    scale, zero_point = (x.to(weight.device).view(by_channel) for x in numbers.affine)
    levels = (weight / scale).round().clamp(-zero_point, numbers.highest - zero_point)
    top = levels.abs().movedim(axis, 0).flatten(1).amax(1)
    coarser = numbers.scale * (top.cpu() / 127).clamp(min=1.0)
    return Numbers(coarser, 0 * numbers.zero_point, -127, 127, axis), levels * scale


def _folded_numbers(name: str, layer: Any, folded: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Scale and zero point of each output channel of a weight into which a batch norm may have been
    folded."""
    weight, quantizer = layer.weight.detach().cpu(), layer.weight_quantizer
    rows, folded_rows = (x.movedim(axis, 0).flatten(1).double() for x in (weight, folded.cpu()))
    factor = _common_factor(rows, folded_rows)
    if factor is None:
        raise ArgumentError(
            f"The exported weight of {name!r} is not that of the fake-quantized model. Export "
            f"to_float(qmodel).eval()."
        )
    low, high = quantizer.range_of(weight)
    numbers = scale_and_zero_point(low, high, quantizer.bits)
    scale, zero_point = (x.cpu().flatten() for x in numbers)  # (1,) or (C,)
    scales = (scale * factor.abs()).float()
    # A scale is positive: a negative factor mirrors the levels instead.
    mirrored = torch.where(factor < 0, 2**quantizer.bits - 1 - zero_point, zero_point)
    return torch.where(scales < torch.finfo(torch.float32).tiny, 1.0, scales), mirrored


def _common_factor(rows: Tensor, folded: Tensor) -> Tensor | None:
    """What each of `rows` (C, n) is multiplied by in `folded`, (C,); None where nothing is."""
    if rows.shape != folded.shape:
        return None
    factor = (rows * folded).sum(1) / rows.square().sum(1).clamp(min=1e-30)
    alike = torch.allclose(factor[:, None] * rows, folded, rtol=1e-3, atol=1e-6)
    return factor if alike else None
