"""How much the gradients of one network count in a step.

A norm takes out how large the weight before it is, so that a weight's gradient is as large as the
weight is small: weights of few bits, ten times smaller than those in float, have gradients ten
times larger, and gains of 0.01 larger ones still. A plain norm of gradients is therefore one of the
smallest tensors, and says little of the network. What a step of the hypernetwork changes is in
proportion to a tensor, and so is its share of the relative norm.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_LEAST = 1e-3
"""Of the root mean square that a tensor is taken to have."""


def with_norm(
    gradients: Sequence[Tensor], tensors: Sequence[Tensor], relative_norm: float
) -> list[Tensor]:
    """One network's gradients by its predicted tensors, scaled to a relative norm.

    That is the root of the sum of |gradient|² · |tensor|².

    Args:
        gradients: In the order of `tensors`.
        tensors: As predicted.
        relative_norm: Theirs afterwards.
    """
    least = _LEAST * torch.tensor([tensor.numel() for tensor in tensors]).sqrt()
    sizes = _norms([tensor.detach() for tensor in tensors]).maximum(least)
    norm = (_norms(gradients) * sizes).norm().item()
    return _times(gradients, relative_norm / max(norm, 1e-12))


def clipped(gradients: Sequence[Tensor], limit: float) -> list[Tensor]:
    """Gradients whose norm is at most `limit`."""
    norm = _norms(gradients).norm().item()
    return _times(gradients, min(1.0, limit / max(norm, 1e-12)))


def _norms(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(torch._foreach_norm(list(tensors)))).cpu()


def _times(tensors: Sequence[Tensor], factor: float) -> list[Tensor]:
    return list(torch._foreach_mul(list(tensors), factor))
