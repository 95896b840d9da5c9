"""Hints of a small teacher, and features that it could have."""

from __future__ import annotations

import torch
from module_route import numbers
from torch import Tensor

from ghnqat_sdk.training.hints import HintConfig, Hints


def hints(stages: int = 2, **config) -> Hints:
    torch.manual_seed(0)
    return Hints(HintConfig(**{"channels": 8, "blocks": 4} | config), [6] * stages)


def features(count: int, *sides: int) -> list[Tensor]:
    return [numbers(count, side, side, 6, seed=side) for side in sides]
