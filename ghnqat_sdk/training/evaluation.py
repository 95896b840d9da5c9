"""Accuracy of predicted networks on images, graph by graph, with the paper's protocol or a
calibrated one."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ghnqat_sdk.bits import FLOAT_BITS, Pair
from ghnqat_sdk.choices import EvaluationProtocol
from ghnqat_sdk.copying import copy_module
from ghnqat_sdk.data import DataConfig, ImageSet, Known, load_images_like
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.graph.graph import ComputationGraph
from ghnqat_sdk.hypernetwork.ghn import GraphHypernetwork
from ghnqat_sdk.quantization.calibrate import calibrate
from ghnqat_sdk.quantization.convert import to_fake_quantized
from ghnqat_sdk.quantization.lookup import fake_quantized_layers
from ghnqat_sdk.quantization.norms import is_norm
from ghnqat_sdk.quantization.ranges import Ranges
from ghnqat_sdk.training.prepared import KNOWN_SIZE, traced
from ghnqat_sdk.training.spaces.protocol import Architecture

PAPER_BATCH = 64
"""Images in a batch, and so in its statistics, under the paper's protocol."""


@dataclass(frozen=True)
class EvaluatedNetwork:
    """An architecture as a user would have it.

    Attributes:
        model: Fake-quantized, in evaluation mode and uncalibrated, so that batch norm uses batch
            statistics; its own parameters are on the meta device.
        graph: Its graph with bit-widths.
    """

    model: nn.Module
    graph: ComputationGraph

    def at(self, bits: Pair) -> EvaluatedNetwork:
        """The same network, its module included, at other bit-widths; what was made before runs at
        these as well."""
        for layer in fake_quantized_layers(self.model).values():
            layer.weight_quantizer.bits, layer.input_quantizer.bits = bits
        return EvaluatedNetwork(self.model, self.graph.with_bits(bits))


def evaluated_network(
    architecture: Architecture, bits: Pair, ranges: Ranges, num_classes: int, size: int = KNOWN_SIZE
) -> EvaluatedNetwork:
    """Build, trace at a size of images and fake-quantize `architecture` without allocating its
    parameters."""
    model, graph, first = traced(architecture, num_classes, size)
    to_fake_quantized(model, bits, ranges, inputs=first, warn=False)
    return EvaluatedNetwork(model.eval(), graph.with_bits(bits))


@dataclass(frozen=True)
class Statistic:
    """Accuracies in percent over graphs: mean, standard error of the mean, maximum, and each
    graph's own."""

    mean: float
    sem: float
    max: float
    graphs: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Statistic:
        """Summary of one figure for each graph."""
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        return cls(
            statistics.fmean(values), deviation / math.sqrt(len(values)), max(values), tuple(values)
        )

    def __str__(self) -> str:
        return f"{self.mean:.1f} ± {self.sem:.1f}; {self.max:.1f}"


@dataclass(frozen=True)
class Evaluation:
    """Top-1 and top-5 over a set of graphs."""

    top1: Statistic
    top5: Statistic

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


_AS_CIFAR10 = DataConfig()


def calibration_batches(
    root: str | Path, seed: int, count: int = 512, like: Known = _AS_CIFAR10
) -> list[Tensor]:
    """Training images of a data folder for the calibrated protocol, in batches of 64, read as those
    of a hypernetwork were."""
    images = load_images_like(like, root, "train").sample(count, seed)
    return [batch for batch, _ in images.batches(PAPER_BATCH)]


def evaluate_graphs(
    hypernetwork: GraphHypernetwork,
    architectures: Iterable[Architecture],
    images: ImageSet,
    bits: Pair,
    *,
    protocol: EvaluationProtocol = "paper",
    calibration: Sequence[Tensor] | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[Iterable[Architecture]], Iterable[Architecture]] = iter,
) -> Evaluation:
    """Predict the parameters of every architecture and classify `images` with them.

    Args:
        hypernetwork: Predicts all parameters, the classifier's included.
        architectures: Networks of the space.
        images: What to classify.
        bits: (weight, activation).
        protocol: "paper": batch statistics and dynamic activation ranges in batches of 64;
            "calibrated": statistics and ranges fixed from `calibration` beforehand.
        calibration: Batches (N, 3, H, W) for the calibrated protocol.
        device: Where the networks run.
        progress: Wraps the architectures, as tqdm does.

    Raises:
        ArgumentError: an unknown protocol, no architectures, images of another number of classes,
            or the calibrated protocol without batches.
    """
    top1, top5 = [], []
    for architecture in progress(architectures):
        ((first, fifth),) = evaluate_architecture(
            hypernetwork,
            architecture,
            images,
            [bits],
            protocol=protocol,
            calibration=calibration,
            device=device,
        )
        top1.append(first)
        top5.append(fifth)
    if not top1:
        raise ArgumentError("There are no architectures to evaluate. Pass at least one.")
    return Evaluation(Statistic.of(top1), Statistic.of(top5))


