"""The weights and settings of a calibrated model in torchao's PT2E flow (PyTorch 2 export
quantization)."""

from __future__ import annotations

import operator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ghnqat_sdk.bits import FLOAT_BITS
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.quantization.functional import scale_and_zero_point
from ghnqat_sdk.quantization.layers import fixed_input_range, require_calibrated_layers
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


def pt2e_quantizer(qmodel: nn.Module) -> Any:
    """A torchao `Quantizer` that quantizes the float twin of a calibrated model exactly as the
    model does.

    `prepare_pt2e` folds batch norms into weights; the scales of a layer's output channels follow,
    so the integers stay those of the model. Nothing is left to observe: `convert_pt2e` may follow
    at once.

    Args:
        qmodel: From `predict_quantized_params`, calibrated; stays as it is.

    Returns:
        A quantizer for `prepare_pt2e(torch.export.export(float_twin, (images,)).module(),
        quantizer)`, where the float twin is `to_float(qmodel).eval()`.

    Raises:
        ArgumentError: the model is not calibrated, has a batch norm after a transposed convolution
            with groups, which torchao cannot fold, or torchao is not installed. Annotating raises
            it for a layer that no image reached while calibrating, and for an exported model that
            is not the float twin.
    """
    layers = require_calibrated_layers(qmodel, "pt2e_quantizer")
    _require_foldable(qmodel)
    try:
        from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, Quantizer

        spec = _spec_maker()
    except ImportError as error:
        raise ArgumentError(
            'torchao is not installed. Write pip install "ghnqat-sdk[torchao]".'
        ) from error

    class CalibratedQuantizer(Quantizer):
        def annotate(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
            for node in model.graph.nodes:
                if node.target in _CONVOLUTIONS | _TRANSPOSED:
                    specs = {x: spec(*n) for x, n in _numbers_of(node, model, layers).items()}
                    annotation = QuantizationAnnotation(input_qspec_map=specs, _annotated=True)
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


_Numbers = tuple[Tensor, Tensor, int, "int | None"]
"""Scale, zero point, bits, and the dimension of the channels where each has its own."""


def _numbers_of(node: Any, model: Any, layers: dict[str, Any]) -> dict[Any, _Numbers]:
    """How the input and the weight of a node of the exported model are quantized."""
    name = _layer_of(node, layers)
    layer = layers[name]
    numbers: dict[Any, _Numbers] = {}
    bits = layer.input_quantizer.bits
    if bits != FLOAT_BITS:
        scale, zero_point = scale_and_zero_point(*fixed_input_range(name, layer), bits)
        numbers[node.args[0]] = (scale.reshape(1), zero_point.reshape(1), bits, None)
    bits = layer.weight_quantizer.bits
    if bits != FLOAT_BITS:
        axis = int(node.target in _TRANSPOSED)
        folded = operator.attrgetter(node.args[1].target)(model)
        numbers[node.args[1]] = (*_folded_numbers(name, layer, folded.detach(), axis), bits, axis)
    return numbers


def _spec_maker() -> Any:
    """A function from numbers to torchao's QuantizationSpec."""
    from torchao.quantization.pt2e import ObserverBase
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

    def spec(scale: Tensor, zero_point: Tensor, bits: int, axis: int | None) -> Any:
        observer = KnownPerChannelObserver.with_args(scale=scale, zero_point=zero_point)
        return QuantizationSpec(
            dtype=torch.uint8,
            observer_or_fake_quant_ctr=observer,
            quant_min=0,
            quant_max=2**bits - 1,
            qscheme=torch.per_tensor_affine if axis is None else torch.per_channel_affine,
            ch_axis=axis,
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
    scale, zero_point = scale_and_zero_point(low, high, quantizer.bits)
    scales = (scale * factor.abs()).float()
    # A scale is positive: a negative factor mirrors the levels instead.
    mirrored = torch.where(factor < 0, 2**quantizer.bits - 1 - zero_point, zero_point)
    return torch.where(scales < torch.finfo(torch.float32).tiny, 1.0, scales), mirrored
