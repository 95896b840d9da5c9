"""Which start quantization-aware training takes best: He, PyTorch's default, predicted, or He and float training.

    python benchmarks/qat_initialization.py --data data/cifar10 --steps 100
    python benchmarks/qat_initialization.py --data data/cifar10 --steps 400 --minutes 60
    python benchmarks/qat_initialization.py --data data/cifar10 --starts noise flat head steps
    python benchmarks/qat_initialization.py --data data/cifar10 --starts predicted --nets families/test/7 --rate 0.003
    python benchmarks/qat_initialization.py --data data/cifar10 --minutes 0

Each task is one network at one bit-width from one start. Networks are unseen ones of at most 12 M multiply-accumulates,
half of them torchvision's at 32 × 32 pixels. All train alike: SGD with momentum 0.9 and weight decay 5e-4
at a constant learning rate, batches of 128 flipped and cropped training images, gradients clipped at 5. The learning
rate of each start and bit-width is the best of four or five on validation images after 100 steps of three validation
networks, or after 400 for longer runs; those are trained first. A model is measured after it was calibrated on 512
training images. Lines go to benchmarks/results/qat_initialization.jsonl as they come; the second call stops taking new
work after an hour, the third tries changes to the predicted start on the validation networks, the fourth trains one
network at another learning rate, and the last only writes the tables into docs/results.md anew, with --shown for the
measurements of earlier weights. benchmarks/plots.py draws them.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Iterable, Sequence
from functools import cache, partial
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from networks import cheap, named
from page_parts import write_part
from resumable import measure_all, read_lines
from torch import Tensor, nn

from ghnqat_sdk import ArgumentError, calibrate, from_float, predict_quantized_params
from ghnqat_sdk.data import ImageSet, draw_moves, load_images, move_images
from ghnqat_sdk.hypernetwork import pretrained
from ghnqat_sdk.qat import learn_steps

ROOT = Path(__file__).resolve().parents[1]
LINES = ROOT / "benchmarks" / "results" / "qat_initialization.jsonl"
PART = "the start of QAT"

BITS = {"W4/A4": (4, 4), "W2/A2": (2, 2)}
STARTS = {
    "predicted": "predicted",
    "he": "He",
    "default": "PyTorch's default",
    "float": "He, float training",
}
# What might make the predicted start better, tried on the validation networks alone.
CHANGES = {
    "noise": "plus noise of 0.3 standard deviations",
    "flat": "with square roots of the singular values",
    "head": "with half of the last layer",
    "steps": "with learned steps",
}
TORCHVISION = (
    "mobilenet_v2", "squeezenet1_1", "regnet_x_400mf", "shufflenet_v2_x1_0", "efficientnet_b0", "mobilenet_v3_large",
)  # fmt: skip
MOST = 12e6  # multiply-accumulates of a network, for one image
GRAPHS = {"families/test": 3, "deepnets/id": 3}
# Tried for predicted starts, whose best ones are smaller in short runs, and for the others.
RATES = {True: (0.003, 0.01, 0.03, 0.1, 0.3), False: (0.01, 0.03, 0.1, 0.3)}
TUNING_GRAPHS, TUNING_STEPS = {"families/val": 2, "deepnets/val": 1}, (100, 400)
MARKS = (0, 25, 50, 100, 200, 400, 800, 1600, 3200, 6400)
TABLE_MARKS = (0, 25, 100, 400, 1600, 6400)
FEWEST = 4  # networks in a mean that is shown
BATCH, PADDING, IMAGES, CALIBRATION = 128, 4, 1000, 512
TEXT = """{tables}

- Networks: {networks}.
- Starts: predicted parameters; He's normal initialization (fan in); that of PyTorch's layers; and He's followed by as
  many steps in float as then follow with quantization.
- All train alike: SGD with momentum 0.9 and weight decay 5e-4 at a constant learning rate, batches of 128 flipped and
  shifted training images. The learning rate is the best of {rates} (predicted) or {other_rates}
  (others) on validation images{best}.
- To be measured, a copy is calibrated on 512 training images and classifies 1,000 test images. ± is the standard error
  over networks.
- SHA-256 of the weights: `{weights}`{later}.

