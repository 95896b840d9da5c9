"""How qat_initialization.py trains a network from one start, and measures it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from networks import named
from qat_start_tasks import BITS, MARKS, Task, is_predicted
from torch import Tensor, nn

from ghnqat_sdk import ArgumentError, calibrate, from_float, predict_quantized_params
from ghnqat_sdk.data import ImageSet, draw_moves, load_images, move_images
from ghnqat_sdk.qat import learn_steps

BATCH = 128
PADDING = 4
IMAGES = 1000
CALIBRATION = 512


class Images(NamedTuple):
    train: ImageSet
    val: ImageSet
    test: ImageSet
    calibration: list[Tensor]


@cache
def images_of(data: str) -> Images:
    train, val, test = (load_images(data, split) for split in ("train", "val", "test"))
    calibration = [batch for batch, _ in train.sample(CALIBRATION, seed=0).batches(64)]
    return Images(train, val.sample(IMAGES, seed=0), test.sample(IMAGES, seed=0), calibration)


def he(model: nn.Module) -> nn.Module:
    """He et al. 2015, with zero biases; norms as PyTorch makes them."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


def started(task: Task, images: Images) -> nn.Module:
    """The fake-quantized model before its first step with quantization."""
    torch.manual_seed(0)
    model, bits = named(task.net).build(10), BITS[task.bits]
    if is_predicted(task.start):
        predicted = predict_quantized_params(model, bits, example_inputs=torch.zeros(2, 3, 32, 32))
        return changed(predicted, task.start, images)
    if task.start != "default":
        he(model)
    if task.start == "float":
        optimizer = optimizer_of(model, task.rate)
        train(model, optimizer, range(task.steps), images.train, f"{task.net} float")
    return from_float(model, bits)


def changed(model: nn.Module, start: str, images: Images) -> nn.Module:
    """What CHANGES says, in place."""
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    weights = [layer.weight.data for layer in layers]
    if start in IN_WEIGHTS:
        IN_WEIGHTS[start](weights)
    elif start == "steps":
        calibrate(model, images.calibration, progress=False)
        learn_steps(model)
    return model


def add_noise(weights: list[Tensor]) -> None:
    for weight in weights:
        weight.add_(0.3 * weight.std() * torch.randn_like(weight))


def flatten_spectrum(weights: list[Tensor]) -> None:
    for weight in weights:
        left, singular, right = torch.linalg.svd(weight.flatten(1), full_matrices=False)
        roots = singular.sqrt()
        roots *= singular.norm() / roots.norm()
        weight.copy_((left * roots @ right).view_as(weight))


def halve_head(weights: list[Tensor]) -> None:
    weights[-1].mul_(0.5)


IN_WEIGHTS: dict[str, Callable[[list[Tensor]], None]] = {
    "noise": add_noise,
    "flat": flatten_spectrum,
    "head": halve_head,
}


def optimizer_of(model: nn.Module, rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=5e-4)


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, images: ImageSet, seed: str
) -> None:
    model.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for step in steps:
        generator = torch.Generator().manual_seed(hash_of(f"{seed} {step}"))
        batch = images.take(torch.randint(len(images), (BATCH,), generator=generator))
        moves = draw_moves(BATCH, PADDING, generator)
        logits = model(move_images(images.normalize(batch.images), moves))
        loss = nn.functional.cross_entropy(logits, batch.labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()


def hash_of(text: str) -> int:
    return int.from_bytes(sha256(text.encode()).digest()[:7], "big")


@torch.no_grad()
def accuracies(model: nn.Module, images: Images) -> tuple[float, float]:
    """Top-1 in percent on validation and test images; chance for what is not finite any more."""
    ready = copy.deepcopy(model)
    try:
        calibrate(ready, images.calibration, progress=False)
    except ArgumentError as error:
        if "not finite" in str(error):
            return 10.0, 10.0
        raise
    ready.eval()

    def top1(of: ImageSet) -> float:
        hits = sum(int((ready(x).argmax(1) == y).sum()) for x, y in of.batches(100))
        return round(100 * hits / len(of), 2)

    return top1(images.val), top1(images.test)


def measure(task: Task, data: str) -> dict[str, Any]:
    """The line of a task: accuracies on validation and test images by step."""
    torch.set_num_threads(1)
    images = images_of(data)
    model = started(task, images)
    optimizer = optimizer_of(model, task.rate)
    marks = {0: accuracies(model, images)}
    for before, mark in pairwise(mark for mark in MARKS if mark <= task.steps):
        train(model, optimizer, range(before, mark), images.train, task.net)
        marks[mark] = accuracies(model, images)
    validation, test = zip(*marks.values(), strict=True)
    by_step = {
        "val": dict(zip(map(str, marks), validation, strict=True)),
        "test": dict(zip(map(str, marks), test, strict=True)),
    }
    return task._asdict() | by_step
