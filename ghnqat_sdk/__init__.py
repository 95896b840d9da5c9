"""Predicted weights for quantized CNNs: any `nn.Module` in, a fake-quantized copy with predicted parameters out.

>>> import ghnqat_sdk as gq
>>> from torch import nn
>>> model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
>>> qmodel = gq.predict_quantized_params(model, bits=(4, 4))
>>> len(gq.prediction_report(qmodel).predicted)
4
"""

from ghnqat_sdk.api import predict_quantized_params, prediction_report
from ghnqat_sdk.errors import (
    ArgumentError,
    CheckpointError,
    DataError,
    GhnqatError,
    TraceError,
    UncalibratedWarning,
)
from ghnqat_sdk.graph.graph import ComputationGraph, Node, Parameter
from ghnqat_sdk.graph.trace import trace
from ghnqat_sdk.hypernetwork.ghn import GraphHypernetwork, HypernetworkConfig
from ghnqat_sdk.hypernetwork.pretrained import load_pretrained, push_to_hub, save_pretrained
from ghnqat_sdk.parameters import PredictionReport
from ghnqat_sdk.quantization.calibrate import CalibrationReport, calibrate
from ghnqat_sdk.quantization.convert import to_float
from ghnqat_sdk.version import __version__

__all__ = [
    "ArgumentError",
    "CalibrationReport",
    "CheckpointError",
    "ComputationGraph",
    "DataError",
    "GhnqatError",
    "GraphHypernetwork",
    "HypernetworkConfig",
    "Node",
    "Parameter",
    "PredictionReport",
    "TraceError",
    "UncalibratedWarning",
    "__version__",
    "calibrate",
    "load_pretrained",
    "predict_quantized_params",
    "prediction_report",
    "push_to_hub",
    "save_pretrained",
    "to_float",
    "trace",
]
