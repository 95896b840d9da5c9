"""One network of a ranking: its costs, and its accuracy with predicted, calibrated parameters."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ghnqat_sdk.bits import Pair, resolve_bits
from ghnqat_sdk.calls import tensors_in
from ghnqat_sdk.copying import copy_module
from ghnqat_sdk.data import ImageSet
from ghnqat_sdk.errors import ArgumentError, GhnqatError
from ghnqat_sdk.files import digest
from ghnqat_sdk.graph.layers import quantizable_layers
from ghnqat_sdk.graph.trace import trace
from ghnqat_sdk.hypernetwork.ghn import GraphHypernetwork
from ghnqat_sdk.predict import predict_quantized_params
from ghnqat_sdk.quantization.state import evaluating
from ghnqat_sdk.search.budget import COSTS, Budget
from ghnqat_sdk.search.costs import counting_costs, latency_ms

Line = dict[str, Any]
"""What is known of one network: its name, and its graph's digest, accuracy and costs, or why it has
none."""

_BATCH = 64


@dataclass(frozen=True)
class Study:
    """What networks are compared by.

    Attributes:
        bits: (weight, activation) of all layers, or of patterns of their names.
        fitting: What they are calibrated on, and classifiers fitted to.
        measured: What their accuracy is of.
        hypernetwork: Predicts their parameters.
        budget: Networks beyond it are not predicted.
    """

    bits: Pair | Mapping[str, Pair]
    fitting: ImageSet
    measured: ImageSet
    hypernetwork: GraphHypernetwork
    budget: Budget

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
        """Of one network, which may be among those known of its name by graph."""
        try:
            return {"name": name, **self._found(entry, known)}
        except GhnqatError as error:
            return {"name": name, "error": str(error)}
        except Exception as error:  # whatever a user's network raises
            first = str(error).partition("\n")[0]
            return {"name": name, "error": f"{type(error).__name__}: {first}"}

    def _found(self, entry: Any, known: Mapping[str, Line]) -> Line:
        model = built(entry, self.fitting)
        example = self.fitting.normalise(self.fitting.images[:2])
        graph = _graph_digest(model, example)
        line = known.get(graph, {})
        costs = {cost: line[cost] for cost in COSTS if cost in line}
        if not costs.keys() >= {"macs", "weight_bits", *self.budget.limits}:
            costs |= self._costs(model, example[:1])
        if excess := self.budget.excess(costs):
            return {"beyond": excess}
        accuracy = line["accuracy"] if line else self._accuracy(model, example)
        return {"graph": graph, "accuracy": accuracy, **costs}

    @torch.no_grad()
    def _costs(self, model: nn.Module, image: Tensor) -> dict[str, float]:
        """By what budgets call them; the latency only where it is limited."""
        model = copy_module(model)
        layers = quantizable_layers(model)
        with evaluating(model):
            with counting_costs(layers, 1) as counted:
                model(image)
            costs: dict[str, float] = {
                "macs": sum(cost.macs for cost in counted.values()),
                "weight_bits": self._weight_bits(layers),
            }
            if self.budget.latency_ms is not None:
                costs["latency_ms"] = latency_ms(model, image)
        return costs

    def _weight_bits(self, layers: Mapping[str, Any]) -> int:
        bits = resolve_bits(self.bits, layers)
        return sum(layer.weight.numel() * bits[name].weight for name, layer in layers.items())

    def _accuracy(self, model: nn.Module, example: Tensor) -> float:
        """Top-1 in percent with predicted, calibrated parameters."""
        known_classes = self.hypernetwork.config.images.classes
        qmodel = predict_quantized_params(
            model,
            self.bits,
            hypernetwork=self.hypernetwork,
            example_inputs=example,
            calibration=list(self.fitting.batches(_BATCH)),
            head="auto" if self.fitting.classes == known_classes else "fit",
        )
        return top1(qmodel, self.measured)


def built(entry: Any, images: ImageSet) -> nn.Module:
    """A model as it is, or that of an architecture for the classes of the images."""
    model: nn.Module = entry
    return model if isinstance(entry, nn.Module) else entry.build(len(images.classes))


def _graph_digest(model: nn.Module, example: Tensor) -> str:
    """16 hexadecimal digits of what a network is without its values: operations, shapes, edges, and
    the settings that its modules print, as padding, which no node has."""
    graph = trace(model, example)
    settings = re.sub(" at 0x[0-9a-f]+", "", repr(model))
    facts = repr((graph.nodes, graph.edges, graph.unreached, settings))
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


@torch.no_grad()
def top1(qmodel: nn.Module, images: ImageSet) -> float:
    """In percent.

    Raises:
        ArgumentError: there is not one tensor of scores among the model's outputs.
    """
    qmodel.eval()
    classes = len(images.classes)
    hits = [_scores(qmodel(x), len(y), classes).argmax(1) == y for x, y in images.batches(_BATCH)]
    return 100 * int(torch.cat(hits).sum()) / len(images)


def _scores(output: Any, rows: int, classes: int) -> Tensor:
    """(rows, classes), the one tensor of that size among the outputs of a network.

    Raises:
        ArgumentError: none is, or several are.
    """
    tensors = list(tensors_in(output))
    scores = [x for x in tensors if x.shape[:1] == (rows,) and x.numel() == rows * classes]
    if len(scores) != 1:
        raise ArgumentError(
            f"Its outputs are of shapes {[tuple(x.shape) for x in tensors]}; expected one tensor "
            f"of scores, {(rows, classes)}, for the {classes} classes of the images. Build it with "
            f"as many outputs, or rank a network that returns its scores alone."
        )
    return scores[0].reshape(rows, classes)
