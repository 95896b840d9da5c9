"""The weights and settings of a calibrated model in torchao's PT2E flow (PyTorch 2 export
quantization)."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ghnqat_sdk.bits import FLOAT_BITS
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.export.xnnpack import INTEGER_LAYERS, quantized_outputs
from ghnqat_sdk.quantization.functional import scale_and_zero_point
from ghnqat_sdk.quantization.lookup import fixed_input_range, require_calibrated_layers
from ghnqat_sdk.quantization.norms import CalibratedNorm
from ghnqat_sdk.quantization.quantizers import FakeQuantizer

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


def pt2e_quantizer(qmodel: nn.Module, *, signed: bool = False, xnnpack: bool = False) -> Any:
    """A torchao `Quantizer` that quantizes the float twin of a calibrated model exactly as the
    model does.

    `prepare_pt2e` folds batch norms into weights; the scales of a layer's output channels follow,
    so the integers stay those of the model. Nothing is left to observe: `convert_pt2e` may follow
    at once.

    Args:
        qmodel: From `predict_quantized_params`, calibrated; stays as it is.
        signed: Store weights as signed bytes without zero points, which the integer kernels of
            Inductor on x86 processors need. Exact to 7 bits; 8-bit weights of channels with levels
            beyond ±127 are rounded again to a coarser step.
        xnnpack: Quantize as XNNPACK in ExecuTorch needs it: weights and inputs as signed bytes, and
            outputs of 2d convolutions and linear layers too, unless a quantized layer alone reads
            them. Run images through the prepared model, which observes the ranges of these
            outputs, before `convert_pt2e`.

    Returns:
        A quantizer for `prepare_pt2e(torch.export.export(float_twin, (images,)).module(),
        quantizer)`, where the float twin is `to_float(qmodel).eval()`.

    Raises:
        ArgumentError: the model is not calibrated, has a batch norm after a transposed convolution
            with groups, which torchao cannot fold, or torchao is not installed. Annotating raises
            it for a layer that no image reached while calibrating, for an exported model that is
            not the float twin, and with `xnnpack` for inputs of fewer than 8 bits.
    """
    layers = require_calibrated_layers(qmodel, "pt2e_quantizer")
    _require_foldable(qmodel)
    try:
        from torchao.quantization.pt2e.quantizer import Quantizer

        annotations = _annotator()
    except ImportError as error:
        raise ArgumentError(
            'torchao is not installed. Write pip install "ghnqat-sdk[torchao]".'
        ) from error

    class CalibratedQuantizer(Quantizer):
        def annotate(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
            weights: dict[str, _Numbers] = {}
            inputs = {
                node: _numbers_of(node, model, layers, weights, signed, xnnpack)
                for node in model.graph.nodes
                if node.target in _CONVOLUTIONS | _TRANSPOSED
            }
            outputs = quantized_outputs(model.graph.nodes, inputs) if xnnpack else {}
            for node, annotation in annotations(inputs, outputs).items():
                node.meta["quantization_annotation"] = annotation
            return model

        def validate(self, model: torch.fx.GraphModule) -> None:
            pass

    return CalibratedQuantizer()


def _require_foldable(qmodel: nn.Module) -> None:
    """Raise where torchao would fold a batch norm into a transposed convolution with groups, which
    it cannot."""
    modules = [each for each in qmodel.named_modules() if not isinstance(each[1], FakeQuantizer)]
    for (name, layer), (norm_name, norm) in pairwise(modules):
        if not getattr(layer, "transposed", False) or layer.groups == 1:
            continue
        if isinstance(norm, CalibratedNorm) and _channels_of(norm) == layer.out_channels:
            raise ArgumentError(
                f"torchao cannot fold the batch norm {norm_name!r} into {name!r}, a transposed "
                f"convolution with {layer.groups} groups. Use groups=1 there, or write "
                "export_onnx(qmodel, 'model.onnx', images)."
            )


def _channels_of(norm: Any) -> int | None:
    return getattr(norm, "num_features", None)


@dataclass(frozen=True)
class _Numbers:
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
    def key(self) -> tuple[float, ...]:
        """Equal where numbers are."""
        return (self.lowest, self.highest, *torch.cat(self.affine).tolist())

    @property
    def dtype(self) -> torch.dtype:
        return torch.int8 if self.lowest < 0 else torch.uint8

    @property
    def scheme(self) -> torch.qscheme:
        if self.axis is None:
            return torch.per_tensor_affine
        return torch.per_channel_symmetric if self.lowest < 0 else torch.per_channel_affine


def _numbers_of(
    node: Any, model: Any, layers: Any, weights: dict[str, _Numbers], signed: bool, xnnpack: bool
) -> dict[Any, _Numbers]:
    """How the input and the weight of a node of the exported model are quantized; `weights` has
    those that other nodes read as well."""
    name = _layer_of(node, layers)
    layer = layers[name]
    numbers: dict[Any, _Numbers] = {}
    bits = layer.input_quantizer.bits
    if bits != FLOAT_BITS:
        if xnnpack and bits != 8:  # it clips to the ends of a byte
            raise ArgumentError(
                f"XNNPACK needs inputs of 8 bits, and {name!r} has {bits}. Use bits such as (4, 8)."
            )
        scale, zero_point = scale_and_zero_point(*fixed_input_range(name, layer), bits)
        lowest = -128 if xnnpack else 0
        affine = scale.reshape(1), zero_point.reshape(1) + lowest
        numbers[node.args[0]] = _Numbers(*affine, lowest, lowest + 2**bits - 1)
    bits = layer.weight_quantizer.bits
    if bits != FLOAT_BITS:
        axis, target = int(node.target in _TRANSPOSED), node.args[1].target
        if target not in weights:
            folded = operator.attrgetter(target)(model).detach()
            affine = _folded_numbers(name, layer, folded, axis)
            weights[target] = _Numbers(*affine, 0, 2**bits - 1, axis)
            if xnnpack or (signed and axis == 0):
                weights[target], on_levels = _signed(folded, weights[target])
                _replace(model, target, on_levels)
        if not xnnpack or (node.target in INTEGER_LAYERS and numbers):
            numbers[node.args[1]] = weights[target]
    return numbers


def _signed(weight: Tensor, numbers: _Numbers) -> tuple[_Numbers, Tensor]:
    """The same levels counted from the zero point, and the weight on them: outermost levels are no
    ends of a signed byte, so that nothing else would clip it."""
    axis = numbers.axis or 0
    by_channel = [-1 if each == axis else 1 for each in range(weight.ndim)]
    scale, zero_point = (x.to(weight.device).view(by_channel) for x in numbers.affine)
    levels = (weight / scale).round().clamp(-zero_point, numbers.highest - zero_point)
    top = levels.abs().movedim(axis, 0).flatten(1).amax(1)
    coarser = numbers.scale * (top.cpu() / 127).clamp(min=1.0)
    return _Numbers(coarser, 0 * numbers.zero_point, -127, 127, axis), levels * scale


def _replace(model: Any, name: str, weight: Tensor) -> None:
    """A weight of an exported model; the one before may be the user's own."""
    owner, _, last = name.rpartition(".")
    frozen = nn.Parameter(weight, requires_grad=False)
    setattr(model.get_submodule(owner), last, frozen)


