"""What an argument of a function and an option of a command take alike; nothing slow is imported
here."""

from __future__ import annotations

from typing import Any, Literal

from ghnqat_sdk.errors import ArgumentError

HeadChoice = Literal["auto", "predict", "keep", "fit"]
"""What happens to a classifier; see `predict_quantized_params`."""

RankingOrder = Literal["accuracy", "training"]
"""What networks are ranked by; see `rank_architectures`."""

EvaluationProtocol = Literal["paper", "calibrated"]
"""How accuracy is measured; see `training/evaluation.py`."""

FEWEST_IMAGES = 100
"""Training images that a hypernetwork can be adapted to."""

FEWEST_OF_A_CLASS = 5
"""Of them."""


def require_switches(**given: Any) -> None:
    """Raise for an argument that is neither True nor False: the text "False", for example, would
    count as True.

    Raises:
        ArgumentError: the message names it.
    """
    for name, value in given.items():
        if not isinstance(value, bool):
            raise ArgumentError(
                f"{name}={value!r} is a {type(value).__name__}; expected True or False. Write "
                f"{name}=True, or {name}=False."
            )
