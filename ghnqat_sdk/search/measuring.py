"""One network of a ranking: its costs, and its accuracy with predicted, calibrated parameters."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ghnqat_sdk.bits import FLOAT_BITS, Pair, resolve_bits
from ghnqat_sdk.copying import copy_module
from ghnqat_sdk.data import ImageSet
from ghnqat_sdk.devices import on_cpu_by_default
from ghnqat_sdk.errors import GhnqatError
from ghnqat_sdk.files import digest
from ghnqat_sdk.generators import random_numbers_stay, seed_generators
from ghnqat_sdk.graph.layers import quantizable_layers
from ghnqat_sdk.hypernetwork.ghn import GraphHypernetwork
from ghnqat_sdk.predict import predict_quantized_params
from ghnqat_sdk.prediction import FITTED, prediction_report
from ghnqat_sdk.quantization.state import evaluating
from ghnqat_sdk.search.budget import COSTS, Budget
from ghnqat_sdk.search.costs import counting_costs, latency_ms
from ghnqat_sdk.search.identity import network_digest, values_digest
from ghnqat_sdk.search.promise import gradient_norm
from ghnqat_sdk.search.scores import BATCH, accuracy_and_loss

Line = dict[str, Any]
"""What is known of one network: its name, and its digest, accuracy and costs, or why it has
none."""

_TRAINED_ON = 64  # images, of a first gradient


@dataclass(frozen=True)
class Study:
    """What networks are compared by.

    Attributes:
        bits: (weight, activation) of all layers, or of patterns of their names.
        fitting: What they are calibrated on, and classifiers fitted to.
        measured: What their accuracy is of.
        hypernetwork: Predicts their parameters.
        budget: Networks beyond it are not predicted.
        training: Whether the norm of the first gradient is measured as well.
    """

    bits: Pair | Mapping[str, Pair]
    fitting: ImageSet
    measured: ImageSet
    hypernetwork: GraphHypernetwork
    budget: Budget
    training: bool = False

    def key(self) -> str:
        """What accuracies and costs follow from, beside the network."""
        weights = digest({name: t.cpu() for name, t in self.hypernetwork.state_dict().items()})
        return (
            f"{self._bits_text()} {self.fitting.digest()} {self.measured.digest()} {weights[:16]}"
        )

    def _bits_text(self) -> str:
        if not isinstance(self.bits, Mapping):
            return f"{self.bits[0]},{self.bits[1]}"
        pairs = [(pattern, *pair) for pattern, pair in self.bits.items()]
        return hashlib.sha256(repr(pairs).encode()).hexdigest()[:16]

    def line(self, name: str, entry: Any, known: Mapping[str, Line]) -> Line:
        """Of one network, which may be among those known of its name by digest."""
        try:
            with random_numbers_stay():
                seed_generators()
                return {"name": name, **self._found(entry, known)}
        except GhnqatError as error:
            return {"name": name, "error": str(error)}
        except Exception as error:  # whatever a user's network raises
            first = str(error).partition("\n")[0]
            return {"name": name, "error": f"{type(error).__name__}: {first}"}

    def _found(self, entry: Any, known: Mapping[str, Line]) -> Line:
        model: nn.Module = copy_module(built(entry, self.fitting)).float()
        example = self.fitting.normalize(self.fitting.images[:2])
        trial = copy_module(model)  # what it keeps of a run must not be predicted with
        network = network_digest(trial, example)
        line = known.get(network, {})
        if line and line["values"] != values_digest(model, line["kept"]):
            line = {}
        costs: dict[str, float] = {cost: line[cost] for cost in COSTS if cost in line}
        if not line or self.budget.latency_ms is not None:  # a latency is of the machine it is for
            costs = self._costs(trial, example[:1])
        if excess := self.budget.excess(costs):
            return {"beyond": excess}
        if not line:
            line = {"network": network, **self._accuracy(model, example)}
        if self.training and "gradient_norm" not in line:
            line = {**line, "gradient_norm": self._gradient_norm(model)}
        return {**line, **costs}

    def _gradient_norm(self, model: nn.Module) -> float:
        """Of a network from another start."""
        images = self.fitting.sample(min(_TRAINED_ON, len(self.fitting)), seed=0)
        x = images.normalize(images.images)
        return gradient_norm(model, x, images.labels, len(images.classes))

    @torch.no_grad()
    def _costs(self, model: nn.Module, image: Tensor) -> dict[str, float]:
        """By what budgets call them; the latency only where it is limited."""
        layers = quantizable_layers(model)
        with evaluating(model):
            with counting_costs(layers, 1) as counted:
                model(image)
            costs: dict[str, float] = {
                "macs": sum(cost.macs for cost in counted.values()),
                "weight_bits": weight_bits(model, self.bits),
            }
            if self.budget.latency_ms is not None:
                costs["latency_ms"] = latency_ms(model, image)
        return costs

    def _accuracy(self, model: nn.Module, example: Tensor) -> Line:
        """Top-1 in percent and loss with predicted, calibrated parameters, and those that were not
        predicted."""
        known_classes = self.hypernetwork.config.images.classes
        qmodel = predict_quantized_params(
            model,
            self.bits,
            hypernetwork=self.hypernetwork,
            example_inputs=example,
            calibration=list(self.fitting.batches(BATCH)),
            head="auto" if self.fitting.classes == known_classes else "fit",
        )
        kept = [name for name, why in prediction_report(qmodel).kept.items() if why != FITTED]
        accuracy, loss = accuracy_and_loss(qmodel, self.measured)
        return {
            "accuracy": accuracy,
            "loss": loss,
            "kept": kept,
            "values": values_digest(model, kept),
        }


def weight_bits(model: nn.Module, bits: Any) -> int:
    """Bits of all weights: of quantized layers at their bits, of others in float.

    One that layers share counts once, at the most bits that it has.
    """
    layers: dict[str, Any] = quantizable_layers(model)
    resolved = resolve_bits(bits, layers)
    weights = {name: layer.weight for name, layer in layers.items()}
    widths: dict[int, int] = {}
    for name, weight in weights.items():
        widths[id(weight)] = max(resolved[name].weight, widths.get(id(weight), 0))
    sizes = {id(weight): weight.numel() for weight in weights.values()}
    return sum(sizes[i] * width for i, width in widths.items()) + bits_in_float(model)


def bits_in_float(model: nn.Module) -> int:
    """Of parameters of more than one axis that are no quantized layer's."""
    layers = quantizable_layers(model).values()
    quantized = {id(parameter) for layer in layers for parameter in layer.parameters()}
    others = (p for p in model.parameters() if id(p) not in quantized and p.ndim > 1)
    return FLOAT_BITS * sum(p.numel() for p in others)


def built(entry: Any, images: ImageSet) -> nn.Module:
    """A model as it is, or that of an architecture for the classes of the images."""
    if isinstance(entry, nn.Module):
        return entry
    with on_cpu_by_default():  # where the images are
        model: nn.Module = entry.build(len(images.classes))
    return model