def _annotator() -> Any:
    """A function from how nodes quantize their inputs and outputs to torchao's annotations."""
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, SharedQuantizationSpec

    spec = _spec_maker()

    def annotations(inputs: dict[Any, Any], outputs: dict[Any, Any]) -> dict[Any, Any]:
        readers: dict[Any, Any] = {}

        def of_input(source: Any, reader: Any, numbers: _Numbers | None) -> Any:
            """Readers that quantize a value alike share one quantization of it."""
            if numbers is None:
                return None
            first = readers.setdefault((source, numbers.key), reader)
            return spec(numbers) if first is reader else SharedQuantizationSpec((source, first))

        return {
            node: QuantizationAnnotation(
                input_qspec_map={x: of_input(x, node, n) for x, n in inputs.get(node, {}).items()},
                output_qspec=spec(outputs[node]) if node in outputs else None,
                allow_implicit_sharing=False,  # it does not ask for equal ranges
                _annotated=True,
            )
            for node in dict.fromkeys((*inputs, *outputs))
        }

    return annotations


def _spec_maker() -> Any:
    """A function from numbers to torchao's QuantizationSpec; without, it is of observed ones."""
    from torchao.quantization.pt2e import MinMaxObserver, ObserverBase
    from torchao.quantization.pt2e.quantizer import QuantizationSpec

    # torchao tells the axis only to observers with PerChannel in the name.
    class KnownPerChannelObserver(ObserverBase):
        """Scales and zero points that are known beforehand."""

        def __init__(
            self, scale: Tensor, zero_point: Tensor, dtype: torch.dtype, **settings: Any
        ) -> None:
            super().__init__(dtype=dtype)
            for name, value in settings.items():  # as the spec below says
                setattr(self, name, value)
            self.register_buffer("scale", scale)
            self.register_buffer("zero_point", zero_point.int())

        def forward(self, x: Tensor) -> Tensor:
            return x

        def calculate_qparams(self) -> tuple[Tensor, Tensor]:
            return self.scale, self.zero_point

    def spec(numbers: _Numbers | None) -> Any:
        if numbers is None:
            return QuantizationSpec(torch.int8, MinMaxObserver, -128, 127, torch.per_tensor_affine)
        known = {"scale": numbers.scale, "zero_point": numbers.zero_point}
        return QuantizationSpec(
            dtype=numbers.dtype,
            observer_or_fake_quant_ctr=KnownPerChannelObserver.with_args(**known),
            quant_min=numbers.lowest,
            quant_max=numbers.highest,
            qscheme=numbers.scheme,
            ch_axis=numbers.axis,
        )

    return spec


def _layer_of(node: Any, layers: dict[str, Any]) -> str:
    """The fake-quantized layer that a node of the exported model ran in."""
    paths = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
    for path in reversed(paths):
        if path in layers:
            return path
    raise ArgumentError(
        f"The exported model has a {node.target} in {paths[-1] if paths else 'no module'!r}, which "
        "is no layer of the fake-quantized model. Export to_float(qmodel).eval()."
    )


def _folded_numbers(name: str, layer: Any, folded: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Scale and zero point of each output channel of a weight into which a batch norm may have been
    folded."""
    weight, quantizer = layer.weight.detach().cpu(), layer.weight_quantizer
    rows, folded_rows = (x.movedim(axis, 0).flatten(1).double() for x in (weight, folded.cpu()))
    factor = (rows * folded_rows).sum(1) / rows.square().sum(1).clamp(min=1e-30)
    if rows.shape != folded_rows.shape or not torch.allclose(
        factor[:, None] * rows, folded_rows, rtol=1e-3, atol=1e-6
    ):
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
