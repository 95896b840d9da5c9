"""Weights and biases that are computed whenever their layer is called, and what stores them."""

from __future__ import annotations

from typing import Any, Literal

from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

_BY_HOOKS: dict[type, tuple[str, str]] = {
    BasePruningMethod: ("_tensor_name", "prune.remove"),
    WeightNorm: ("name", "remove_weight_norm"),
    SpectralNorm: ("name", "remove_spectral_norm"),
}
"""Kind of a hook to its attribute that names what it computes, and to what takes it away."""


def storing(name: str, layer: Any, what: Literal["weight", "bias"] = "weight") -> str | None:
    """The call after which a layer of `qmodel` has its weight or bias as a parameter; None where
    something else computes it than torch's own."""
    function = _remover(layer, what)
    return function and f"torch.nn.utils.{function}(qmodel.get_submodule({name!r}), {what!r})"


def _remover(layer: Any, what: str) -> str | None:
    if parametrize.is_parametrized(layer, what):
        return "parametrize.remove_parametrizations"
    for hook in layer._forward_pre_hooks.values():
        for kind, (attribute, function) in _BY_HOOKS.items():
            if isinstance(hook, kind) and getattr(hook, attribute) == what:
                return function
    return None
