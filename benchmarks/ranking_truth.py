"""How good networks get when they are trained: W4/A4 QAT of 60 test networks, for ranking_evidence.

    python benchmarks/ranking_truth.py --data data/cifar10
    python benchmarks/ranking_truth.py --data data/cifar10 --minutes 60

The first 30 test networks of each space of at most 20 M multiply-accumulates, all by one schedule
from He's initialization: three epochs, SGD with momentum, a rate that rises and falls, to a fifth
as much in networks without norm, and in those that are at chance after an epoch otherwise, as
SqueezeNets, whose scores end in a ReLU. Five are trained with three seeds,
which says how far one accuracy is to be trusted. Runs on the engine's plans; lines go to
results/ranking_truth.jsonl as they come, and what is there is not trained again. Prints the
accuracies and the noise between seeds.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, partial
from itertools import chain
from typing import Any, NamedTuple

import common
import torch
from common import RESULTS, measure_all, read_lines
from networks import cheap, named
from qat_start_training import he
from torch import Tensor, nn

from ghnqat_sdk import calibrate, from_float
from ghnqat_sdk.data import ImageSet, load_images
from ghnqat_sdk.quantization.ranges import ClippedRanges
from ghnqat_sdk.search.scores import top1
from ghnqat_sdk.training.compute import Setting
from ghnqat_sdk.training.prepared import prepare_network
from ghnqat_sdk.training.sampler import draw_batch
from ghnqat_sdk.training.spaces.protocol import Architecture

LINES = RESULTS / "ranking_truth.jsonl"
PLACES = ("families/test", "deepnets/id")
OF_EACH = 30
MOST = 20e6  # multiply-accumulates of a network, for one image
SEEDS = (1, 2)
REPEATED = 5  # networks that are trained with SEEDS as well

BITS = (4, 4)
EPOCHS = 3
BATCH = 128
RATE = 0.1
LOWER_RATE = 0.02
AT_CHANCE = 15.0  # percent of ten classes
WARM_UP = 0.1  # of all steps
PADDING = 4
LARGEST_NORM = 5.0
CALIBRATION = 512
VALIDATION = 2000


class Task(NamedTuple):
    """What a line of results is found by."""

    net: str
    seed: int


def networks() -> tuple[str, ...]:
    """In turns from both spaces, so that the first of them are a fair sample."""
    return tuple(chain.from_iterable(zip(*(cheap(p, OF_EACH, MOST) for p in PLACES), strict=True)))


def plan() -> list[Task]:
    """Each network once, and the repeated ones after the first third."""
    nets = networks()
    repeated = nets[:: len(nets) // REPEATED][:REPEATED]
    first = [Task(net, 0) for net in nets]
    again = [Task(net, seed) for net in repeated for seed in SEEDS]
    third = len(first) // 3
    return first[:third] + again + first[third:]


class Images(NamedTuple):
    train: ImageSet
    val: ImageSet
    test: ImageSet


@cache
def images_of(data: str) -> Images:
    train, val, test = (load_images(data, split) for split in ("train", "val", "test"))
    return Images(train, val.sample(VALIDATION, seed=0), test)


def share_of_rate(step: int, steps: int) -> float:
    """Up in a line, and down along a cosine to 0."""
    warm = WARM_UP * steps
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))


def trained(
    architecture: Architecture, images: ImageSet, seed: int, steps: int, rate: float
) -> Iterator[dict[str, Tensor]]:
    """Parameters by name, after each step."""
    network = prepare_network(architecture, len(images.classes))
    torch.manual_seed(seed)
    model = he(architecture.build(len(images.classes)))
    parameters = dict(model.to(memory_format=torch.channels_last).named_parameters())  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(
        parameters.values(), rate, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    setting = Setting(BITS, ClippedRanges())
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        batch = draw_batch(images, BATCH, PADDING, generator)
        scores, _ = network.plan.run(parameters, batch.images, setting)
        optimizer.zero_grad()
        nn.functional.cross_entropy(scores, batch.labels).backward()
        nn.utils.clip_grad_norm_(parameters.values(), LARGEST_NORM)
        optimizer.param_groups[0]["lr"] = rate * share_of_rate(step, steps)
        optimizer.step()
        yield parameters


def as_deployed(
    architecture: Architecture, parameters: dict[str, Tensor], images: ImageSet
) -> nn.Module:
    """Fake-quantized and calibrated."""
    model = architecture.build(len(images.classes))
    model.load_state_dict(parameters, strict=False)
    calibration = [batch for batch, _ in images.sample(CALIBRATION, seed=0).batches(64)]
    qmodel = from_float(model, BITS)
    calibrate(qmodel, calibration, progress=False)
    return qmodel.eval()


def measure(task: Task, data: str, epochs: int = EPOCHS) -> dict[str, Any]:
    """The line of a task: top-1 on validation images after each epoch, and on all test images after
    the last; seconds of the processor for its training, and the rate."""
    torch.set_num_threads(1)
    images = images_of(data)
    rates = (LOWER_RATE,) if named(task.net).norm == "none" else (RATE, LOWER_RATE)
    return next(line for rate in rates if (line := at_rate(rate, task, images, epochs)))


def at_rate(rate: float, task: Task, images: Images, epochs: int) -> dict[str, Any] | None:
    """The line of a task, None where the network is at chance after an epoch at any but the lower
    rate."""
    architecture = named(task.net)
    per_epoch = len(images.train) // BATCH
    val, seconds = [], 0.0
    started = time.process_time()
    steps = trained(architecture, images.train, task.seed, epochs * per_epoch, rate)
    for step, parameters in enumerate(steps, 1):
        if step % per_epoch == 0:
            seconds += time.process_time() - started
            qmodel = as_deployed(architecture, parameters, images.train)
            val.append(round(top1(qmodel, images.val), 2))
            if rate > LOWER_RATE and val[0] < AT_CHANCE:
                return None
            started = time.process_time()
    test = round(top1(qmodel, images.test), 2)
    facts = {"val": val, "test": test, "seconds": round(seconds, 1), "rate": rate}
    return {**task._asdict(), **facts}


def read() -> dict[Task, dict[str, Any]]:
    return {Task(line["net"], line["seed"]): line for line in read_lines(LINES)}


def noise(lines: Iterable[dict[str, Any]]) -> float | None:
    """Standard deviation of a network's accuracy between seeds, pooled over those that have
    several."""
    by_net: dict[str, list[float]] = {}
    for line in lines:
        by_net.setdefault(line["net"], []).append(line["test"])
    variances = [statistics.variance(values) for values in by_net.values() if len(values) > 1]
    return math.sqrt(statistics.fmean(variances)) if variances else None


def table(lines: Sequence[dict[str, Any]]) -> str:
    rows = [common.head(["network", "seed", "validation by epoch", "test", "processor, s"])]
    for line in sorted(lines, key=lambda line: -line["test"]):
        cells = [line["net"], line["seed"], ", ".join(map(str, line["val"])), line["test"]]
        rows.append(common.row([*cells, f"{line['seconds']:.0f}"]))
    return "\n".join(rows)


def main() -> None:
    parser = common.parser(__doc__)
    common.add_data(parser)
    common.add_measuring(parser)
    options = parser.parse_args()
    known = read()
    tasks = [task for task in plan() if task not in known]
    each = partial(measure, data=options.data)
    measured = measure_all(tasks, each, LINES, options.processes, options.minutes)
    for count, line in enumerate(measured, 1):
        print(f"{count} of {len(tasks)}: {line['net']} test {line['test']}", flush=True)
    lines = list(read().values())
    print(table(lines))
    print(f"\nBetween seeds: {noise(lines)} points")


if __name__ == "__main__":
    main()
