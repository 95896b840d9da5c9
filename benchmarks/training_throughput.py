"""Networks per second of a training step on fixed networks, and where its time goes.

    python benchmarks/training_throughput.py
    python benchmarks/training_throughput.py --deepnets 24 --families 24 --rounds 7

One process of one thread, steps of the trainer itself: the first networks of DeepNets("val",
channels=16) and of Families("val") of at most 16 M multiply-accumulates, eight in a step, 64
images each, and the default hypernetwork. Images are random and the teacher is untrained: neither
changes what a step costs. Rows take turns in rounds, so that a noisy machine is fair to all, and
each shows its median round; the first round, which builds networks and compiles kernels, is left
out. Time is that of the processor. "Hypernetwork" is its forward and backward pass, "networks"
the forward and backward passes of the predicted ones with the hint loss, and "rest" all else:
images, the teacher's features, gradients, optimizer and average. --json FILE writes the figures
there as well.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import common
import torch

from ghnqat_sdk.bits import Bits
from ghnqat_sdk.data import ImageSet
from ghnqat_sdk.training import losses as losses_module
from ghnqat_sdk.training.config import RunConfig
from ghnqat_sdk.training.features import FeatureCache
from ghnqat_sdk.training.hints import HintConfig
from ghnqat_sdk.training.process import settle_process
from ghnqat_sdk.training.sampler import Draw
from ghnqat_sdk.training.spaces.deepnets import DeepNets
from ghnqat_sdk.training.spaces.families import Families
from ghnqat_sdk.training.spaces.protocol import Space
from ghnqat_sdk.training.teacher import Teacher, TeacherConfig
from ghnqat_sdk.training.trainer import Trainer

META_BATCH, IMAGES, MOST = 8, 64, 16e6
BITS: dict[str, Bits] = {"W4/A4": (4, 4), "float": (32, 32)}
PARTS = ("hypernetwork", "networks", "rest")


class Row(NamedTuple):
    """What is measured."""

    space: str
    bits: str
    hints: bool


class Round(NamedTuple):
    """Seconds of one pass over all networks of a row."""

    processor: float
    clock: float
    parts: dict[str, float]
    """Of the processor."""


class FixedSteps:
    """Deals the same networks again and again, in place of a `Sampler`."""

    def __init__(self, draws: Sequence[Draw]) -> None:
        self.groups = [draws[i : i + META_BATCH] for i in range(0, len(draws), META_BATCH)]

    def step(self, step: int, rank: int = 0, processes: int = 1) -> Sequence[Draw]:
        return self.groups[step % len(self.groups)]


@contextmanager
def timed(trainer: Trainer) -> Iterator[dict[str, float]]:
    """Seconds of the processor by part, while the trainer takes steps."""
    seconds: dict[str, float] = defaultdict(float)

    def timing(part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed_call(*args: Any, **kwargs: Any) -> Any:
            started = time.process_time()
            result = call(*args, **kwargs)
            seconds[part] += time.process_time() - started
            return result

        return timed_call

    forward, backward = trainer.model.forward, torch.autograd.backward
    loss = losses_module.network_loss
    with (
        patch.object(trainer.model, "forward", timing("hypernetwork", forward)),
        patch.object(torch.autograd, "backward", timing("hypernetwork", backward)),
        patch.object(losses_module, "network_loss", timing("networks", loss)),
    ):
        yield seconds


def measure(trainer: Trainer, draws: Sequence[Draw]) -> Round:
    """One pass over all networks."""
    trainer.sampler = FixedSteps(draws)  # type: ignore[assignment]
    trainer.progress.step = 0
    clock, processor = time.perf_counter(), time.process_time()
    with timed(trainer) as parts:
        for _ in trainer.steps(len(trainer.sampler.groups)):  # type: ignore[attr-defined]
            pass
    processor = time.process_time() - processor
    parts["rest"] = processor - sum(parts.values())
    return Round(processor, time.perf_counter() - clock, dict(parts))


def random_images(count: int) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return ImageSet(images, torch.arange(count) % 10, tuple(map(str, range(10))))


def trainers(images: ImageSet, folder: Path, config: RunConfig) -> dict[bool, Trainer]:
    """Without and with hints."""
    teacher = Teacher(TeacherConfig(), images.classes).eval()
    features = FeatureCache.open(folder, teacher, images)
    hinted = config.model_copy(update={"hints": HintConfig()})
    return {False: Trainer(config, images), True: Trainer(hinted, images, features=features)}


def draws_of(space: Space, count: int, bits: Bits) -> list[Draw]:
    affordable = (a for a in map(space.__getitem__, range(len(space))) if a.macs <= MOST)
    return [Draw(a, bits, IMAGES) for a, _ in zip(affordable, range(count), strict=False)]


def summary(rounds: Sequence[Round], networks: int) -> dict[str, float]:
    """Medians over rounds."""
    figures = {
        "networks/s": networks / statistics.median(r.processor for r in rounds),
        "networks/s by the clock": networks / statistics.median(r.clock for r in rounds),
        "ms a network": 1e3 * statistics.median(r.processor for r in rounds) / networks,
    }
    shares = {p: statistics.median(r.parts[p] / r.processor for r in rounds) for p in PARTS}
    return figures | shares


def told(row: Row, figures: dict[str, float]) -> str:
    rate, clock, milliseconds, *shares = figures.values()
    cells = [row.space, row.bits, "on" if row.hints else "off", f"{rate:.2f}", f"{clock:.2f}"]
    cells += [f"{milliseconds:.0f}", *(f"{100 * share:.0f} %" for share in shares)]
    return common.row(cells)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--deepnets", type=int, default=16, help="networks of them")
    parser.add_argument("--families", type=int, default=16, help="networks of them")
    parser.add_argument("--rounds", type=int, default=5)
    common.add_json(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    settle_process()
    spaces: dict[str, tuple[Space, int]] = {
        "deepnets": (DeepNets("val", channels=16), options.deepnets),
        "families": (Families("val"), options.families),
    }
    rows = {
        Row(space, bits, hints): draws_of(of, count, BITS[bits])
        for space, (of, count) in spaces.items()
        for bits in BITS
        for hints in (False, True)
    }
    rounds: dict[Row, list[Round]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        by_hints = trainers(random_images(1000), Path(folder), RunConfig())
        for turn in range(options.rounds + 1):
            for row, draws in rows.items():
                measured = measure(by_hints[row.hints], draws)
                if turn:
                    rounds[row].append(measured)
    columns = ["space", "bits", "hints", "networks/s", "by the clock", "ms a network", *PARTS]
    print(common.head(columns, texts=3))
    figures = {row: summary(rounds[row], len(draws)) for row, draws in rows.items()}
    for row, of_row in figures.items():
        print(told(row, of_row))
    for space in spaces:
        macs = statistics.fmean(d.architecture.macs for d in rows[Row(space, "float", False)])
        print(f"{space}: {macs / 1e6:.1f} M multiply-accumulates on average")
    if options.json:
        written = [row._asdict() | of_row for row, of_row in figures.items()]
        common.write_json(options.json, written)


if __name__ == "__main__":
    main()