def evaluate_architecture(
    hypernetwork: GraphHypernetwork,
    architecture: Architecture,
    images: ImageSet,
    settings: Sequence[Pair],
    *,
    told: Pair | None = None,
    protocol: EvaluationProtocol = "paper",
    calibration: Sequence[Tensor] | None = None,
    device: torch.device | str = "cpu",
) -> list[tuple[float, float]]:
    """Top-1 and top-5 in percent of one architecture at each of several bit-widths; it is built and
    traced once.

    Args:
        hypernetwork: Predicts all parameters, the classifier's included.
        architecture: Of the space.
        images: What to classify.
        settings: (weight, activation) for each result.
        told: What the hypernetwork is told instead of each setting: (32, 32) for one trained in
            float only, whose parameters for bit-widths mean nothing.
        protocol, calibration, device: As in `evaluate_graphs`.

    Raises:
        ArgumentError: an unknown protocol, images of another number of classes, or the calibrated
            protocol without batches.
    """
    if protocol not in ("paper", "calibrated"):
        raise ArgumentError(f"protocol={protocol!r} is unknown. Write 'paper' or 'calibrated'.")
    if protocol == "calibrated" and not calibration:
        raise ArgumentError(
            "protocol='calibrated' needs images. Pass calibration=[batch, ...], each (N, 3, H, W)."
        )
    if len(images.classes) != hypernetwork.config.num_classes:
        raise ArgumentError(
            f"The images are of {len(images.classes)} classes, the hypernetwork's networks tell "
            f"{hypernetwork.config.num_classes}. Give images of the classes that it was trained on."
        )
    config = hypernetwork.config
    size, classes = config.images.size, config.num_classes
    network = evaluated_network(architecture, settings[0], config.ranges, classes, size)
    accuracies = []
    for bits in settings:
        model = _predicted_model(hypernetwork, network.at(bits), told or bits, device)
        if protocol == "calibrated":
            calibrate(model, [batch.to(device) for batch in calibration or ()])
        accuracies.append(_accuracies(model, images, device))
    return accuracies


@torch.no_grad()
def _predicted_model(
    hypernetwork: GraphHypernetwork,
    network: EvaluatedNetwork,
    told: Pair,
    device: torch.device | str,
) -> nn.Module:
    """A copy of the network's model with parameters of its own, predicted for `told`, its weights
    on their levels."""
    (predicted,) = hypernetwork([network.graph.with_bits(told)])
    model = copy_module(network.model).to_empty(device=device)
    norms: list[Any] = [module for module in model.modules() if is_norm(module)]
    for norm in norms:
        norm.reset_running_stats()
    model.load_state_dict(predicted, strict=False)
    model = model.to(memory_format=torch.channels_last)
    for layer in fake_quantized_layers(model).values():
        # Once instead of in every batch. Not copied into the old tensor: its layout may choose
        # another kernel.
        layer.weight.data = layer.weight_quantizer(layer.weight)
        layer.weight_quantizer.bits = FLOAT_BITS
    return model


@torch.inference_mode()
def _accuracies(
    model: nn.Module, images: ImageSet, device: torch.device | str
) -> tuple[float, float]:
    """Top-1 and top-5 in percent."""
    first = fifth = 0
    for batch, labels in images.batches(PAPER_BATCH):
        best = model(batch.to(device)).topk(min(5, len(images.classes)), dim=1).indices.cpu()
        hits = best == labels[:, None]
        first += int(hits[:, :1].sum())
        fifth += int(hits.sum())
    return 100 * first / len(images), 100 * fifth / len(images)
