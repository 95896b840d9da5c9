"""What an argument of a function and an option of a command take alike; nothing slow is imported
here."""

from __future__ import annotations

from typing import Literal

HeadChoice = Literal["auto", "predict", "keep", "fit"]
"""What happens to a classifier; see `predict_quantized_params`."""

EvaluationProtocol = Literal["paper", "calibrated"]
"""How accuracy is measured; see `training/evaluation.py`."""

FEWEST_IMAGES = 100
"""Training images that a hypernetwork can be adapted to."""
