"""Predicted weights for quantized CNNs: any `nn.Module` in, a fake-quantized copy out.

>>> import ghnqat_sdk as gq
>>> from torch import nn
>>> head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
>>> model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), head)
>>> qmodel = gq.predict_quantized_params(model, bits=(4, 4))
>>> len(gq.prediction_report(qmodel).predicted)
4

`ghnqat_sdk.qat` holds what a training loop calls, `ghnqat_sdk.export` what writes for other
runtimes.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ghnqat_sdk.version import __version__

if TYPE_CHECKING:
    from ghnqat_sdk import export, qat
    from ghnqat_sdk.errors import (
        ArgumentError,
        CheckpointError,
        DataError,
        ExportError,
        GhnqatError,
        GhnqatWarning,
        RandomHeadWarning,
        ReplacedWeightsWarning,
        TraceError,
        UncalibratedWarning,
        UnfamiliarDataWarning,
        UntracedWarning,
    )
    from ghnqat_sdk.graph.draw import draw_graph
    from ghnqat_sdk.graph.graph import ComputationGraph
    from ghnqat_sdk.graph.trace import trace
    from ghnqat_sdk.heads import fit_head
    from ghnqat_sdk.hypernetwork.ghn import GraphHypernetwork, HypernetworkConfig
    from ghnqat_sdk.hypernetwork.pretrained import load_pretrained, push_to_hub, save_pretrained
    from ghnqat_sdk.predict import predict_quantized_params
    from ghnqat_sdk.prediction import prediction_report
    from ghnqat_sdk.quantization.calibrate import calibrate
    from ghnqat_sdk.quantization.convert import from_float, to_float
    from ghnqat_sdk.quantization.report import quantization_report
    from ghnqat_sdk.quantization.store import load_quantized, save_quantized
    from ghnqat_sdk.search.joint import search_architectures
    from ghnqat_sdk.search.ranking import rank_architectures
    from ghnqat_sdk.search.suggestion import suggest_bits

__all__ = [
    "ArgumentError",
    "CheckpointError",
    "ComputationGraph",
    "DataError",
    "ExportError",
    "GhnqatError",
    "GhnqatWarning",
    "GraphHypernetwork",
    "HypernetworkConfig",
    "RandomHeadWarning",
    "ReplacedWeightsWarning",
    "TraceError",
    "UncalibratedWarning",
    "UnfamiliarDataWarning",
    "UntracedWarning",
    "__version__",
    "calibrate",
    "draw_graph",
    "export",
    "fit_head",
    "from_float",
    "load_pretrained",
    "load_quantized",
    "predict_quantized_params",
    "prediction_report",
    "push_to_hub",
    "qat",
    "quantization_report",
    "rank_architectures",
    "save_pretrained",
    "save_quantized",
    "search_architectures",
    "suggest_bits",
    "to_float",
    "trace",
]

_HOMES = {
    "ArgumentError": "errors",
    "CheckpointError": "errors",
    "ComputationGraph": "graph.graph",
    "DataError": "errors",
    "ExportError": "errors",
    "GhnqatError": "errors",
    "GhnqatWarning": "errors",
    "GraphHypernetwork": "hypernetwork.ghn",
    "HypernetworkConfig": "hypernetwork.ghn",
    "RandomHeadWarning": "errors",
    "ReplacedWeightsWarning": "errors",
    "TraceError": "errors",
    "UncalibratedWarning": "errors",
    "UnfamiliarDataWarning": "errors",
    "UntracedWarning": "errors",
    "calibrate": "quantization.calibrate",
    "draw_graph": "graph.draw",
    "fit_head": "heads",
    "from_float": "quantization.convert",
    "load_pretrained": "hypernetwork.pretrained",
    "load_quantized": "quantization.store",
    "predict_quantized_params": "predict",
    "prediction_report": "prediction",
    "push_to_hub": "hypernetwork.pretrained",
    "quantization_report": "quantization.report",
    "rank_architectures": "search.ranking",
    "save_pretrained": "hypernetwork.pretrained",
    "save_quantized": "quantization.store",
    "search_architectures": "search.joint",
    "suggest_bits": "search.suggestion",
    "to_float": "quantization.convert",
    "trace": "graph.trace",
}
_SUBMODULES = ("export", "qat")


if not TYPE_CHECKING:  # to a type checker, a name that is misspelt is an error

    def __getattr__(name: str) -> Any:
        """Public names are imported when first used: importing the package costs next to
        nothing."""
        if name in _SUBMODULES:
            return importlib.import_module(f"ghnqat_sdk.{name}")
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"ghnqat_sdk.{_HOMES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return [*globals(), *_HOMES, *_SUBMODULES]
