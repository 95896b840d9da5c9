"""What parametrizations and hooks derive from a weight, derived again after a prediction.

Spectral norm, for example, keeps the singular vectors of its weight in buffers, and brings them up
to date in training alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from ghnqat_sdk.devices import at_home
from ghnqat_sdk.generators import random_numbers_stay
from ghnqat_sdk.graph.layers import quantizable_layers
from ghnqat_sdk.graph.trace import hooks_of_objects
from ghnqat_sdk.quantization.state import modes_stay

DERIVED = "derived again from the predicted weight"
STAYED = "stays as it was; whether it belongs to the weight that was replaced is not known"
_MOST_ROUNDS = 500
_SETTLED = 1e-5
"""Relative change of a weight from round to round that ends them; or the step of its type."""


@dataclass(frozen=True)
class _Maker:
    """What makes weights of the parameters and the buffers of one module.

    Attributes:
        part: The module that holds them.
        make: One round; gives the weights.
        recurse: Whether those of the modules inside belong to it.
    """

    part: nn.Module
    make: Callable[[], list[Tensor]]
    recurse: bool


def derive_again(model: nn.Module, predicted: Collection[str]) -> dict[str, str]:
    """Run what makes weights in training mode until they settle, in place, where parameters are
    new.

    Args:
        model: Its modes and the random number generators stay as they are.
        predicted: Names of the new parameters.

    Returns:
        Buffers that take part in making a weight, name to what became of them; those of layers
        with buffers of their own, too, which no one but the layer's forward could bring up to date.
    """
    settled: set[int] = set()
    seen: set[int] = set()
    names = {id(tensor): name for name, tensor in model.named_parameters()}
    with random_numbers_stay(), at_home(model), torch.no_grad():
        for maker in _makers(model):
            parameters = list(maker.part.parameters(recurse=maker.recurse))
            if not any(names.get(id(p)) in predicted and not p.is_meta for p in parameters):
                continue
            buffers = list(maker.part.buffers(recurse=maker.recurse))
            before = [buffer.clone() for buffer in buffers]
            _settle(maker, rounds=_MOST_ROUNDS if buffers else 1)
            seen.update(map(id, buffers))
            pairs = zip(before, buffers, strict=True)
            settled.update(id(new) for old, new in pairs if not torch.equal(old, new))
    return {
        name: DERIVED if id(buffer) in settled else STAYED
        for name, buffer in model.named_buffers()
        if id(buffer) in seen
    }


def _makers(model: nn.Module) -> Iterator[_Maker]:
    layers = {id(layer) for layer in quantizable_layers(model).values()}
    for module in model.modules():
        if isinstance(module, ParametrizationList):
            yield _Maker(module, partial(_by_parametrization, module), recurse=True)
        elif _made(module) or id(module) in layers:
            yield _Maker(module, partial(_by_hooks, module), recurse=False)


def _by_parametrization(module: nn.Module) -> list[Tensor]:
    return [module()]


def _made(module: nn.Module) -> list[Tensor]:
    """What hooks have put beside a module's parameters."""
    return [each for each in vars(module).values() if isinstance(each, Tensor)]


def _by_hooks(module: nn.Module) -> list[Tensor]:
    """The weights of a module, after its hooks that are objects of their own have made them."""
    if _made(module):
        for hook in hooks_of_objects(module):
            hook(module, ())
    return _made(module)


def _settle(maker: _Maker, rounds: int) -> None:
    """Rounds in training mode until the weights stay as they are; a hook that cannot be run without
    the module's input ends them."""
    before: list[Tensor] | None = None
    with modes_stay(maker.part):
        maker.part.train()
        for _ in range(rounds):
            try:
                weights = [weight.clone() for weight in maker.make()]
            except Exception:  # whatever the user's hook raises
                return
            if before is not None and all(map(_alike, before, weights)):
                return
            before = weights


def _alike(before: Tensor, after: Tensor) -> bool:
    if not after.is_floating_point():
        return torch.equal(before, after)
    limit = max(_SETTLED, torch.finfo(after.dtype).eps)
    change = (after.float() - before.float()).norm()
    return bool(change <= limit * after.float().norm())
