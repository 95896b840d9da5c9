"""Predicted weights for quantized CNNs: any `nn.Module` in, a fake-quantized copy with predicted parameters out.

>>> import ghnqat_sdk as gq
>>> from torch import nn
>>> model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
>>> qmodel = gq.predict_quantized_params(model, bits=(4, 4))
>>> len(gq.prediction_report(qmodel).predicted)
4
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ghnqat_sdk.version import __version__

if TYPE_CHECKING:
    from ghnqat_sdk.api import predict_quantized_params, prediction_report
    from ghnqat_sdk.errors import (
        ArgumentError,
        CheckpointError,
        DataError,
        ExportError,
        GhnqatError,
        TraceError,
        UncalibratedWarning,
    )
    from ghnqat_sdk.graph.draw import draw_graph
    from ghnqat_sdk.graph.graph import ComputationGraph, Node, Parameter
    from ghnqat_sdk.graph.trace import trace
    from ghnqat_sdk.hypernetwork.ghn import GraphHypernetwork, HypernetworkConfig
    from ghnqat_sdk.hypernetwork.pretrained import load_pretrained, push_to_hub, save_pretrained
    from ghnqat_sdk.parameters import PredictionReport
    from ghnqat_sdk.quantization.calibrate import CalibrationReport, calibrate
    from ghnqat_sdk.quantization.convert import from_float, to_float
    from ghnqat_sdk.quantization.export import OnnxReport, export_onnx
    from ghnqat_sdk.quantization.pt2e import pt2e_quantizer
    from ghnqat_sdk.quantization.qat import dampening, fix_steps, freeze_batch_norm, learn_steps
    from ghnqat_sdk.quantization.report import QuantizationReport, quantization_report
    from ghnqat_sdk.quantization.store import load_quantized, save_quantized
    from ghnqat_sdk.suggest import BitsSuggestion, suggest_bits

__all__ = [
    "ArgumentError",
    "BitsSuggestion",
    "CalibrationReport",
    "CheckpointError",
    "ComputationGraph",
    "DataError",
    "ExportError",
    "GhnqatError",
    "GraphHypernetwork",
    "HypernetworkConfig",
    "Node",
    "OnnxReport",
    "Parameter",
    "PredictionReport",
    "QuantizationReport",
    "TraceError",
    "UncalibratedWarning",
    "__version__",
    "calibrate",
    "dampening",
    "draw_graph",
    "export_onnx",
    "fix_steps",
    "freeze_batch_norm",
    "from_float",
    "learn_steps",
    "load_pretrained",
    "load_quantized",
    "predict_quantized_params",
    "prediction_report",
    "pt2e_quantizer",
    "push_to_hub",
    "quantization_report",
    "save_pretrained",
    "save_quantized",
    "suggest_bits",
    "to_float",
    "trace",
]

_HOMES = {
    "ArgumentError": "errors",
    "BitsSuggestion": "suggest",
    "CalibrationReport": "quantization.calibrate",
    "CheckpointError": "errors",
    "ComputationGraph": "graph.graph",
    "DataError": "errors",
    "ExportError": "errors",
    "GhnqatError": "errors",
    "GraphHypernetwork": "hypernetwork.ghn",
    "HypernetworkConfig": "hypernetwork.ghn",
    "Node": "graph.graph",
    "OnnxReport": "quantization.export",
    "Parameter": "graph.graph",
    "PredictionReport": "parameters",
    "QuantizationReport": "quantization.report",
    "TraceError": "errors",
    "UncalibratedWarning": "errors",
    "calibrate": "quantization.calibrate",
    "dampening": "quantization.qat",
    "draw_graph": "graph.draw",
    "export_onnx": "quantization.export",
    "fix_steps": "quantization.qat",
    "freeze_batch_norm": "quantization.qat",
    "from_float": "quantization.convert",
    "learn_steps": "quantization.qat",
    "load_pretrained": "hypernetwork.pretrained",
    "load_quantized": "quantization.store",
    "predict_quantized_params": "api",
    "prediction_report": "api",
    "pt2e_quantizer": "quantization.pt2e",
    "push_to_hub": "hypernetwork.pretrained",
    "quantization_report": "quantization.report",
    "save_pretrained": "hypernetwork.pretrained",
    "save_quantized": "quantization.store",
    "suggest_bits": "suggest",
    "to_float": "quantization.convert",
    "trace": "graph.trace",
}


def __getattr__(name: str) -> Any:
    """Public names are imported when they are first used, so that importing the package costs next to nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"ghnqat_sdk.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