```bash
python benchmarks/qat_initialization.py --data data/cifar10 --steps 100
```
"""


class Task(NamedTuple):
    """One network at one bit-width from one start: what a line of results is found by.

    Attributes:
        weights: SHA-256 of the hypernetwork's; empty for starts that are not predicted.
        net: See networks.py.
        bits, start: Keys of BITS, and of STARTS or CHANGES.
        steps: With quantization.
        rate: Learning rate.
    """

    weights: str
    net: str
    bits: str
    start: str
    steps: int
    rate: float


class Images(NamedTuple):
    train: ImageSet
    val: ImageSet
    test: ImageSet
    calibration: list[Tensor]


Lines = dict[Task, dict[str, Any]]


def read() -> Lines:
    return {Task(*(line[field] for field in Task._fields)): line for line in read_lines(LINES)}


@cache
def networks() -> tuple[str, ...]:
    """Torchvision's and the first of each split that are cheap enough, in turns."""
    columns = [tuple(f"torchvision/{name}" for name in TORCHVISION)]
    columns += [cheap(place, count, MOST) for place, count in GRAPHS.items()]
    turns = range(max(map(len, columns)))
    return tuple(column[turn] for turn in turns for column in columns if turn < len(column))


@cache
def tuning_networks() -> tuple[str, ...]:
    """Validation networks, by which learning rates are chosen."""
    return tuple(net for place, count in TUNING_GRAPHS.items() for net in cheap(place, count, MOST))


def plan(
    weights: str, steps: int, starts: Sequence[str], known: Lines, rate: float | None = None
) -> list[Task]:
    """All tasks: learning rates are tried first, and networks follow for the starts that have theirs, or at `rate`."""

    def task(net: str, bits: str, start: str, steps: int, rate: float) -> Task:
        return Task(weights if is_predicted(start) else "", net, bits, start, steps, rate)

    settings = [(bits, start) for bits in BITS for start in starts]
    if rate is not None:
        return [task(net, *setting, steps, rate) for net in networks() for setting in settings]
    first, nets = tuning_steps(steps), tuning_networks()
    tuning = [
        task(net, bits, start, first, rate)
        for bits, start in settings
        for rate in RATES[is_predicted(start)]
        for net in nets
    ]
    best = best_rates(known[t] for t in tuning if t in known)
    chosen = [
        (bits, start, best[bits, start, first])
        for bits, start in settings
        if (bits, start, first) in best and start in STARTS
    ]
    return tuning + [
        task(net, bits, start, steps, rate) for net in networks() for bits, start, rate in chosen
    ]


def tuning_steps(steps: int) -> int:
    """After how many steps of the validation networks the learning rate of a run is chosen."""
    return next((tuned for tuned in TUNING_STEPS if steps <= tuned), TUNING_STEPS[-1])


def best_rates(lines: Iterable[dict[str, Any]]) -> dict[tuple[str, str, int], float]:
    """Learning rate by (bits, start, steps it was tried for), where all rates were tried on all validation networks."""
    found: dict[tuple[str, str, int], dict[float, list[float]]] = {}
    for line in lines:
        steps = line["steps"]
        if line["net"] in tuning_networks() and steps in TUNING_STEPS:
            rates = RATES[is_predicted(line["start"])]
            by_rate = found.setdefault(
                (line["bits"], line["start"], steps), {rate: [] for rate in rates}
            )
            by_rate[line["rate"]].append(line["val"][str(steps)])
    complete = len(tuning_networks())
    return {
        key: max(
            by_rate, key=lambda rate: (round(sum(by_rate[rate]), 2), rate)
        )  # of equals the larger
        for key, by_rate in found.items()
        if all(len(values) == complete for values in by_rate.values())
    }


def is_predicted(start: str) -> bool:
    return start == "predicted" or start in CHANGES


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
        train(
            model,
            optimizer_of(model, task.rate),
            range(task.steps),
            images.train,
            f"{task.net} float",
        )
    return from_float(model, bits)


