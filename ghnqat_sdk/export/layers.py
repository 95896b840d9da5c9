"""The layers of a model that can be exported in integers."""

from __future__ import annotations

from typing import Any

from torch import nn

from ghnqat_sdk.quantization.lookup import require_calibrated_layers, require_nearest


def require_exportable_layers(qmodel: nn.Module, caller: str) -> dict[str, Any]:
    """As `require_calibrated_layers`, of a model that rounds to the nearest level: runtimes know no
    other rounding.

    Raises:
        ArgumentError: the model is not calibrated, or wrapped; or a layer rounds otherwise, and the
            message names it and `caller`.
    """
    layers = require_calibrated_layers(qmodel, caller)
    require_nearest(layers, f"{caller} writes values that are rounded to the nearest level")
    return layers
