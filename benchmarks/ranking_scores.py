"""What networks may be ranked by before any of them is trained: higher should be better.

Predicted parameters, and measures from the literature, each on a network of its own from He's
initialization: gradient norm and SynFlow (Tanaka et al. 2020) as Abdelfattah et al. 2021 use them,
and NASWOT (Mellor et al. 2021). The first step is our own, for how fast a network trains.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from common import SHIPPED
from networks import named
from qat_start_training import he
from ranking_truth import BITS
from table1 import hypernetwork
from torch import Tensor, nn

from ghnqat_sdk import ComputationGraph, predict_quantized_params, trace
from ghnqat_sdk.data import ImageSet, load_images
from ghnqat_sdk.search import promise
from ghnqat_sdk.training.spaces.protocol import Architecture

CALIBRATION = 256
MEASURED = 500
BATCH = 64
STEP = 0.03  # of a weight's norm
CODED = 128  # images of NASWOT
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish)

Scores = dict[str, float]


@cache
def images_of(data: str) -> tuple[ImageSet, ImageSet]:
    """To calibrate and to compute measures on, and to measure predicted networks on."""
    train, val = (load_images(data, split) for split in ("train", "val"))
    return train.sample(CALIBRATION, seed=0), val.sample(MEASURED, seed=0)


def sizes(architecture: Architecture, data: str) -> Scores:
    return {
        "parameters": float(architecture.parameter_count),
        "macs": float(architecture.macs),
    }


def shallowness(architecture: Architecture, data: str) -> Scores:
    """Less the logarithm of how many operations are on the longest path from image to scores."""
    return {"shallowness": -math.log(depth(trace(architecture.build(10))))}


def depth(graph: ComputationGraph) -> int:
    """Nodes of the longest path."""
    longest: list[int] = []
    for node in range(len(graph)):
        longest.append(1 + max((longest[i] for i in graph.predecessors[node]), default=0))
    return max(longest)


def predicted(architecture: Architecture, data: str) -> Scores:
    """With predicted, calibrated parameters: top-1 in percent, and the mean log-probability of the
    label."""
    accuracy, likelihood = of_predicted(architecture, *images_of(data))
    return {"predicted": accuracy, "predicted likelihood": likelihood}


def predicted_quickly(architecture: Architecture, data: str) -> Scores:
    """The same with one batch to calibrate on, and two to measure on."""
    fitting, measured = images_of(data)
    quick = fitting.sample(BATCH, seed=0), measured.sample(2 * BATCH, seed=0)
    accuracy, likelihood = of_predicted(architecture, *quick)
    return {"predicted, 128 images": accuracy, "predicted likelihood, 128 images": likelihood}


def of_predicted(
    architecture: Architecture, fitting: ImageSet, measured: ImageSet
) -> tuple[float, float]:
    qmodel = predict_quantized_params(
        architecture.build(10),
        BITS,
        hypernetwork=hypernetwork(SHIPPED),
        calibration=[batch for batch, _ in fitting.batches(BATCH)],
    )
    with torch.inference_mode():
        scores = torch.cat([qmodel(x) for x, _ in measured.batches(BATCH)])
    labels = measured.labels
    hits = int((scores.argmax(1) == labels).sum())
    return 100 * hits / len(labels), -nn.functional.cross_entropy(scores, labels).item()


def initial(architecture: Architecture) -> nn.Module:
    torch.manual_seed(0)
    return he(architecture.build(10))


def gradient_norm(architecture: Architecture, data: str) -> Scores:
    """As `ghnqat_sdk.search.promise` has it."""
    images, labels = next(images_of(data)[0].batches(BATCH))
    return {"gradient norm": promise.gradient_norm(architecture.build(10), images, labels, 10)}


def first_step(architecture: Architecture, data: str) -> Scores:
    """How far a first step of gradient descent, which is as long as a share of each weight, lowers
    the loss of the images that it was computed with."""
    images, labels = next(images_of(data)[0].batches(BATCH))
    model = initial(architecture).train()
    weights = [p for p in model.parameters() if p.ndim > 1]
    before = nn.functional.cross_entropy(model(images), labels)
    gradients = torch.autograd.grad(before, weights, allow_unused=True)
    with torch.no_grad():
        for weight, gradient in zip(weights, gradients, strict=True):
            if gradient is not None and gradient.any():
                weight.sub_(gradient * (STEP * weight.norm() / gradient.norm()))
        after = nn.functional.cross_entropy(model(images), labels)
    return {"first step": (before - after).item()}


def synflow(architecture: Architecture, data: str) -> Scores:
    """The logarithm, since products over layers are."""
    model = initial(architecture).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()
    model(torch.ones(1, 3, 32, 32, dtype=torch.float64)).sum().backward()
    flows = [(p * p.grad).sum() for p in model.parameters() if p.grad is not None]
    return {"SynFlow": torch.stack(flows).sum().log().item()}


@torch.inference_mode()
def naswot(architecture: Architecture, data: str) -> Scores:
    """Log-determinant of how many signs of activations two images have in common."""
    images, _ = next(images_of(data)[0].batches(CODED))
    model = initial(architecture).train()
    kernel = torch.zeros(len(images), len(images), dtype=torch.float64)

    def add(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        signs = (args[0].flatten(1) > 0).float()
        opposite = 1 - signs
        kernel.add_(signs @ signs.T + opposite @ opposite.T)

    activations = [m for m in model.modules() if isinstance(m, ACTIVATIONS)]
    for activation in activations:
        activation.register_forward_pre_hook(add)
    model(images)
    return {"NASWOT": float(torch.linalg.slogdet(kernel).logabsdet)}


MEASURES: dict[str, Callable[[Architecture, str], Scores]] = {
    "sizes": sizes,
    "shallowness": shallowness,
    "predicted": predicted,
    "predicted quickly": predicted_quickly,
    "gradient norm": gradient_norm,
    "first step": first_step,
    "SynFlow": synflow,
    "NASWOT": naswot,
}


def scores_of(net: str, data: str) -> dict[str, Any]:
    """The line of a network: its scores, and what each measure took of the processor's time."""
    torch.set_num_threads(1)
    images_of(data), hypernetwork(SHIPPED)
    architecture = named(net)
    scores: Scores = {}
    seconds: dict[str, float] = {}
    for measure in MEASURES.values():
        started = time.process_time()
        found = measure(architecture, data)
        scores |= found
        seconds |= dict.fromkeys(found, round(time.process_time() - started, 3))
    return {"net": net, "scores": scores, "seconds": seconds}
