"""Bits for each layer under a budget, from what quantizing it alone does to the output of the
predicted network."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ghnqat_sdk.bits import FLOAT_BITS, Pair, parse_bits
from ghnqat_sdk.calls import Call
from ghnqat_sdk.checks import is_number
from ghnqat_sdk.copying import copy_module
from ghnqat_sdk.errors import ArgumentError, TraceError
from ghnqat_sdk.hypernetwork.ghn import GraphHypernetwork
from ghnqat_sdk.hypernetwork.pretrained import DEFAULT
from ghnqat_sdk.predict import predict_quantized_params
from ghnqat_sdk.quantization.lookup import all_in_float, fake_quantized_layers, layer_at
from ghnqat_sdk.quantization.outputs import finite_run_on, output_difference, outputs_on, run_on
from ghnqat_sdk.quantization.state import evaluating
from ghnqat_sdk.search.costs import LayerCost, counting_costs

_WIDTHS = (2, 3, 4, 6, 8)


@dataclass(frozen=True)
class BitsSuggestion:
    """Bits for each layer; `bits` goes into `predict_quantized_params` as it is. Printed as a
    table.

    Attributes:
        bits: Layer name to (weight, activation).
        cost: What they cost, in the unit of the budget.
        budget: What they may cost.
        sensitivity: Layer name to candidate to the relative mean squared change of the output.
        layers: Layer name to its size.
    """

    bits: dict[str, Pair]
    cost: float
    budget: float
    sensitivity: dict[str, dict[Pair, float]]
    layers: dict[str, LayerCost]

    def __str__(self) -> str:
        width = max(len(name) for name in self.bits)
        lines = [
            f"{name:{width}}  W{weight}/A{activation}  {self.layers[name].weights:10,} weights  "
            f"{100 * self.sensitivity[name][weight, activation]:8.3f} % of the output"
            for name, (weight, activation) in self.bits.items()
        ]
        return "\n".join([*lines, f"cost {self.cost:,.0f} of {self.budget:,.0f}"])


def suggest_bits(
    model: nn.Module,
    batch: Any,
    *,
    weight_bytes: float | None = None,
    bit_operations: float | None = None,
    candidates: Sequence[Pair] | None = None,
    hypernetwork: str | Path | GraphHypernetwork = DEFAULT,
) -> BitsSuggestion:
    """Choose bits for each layer of `model` so that the predicted network keeps its output best
    within a budget.

    Each layer is quantized alone with each candidate, and the change of the output is measured on
    `batch`. From the cheapest candidate everywhere, layers are then raised one after the other, by
    the largest fall of the summed changes for each unit of cost. The model runs once for each layer
    and candidate. Layers that the batch does not reach keep the cheapest. Layers that share a
    weight have the same bits, and it counts once.

    Args:
        model: Any CNN; it stays as it is.
        batch: Images (N, C, H, W) to measure on, a tuple of arguments, or a dict of keyword
            arguments; some tens of images are enough.
        weight_bytes: Budget for the weights of all layers, in bytes; or
        bit_operations: budget for one image, in multiply-accumulates times weight bits times
            activation bits.
        candidates: (weight, activation) pairs to choose from. By default, weights of 2, 3, 4, 6 or
            8 bits; activations have as many under `bit_operations`, and 8 under `weight_bytes`,
            which they cost nothing of.
        hypernetwork: As in `predict_quantized_params`.

    Raises:
        ArgumentError: not one budget, a budget below the cheapest choice, candidates that are no
            pairs, or a model that cannot be run on the batch.
    """
    budget = check_budget(weight_bytes, bit_operations)
    pairs = check_candidates(candidates, weight_bytes)
    call = Call.of(batch)
    qmodel = _predicted(model, pairs[-1], hypernetwork, call)
    groups = _sharing_weights(qmodel)
    sensitivity, layers = _measure(qmodel, call, pairs, groups)
    if not layers:
        raise ArgumentError(
            f"This {type(model).__name__} has no layer that could be quantized and that the batch "
            "reaches."
        )

    def cost(name: str, bits: Pair) -> float:
        sizes = [layers[member] for member in groups[name]]
        if weight_bytes is not None:
            return sum(size.weight_bytes(bits) for size in sizes)
        return sum(size.bit_operations(bits) for size in sizes)

    chosen = {name: min(pairs, key=lambda bits: (cost(name, bits), sum(bits))) for name in groups}
    spent = sum(cost(name, bits) for name, bits in chosen.items())
    if spent > budget:
        raise ArgumentError(
            f"The budget of {budget:,.0f} is below {spent:,.0f}, which the cheapest candidates "
            "cost everywhere. Raise it, or add cheaper candidates."
        )
    while step := _best_step(chosen, sensitivity, pairs, cost, budget - spent):
        name, bits = step
        spent += cost(name, bits) - cost(name, chosen[name])
        chosen[name] = bits
    first = {member: name for name, members in groups.items() for member in members}
    return BitsSuggestion(
        bits={name: chosen[first[name]] for name in layers},
        cost=spent,
        budget=budget,
        sensitivity={name: sensitivity[first[name]] for name in layers},
        layers=layers,
    )


def _predicted(
    model: nn.Module, bits: Pair, hypernetwork: str | Path | GraphHypernetwork, call: Call
) -> nn.Module:
    """The model with predicted parameters, traced on a batch.

    Raises:
        ArgumentError: the batch is empty, or the model cannot be run on it.
    """
    if call.rows == 0:
        raise ArgumentError("The batch is empty. Pass some tens of images, as images[:32].")
    try:
        return predict_quantized_params(model, bits, hypernetwork=hypernetwork, example_inputs=call)
    except TraceError:
        outputs_on(copy_module(model).eval(), call)  # tells what is wrong with the batch
        raise


def _sharing_weights(qmodel: nn.Module) -> dict[str, list[str]]:
    """The layers that share a weight, by the name of the first; most have one of their own."""
    firsts: dict[int, str] = {}
    groups: dict[str, list[str]] = {}
    for name, layer in fake_quantized_layers(qmodel).items():
        stored = layer._parameters.get("weight", layer)  # computed ones are shared with nobody
        groups.setdefault(firsts.setdefault(id(stored), name), []).append(name)
    return groups


def _best_step(
    chosen: Mapping[str, Pair],
    sensitivity: Mapping[str, Mapping[Pair, float]],
    pairs: Sequence[Pair],
    cost: Any,
    left: float,
) -> tuple[str, Pair] | None:
    """The layer and the candidate with the largest fall of sensitivity for each unit of cost,
    within what is left."""
    best, rate = None, 0.0
    for name, now in chosen.items():
        for bits in pairs:
            more = cost(name, bits) - cost(name, now)
            gain = sensitivity[name][now] - sensitivity[name][bits]
            if gain > 0 and more <= left and (more <= 0 or gain / more > rate):
                best, rate = (name, bits), gain / more if more > 0 else math.inf
    return best


@torch.no_grad()
def _measure(
    qmodel: nn.Module, call: Call, pairs: Iterable[Pair], groups: Mapping[str, list[str]]
) -> tuple[dict[str, dict[Pair, float]], dict[str, LayerCost]]:
    """Sensitivity of every group of layers, and size of every layer, where a shared weight is the
    first's; nothing changes by layers that the batch does not reach.

    No sizes where it reaches no layer at all.
    """
    layers = fake_quantized_layers(qmodel)
    sensitivity: dict[str, dict[Pair, float]] = {}
    if not layers:
        return sensitivity, {}
    with evaluating(qmodel), all_in_float(layers):
        with counting_costs(layers, call.rows) as costs:
            exact = finite_run_on(qmodel, call)
        for name, members in groups.items():
            sensitivity[name] = dict.fromkeys(pairs, 0.0)
            if costs.keys().isdisjoint(members):
                continue
            for bits in pairs:
                with ExitStack() as stack:
                    for member in members:
                        stack.enter_context(layer_at(layers[member], *bits))
                    sensitivity[name][bits] = output_difference(run_on(qmodel, call), exact)
    if costs:
        for name, layer in layers.items():
            if name not in costs:
                costs[name] = LayerCost(layer.weight.numel(), macs=0)
        for members in groups.values():
            for member in members[1:]:
                costs[member] = replace(costs[member], weights=0)
    return sensitivity, costs


def _default(weight_bytes: float | None) -> list[Pair]:
    """The candidates where none are given: what the budget does not limit has the most bits."""
    return [(weight, weight if weight_bytes is None else max(_WIDTHS)) for weight in _WIDTHS]


def check_budget(weight_bytes: Any, bit_operations: Any) -> float:
    """The one of them that is given.

    Raises:
        ArgumentError: not one, or no number above 0.
    """
    given = [value for value in (weight_bytes, bit_operations) if value is not None]
    if len(given) != 1 or not is_number(given[0]) or not float(given[0]) > 0:
        raise ArgumentError(
            f"One budget above 0 is needed; got weight_bytes={weight_bytes!r}, "
            f"bit_operations={bit_operations!r}. Write weight_bytes=100_000 or bit_operations=1e8."
        )
    return float(given[0])


def check_candidates(candidates: Any, weight_bytes: float | None) -> list[Pair]:
    """Those given, or the default ones of the budget.

    Raises:
        ArgumentError: no pairs below float.
    """
    given = _default(weight_bytes) if candidates is None else candidates
    pairs = [parse_bits(pair) for pair in given] if isinstance(given, (tuple, list)) else []
    if not pairs or (FLOAT_BITS, FLOAT_BITS) in pairs:
        raise ArgumentError(
            f"candidates={candidates!r} is not a list of (weight, activation) pairs below float. "
            "Write candidates=[(2, 2), (4, 4), (8, 8)]."
        )
    return list(dict.fromkeys(pairs))
