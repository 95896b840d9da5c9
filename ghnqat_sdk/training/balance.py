"""How large the gradients of one network are, which is how much it counts in a step.

A norm takes out how large the weight before it is, so that a weight's gradient is as large as the
weight is small: weights of few bits, ten times smaller than those in float, have gradients ten
times larger, and gains of 0.01 larger ones still. A plain norm of gradients is therefore one of the
smallest tensors, and says little of the network. What a step of the hypernetwork changes is in
proportion to a tensor, and so is its share of the relative norm.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

_LEAST = 1e-3
"""Of the root mean square that a tensor is taken to have."""


def relative_norm(gradients: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> float:
    """The root of the sum of |gradient|² · |tensor|².

    Args:
        gradients: By some of a network's predicted tensors, by name.
        tensors: As predicted.
    """
    chosen = [tensors[name].detach() for name in gradients]
    least = _LEAST * torch.tensor([tensor.numel() for tensor in chosen]).sqrt()
    return (norms(gradients.values()) * norms(chosen).maximum(least)).norm().item()


def norms(tensors: Iterable[Tensor]) -> Tensor:
    """(n,) the norm of each of n tensors."""
    return torch.stack(list(torch._foreach_norm(list(tensors)))).cpu()