def changed(model: nn.Module, start: str, images: Images) -> nn.Module:
    """What CHANGES says, in place."""
    weights = [
        module.weight.data
        for module in model.modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    ]
    if start == "noise":
        for weight in weights:
            weight.add_(0.3 * weight.std() * torch.randn_like(weight))
    elif start == "flat":
        for weight in weights:
            left, singular, right = torch.linalg.svd(weight.flatten(1), full_matrices=False)
            roots = singular.sqrt()
            roots *= singular.norm() / roots.norm()
            weight.copy_((left * roots @ right).view_as(weight))
    elif start == "head":
        weights[-1].mul_(0.5)
    elif start == "steps":
        calibrate(model, images.calibration, progress=False)
        learn_steps(model)
    return model


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
        logits = model(move_images(images.normalise(batch.images), moves))
        loss = nn.functional.cross_entropy(logits, batch.labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()


def hash_of(text: str) -> int:
    return int.from_bytes(sha256(text.encode()).digest()[:7], "big")


@torch.no_grad()
def accuracies(model: nn.Module, images: Images) -> tuple[float, float]:
    """Top-1 in percent on validation and test images; chance for a model that is not finite any more."""
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
    optimizer, marks = optimizer_of(model, task.rate), {0: accuracies(model, images)}
    for before, mark in pairwise(mark for mark in MARKS if mark <= task.steps):
        train(model, optimizer, range(before, mark), images.train, task.net)
        marks[mark] = accuracies(model, images)
    validation, test = zip(*marks.values(), strict=True)
    by_step = {
        "val": dict(zip(map(str, marks), validation, strict=True)),
        "test": dict(zip(map(str, marks), test, strict=True)),
    }
    return task._asdict() | by_step


class Curves:
    """Test accuracy by step of each (network, bits, start), from the run with the best validation accuracy there."""

    def __init__(
        self, lines: Iterable[dict[str, Any]], weights: str, nets: Sequence[str] | None = None
    ) -> None:
        self.weights = weights
        self.wanted = networks() if nets is None else tuple(nets)
        lines = sorted(
            (line for line in lines if line["weights"] in ("", weights)),
            key=lambda line: line["steps"],
        )
        self.rates = best_rates(lines)
        found: dict[
            tuple[str, str, str], dict[int, tuple[float, float]]
        ] = {}  # (validation, test) by step
        # Validation accuracy of the validation networks before and after the steps that decide the first rate.
        self.tuning: dict[tuple[str, str, float], list[tuple[float, float]]] = {}
        for line in lines:
            bits, start = line["bits"], line["start"]
            if line["net"] in tuning_networks() and line["steps"] == TUNING_STEPS[0]:
                ends = line["val"]["0"], line["val"][str(TUNING_STEPS[0])]
                self.tuning.setdefault((bits, start, line["rate"]), []).append(ends)
            elif line["net"] in self.wanted:
                best = found.setdefault((line["net"], bits, start), {})
                # After n steps in float n steps with quantization follow: only the last of them counts.
                for mark in [str(line["steps"])] if start == "float" else line["test"]:
                    if line["val"][mark] > best.get(int(mark), (-1.0, 0.0))[0]:
                        best[int(mark)] = line["val"][mark], line["test"][mark]
        self.of = {
            key: {mark: test for mark, (_, test) in best.items()} for key, best in found.items()
        }

    def nets(self) -> list[str]:
        return [net for net in self.wanted if any(key[0] == net for key in self.of)]

    def at(self, step: int, bits: str, start: str) -> dict[str, float]:
        """Accuracy by network."""
        found = {net: self.of.get((net, bits, start), {}) for net in self.nets()}
        return {net: curve[step] for net, curve in found.items() if step in curve}

    def common(self, step: int, bits: str) -> list[str]:
        """Networks that were trained so far both from predicted parameters and from He's; none if too few were."""
        he = self.at(step, bits, "he")
        nets = [net for net in self.at(step, bits, "predicted") if net in he]
        return nets if len(nets) >= FEWEST else []


def table(curves: Curves, bits: str) -> str:
    """Means over the networks that have both a predicted and a He start, and how often the former is ahead."""
    columns = {mark: nets for mark in TABLE_MARKS if (nets := curves.common(mark, bits))}
    lines = [
        f"| {bits} | {' | '.join(f'{m:,} steps' for m in columns)} |",
        "| --- |" + " --- |" * len(columns),
    ]
    for start, name in STARTS.items():
        cells = []
        for mark, nets in columns.items():
            found = curves.at(mark, bits, start)
            cells.append(mean_of([found[net] for net in nets if net in found], len(nets)))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    wins = []
    for mark, nets in columns.items():
        mine, other = (curves.at(mark, bits, start) for start in ("predicted", "he"))
        wins.append(f"{sum(mine[net] > other[net] for net in nets)} of {len(nets)}")
    return "\n".join([*lines, f"| predicted ahead of He | {' | '.join(wins)} |"])


def changes_table(curves: Curves) -> str:
    """The predicted start and its changes: validation accuracy before the first step, and after the last."""
    columns = [f"{bits}, {steps} steps" for bits in BITS for steps in (0, TUNING_STEPS[0])]
    lines = [f"| start | {' | '.join(columns)} |", "| --- |" + " --- |" * len(columns)]
    for start, name in {"predicted": "predicted", **CHANGES}.items():
        cells = []
        for bits in BITS:
            found = [ends for (*key, _), ends in curves.tuning.items() if key == [bits, start]]
            means = [[statistics.fmean(ends) for ends in zip(*nets, strict=True)] for nets in found]
            cells += (
                [f"{mean:.1f}" for mean in max(means, key=lambda ends: ends[1])]
                if means
                else ["–", "–"]
            )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def mean_of(values: list[float], expected: int) -> str:
    if not values:
        return "–"
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    missing = f" ({len(values)} of {expected})" if len(values) < expected else ""
    return f"{statistics.fmean(values):.1f} ± {error:.1f}{missing}"


def steps_to_reach(curves: Curves, bits: str) -> str:
    """One sentence: when He's mean reaches what the predicted start has after 100 steps, on the same networks."""
    longest = max((mark for mark in MARKS if curves.common(mark, bits)), default=0)
    nets = curves.common(longest, bits)
    if longest < 100:
        return ""
    goal = statistics.fmean(curves.at(100, bits, "predicted")[net] for net in nets)
    means = {
        mark: statistics.fmean(found[net] for net in nets)
        for mark in MARKS
        if (found := curves.at(mark, bits, "he")).keys() >= set(nets)
    }
    reached = next((mark for mark, mean in means.items() if mean >= goal), None)
    what = f"what the predicted start has after 100 ({goal:.1f} %, {len(nets)} networks)"
    if reached is None:
        return f"At {bits}, He has not reached after {longest:,} steps {what}."
    return f"At {bits}, He needs {reached:,} steps to reach {what}."


def page(curves: Curves, shipped: str) -> str:
    """The part of docs/results.md."""
    tables = [
        part
        for bits in BITS
        for part in (table(curves, bits), steps_to_reach(curves, bits))
        if part
    ]
    return TEXT.format(
        tables="\n\n".join(tables),
        networks=networks_of(curves),
        rates=", ".join(map(str, RATES[True])),
        other_rates=", ".join(map(str, RATES[False])),
        best=rates_of(curves),
        weights=curves.weights,
        later="" if curves.weights == shipped else "; better ones ship since",
    )


def networks_of(curves: Curves) -> str:
    """Which networks were trained."""
    nets = curves.nets()
    own = [net.partition("/")[2] for net in nets if net.startswith("torchvision/")]
    texts = [f"torchvision's {', '.join(own)} at 32 × 32 pixels"] if own else []
    for place in GRAPHS:
        if count := sum(net.startswith(f"{place}/") for net in nets):
            texts.append(
                f"the first {count} of `{place}` of at most {MOST / 1e6:.0f} M multiply-accumulates"
            )
    return ", ".join(texts)


def rates_of(curves: Curves) -> str:
    """The learning rates, by the steps after which they were chosen."""
    texts = []
    for steps in TUNING_STEPS:
        chosen = {
            bits: {
                start: curves.rates[bits, start, steps]
                for start in STARTS
                if (bits, start, steps) in curves.rates
            }
            for bits in BITS
        }
        named = [
            f"{bits} " + ", ".join(f"{STARTS[start]} {rate}" for start, rate in rates.items())
            for bits, rates in chosen.items()
            if rates
        ]
        if named:
            texts.append(f"after {steps} steps, {'; '.join(named)}")
    return ": " + ". For longer runs: ".join(texts) if texts else ""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="image folder, or torchvision's CIFAR-10")
    parser.add_argument("--steps", type=int, default=100, choices=MARKS[1:])
    parser.add_argument("--starts", nargs="+", choices=[*STARTS, *CHANGES], default=list(STARTS))
    parser.add_argument(
        "--rate", type=float, help="learning rate, instead of the one tuned on validation networks"
    )
    parser.add_argument(
        "--nets", nargs="+", metavar="NET", help="only these, such as deepnets/id/20"
    )
    parser.add_argument("--processes", type=int, default=2, help="of one thread each")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="take no new work after so many"
    )
    parser.add_argument("--shown", metavar="SHA", help="weights to show; those that ship if absent")
    options = parser.parse_args()
    weights = sha256((pretrained._EMBEDDED / pretrained.WEIGHTS_FILE).read_bytes()).hexdigest()
    deadline = time.monotonic() + 60 * options.minutes
    # Twice: the networks can only be planned when the learning rates are known.
    for _ in range(2):
        known = read()
        planned = plan(weights, options.steps, options.starts, known, options.rate)
        missing = [task for task in planned if task not in known]
        missing = [
            task
            for task in missing
            if not options.nets or task.net in (*options.nets, *tuning_networks())
        ]
        minutes = (deadline - time.monotonic()) / 60
        each = partial(measure, data=options.data)
        for count, line in enumerate(
            measure_all(missing, each, LINES, options.processes, minutes), 1
        ):
            what = f"{line['net']} {line['bits']} {line['start']} at {line['rate']}"
            print(f"{count} of {len(missing)}: {what}, test {line['test']}", flush=True)
    lines = list(read().values())  # each task once
    curves = Curves(lines, options.shown or weights)
    changed = next(
        (line["weights"] for line in reversed(lines) if line["start"] in CHANGES), curves.weights
    )
    write_part(PART, page(curves, weights))
    print("\n\n".join(table(curves, bits) for bits in BITS))
    print("\nValidation networks:\n\n" + changes_table(Curves(lines, changed)))


if __name__ == "__main__":
    main()
