"""The weights and settings of a calibrated model in torchao's PT2E flow (PyTorch 2 export
quantization)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ghnqat_sdk.choices import require_switches
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.export.foldable import outputs_of_exported, require_foldable, require_same_outputs
from ghnqat_sdk.export.layers import require_exportable_layers
from ghnqat_sdk.export.scales import Numbers, numbers_of_layers
from ghnqat_sdk.export.xnnpack import quantized_outputs


def pt2e_quantizer(qmodel: nn.Module, *, signed: bool = False, xnnpack: bool = False) -> Any:
    """A torchao `Quantizer` that quantizes the float twin of a calibrated model exactly as the
    model does.

    `prepare_pt2e` folds batch norms into weights; the scales of a layer's output channels follow,
    so the integers stay those of the model. Nothing is left to observe: `convert_pt2e` may follow
    at once.

    Args:
        qmodel: From `predict_quantized_params` or `from_float`, calibrated; stays as it is.
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
        ArgumentError: the model is not calibrated, rounds other than to the nearest level, is not
            in float32, computes a weight whenever its layer is called, has a batch norm after a
            transposed convolution with groups, which torchao cannot fold, or torchao is not
            installed. Annotating raises it for a layer that no image reached while calibrating, for
            batch norms that torchao folds although their layer's output or weight is read by
            others, for an exported model that is not the float twin, and with `xnnpack` for inputs
            of fewer than 8 bits.
    """
    require_switches(signed=signed, xnnpack=xnnpack)
    require_exportable_layers(qmodel, "pt2e_quantizer")
    require_foldable(qmodel)
    try:
        from torchao.quantization.pt2e.quantizer import Quantizer

        annotations = _annotator()
    except ImportError as error:
        raise ArgumentError(
            'torchao is not installed. Write pip install "ghnqat-sdk[torchao]".'
        ) from error

    class CalibratedQuantizer(Quantizer):
        def annotate(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
            arguments, outputs_before = outputs_of_exported(model)
            inputs: dict[Any, Any] = numbers_of_layers(
                model, qmodel, signed=signed, xnnpack=xnnpack
            )
            require_same_outputs(qmodel, arguments, outputs_before)
            outputs = quantized_outputs(model.graph.nodes, inputs) if xnnpack else {}
            for node, annotation in annotations(inputs, outputs).items():
                node.meta["quantization_annotation"] = annotation
            return model

        def validate(self, model: torch.fx.GraphModule) -> None:
            pass

    return CalibratedQuantizer()


def _annotator() -> Any:
    """A function from how nodes quantize their inputs and outputs to torchao's annotations."""
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, SharedQuantizationSpec

    spec = _spec_maker()

    def annotations(inputs: dict[Any, Any], outputs: dict[Any, Any]) -> dict[Any, Any]:
        readers: dict[Any, Any] = {}

        def of_input(source: Any, reader: Any, numbers: Numbers | None) -> Any:
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

    def spec(numbers: Numbers | None) -> Any:
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
