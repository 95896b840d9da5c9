"""From weights that exist to a hypernetwork for other images and classes, within some minutes.

The folder of an adaptation holds what each of its stages leaves; started again, it goes on there:

    adapt.json                        what was asked for, of which images, and the time of preparing
    initial/                          the weights that exist, with an empty class table
    teacher.safetensors, features/    a small teacher of these images, and what it shows of them
    stable/                           a run at a constant rate
    decayed/                          its branch, in which the rate falls to zero
    config.json, model.safetensors    the result, as `load_pretrained` reads it
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import Field, ValidationError

from ghnqat_sdk.choices import FEWEST_IMAGES, FEWEST_OF_A_CLASS
from ghnqat_sdk.configs import Part
from ghnqat_sdk.data import DataConfig, ImageSet
from ghnqat_sdk.errors import ArgumentError, CheckpointError
from ghnqat_sdk.files import write_atomically
from ghnqat_sdk.hypernetwork.pretrained import load_pretrained, save_pretrained
from ghnqat_sdk.training.branch import branch
from ghnqat_sdk.training.checkpoint import writing
from ghnqat_sdk.training.config import RunConfig, load_config, load_recipe
from ghnqat_sdk.training.distributed import Processes
from ghnqat_sdk.training.folder import RUN_FILE, check_unused
from ghnqat_sdk.training.initial import described
from ghnqat_sdk.training.new_classes import with_new_classes
from ghnqat_sdk.training.prepared import KNOWN_SIZE
from ghnqat_sdk.training.projections import fit_projections
from ghnqat_sdk.training.run import Run, open_features
from ghnqat_sdk.training.state import check_same_images, facts_of_images
from ghnqat_sdk.training.teacher import TeacherConfig, save_teacher, train_teacher

ADAPT_FILE = "adapt.json"
TEACHER_FILE = "teacher.safetensors"

_TEACHER_SHARE = 7 / 30  # of the minutes; its features take some of the eighth thirtieth
_DECAY_SHARE = 0.35  # of the training that follows
_SPARE = 0.93  # of what is left, for validations and a slower end
_MOST_EPOCHS = 60
_FOREVER = 10**9


class AdaptConfig(Part):
    """What an adaptation starts from, and how long it takes."""

    initial: str = "default"
    """Weights that exist: anything that `load_pretrained` takes."""
    minutes: float = Field(default=30.0, gt=0)
    """Of which at most eight thirtieths go to the teacher."""
    teacher: TeacherConfig = TeacherConfig(width=16, padding=2)
    """Its epochs are as many as fit."""
    run: RunConfig = Field(default_factory=lambda: load_recipe("adapt"))
    """How the hypernetwork is trained; its data, weights and teacher are filled in."""


@dataclass(frozen=True)
class Standing:
    """Where an adaptation stands.

    Attributes:
        stage: In words.
        seconds: Of all its minutes, so far.
        detail: Of the stage, in words.
    """

    stage: str
    seconds: float
    detail: str = ""


Report = Callable[[Standing], object]


class Adaptation:
    """One adaptation in one folder.

    Args:
        config: What is asked for.
        folder: Where it lives; one that it was interrupted in goes on.
        train, validation: (N, 3, side, side) images of the same classes, with their statistics.
        report: Called now and then.

    Raises:
        ArgumentError: too few images, images of other channels, or a folder that holds something
            else, as an adaptation to other images.
    """

    def __init__(
        self,
        config: AdaptConfig,
        folder: str | Path,
        train: ImageSet,
        validation: ImageSet,
        *,
        report: Report = lambda _: None,
    ) -> None:
        check_images(train)
        self.config, self.folder = config, Path(folder).resolve()
        self.train, self.validation, self.report = train, validation, report
        self.prepared_in: float | None = None
        self._go_on()

    def run(self) -> Run:
        """Do what is left to do; the result is in the folder.

        Raises:
            ArgumentError: weights of another architecture.
            CheckpointError: weights that cannot be loaded, or a folder that cannot be written.
        """
        if self.prepared_in is None:
            self._prepare()
        if not (self.folder / "decayed" / RUN_FILE).exists():
            self._train_stably()
        run = self._decay()
        save_pretrained(run.trainer.averaged(), self.folder)
        shutil.rmtree(self.folder / "features", ignore_errors=True)  # made anew where needed
        return run

    @property
    def seconds(self) -> float:
        """That all of it shall take."""
        return 60 * self.config.minutes

    @cached_property
    def run_config(self) -> RunConfig:
        """Of the training, with everything that depends on the images filled in."""
        recipe, side = self.config.run, self.train.images.shape[-1]
        mean, std = self.train.mean, self.train.std
        hints = recipe.hints
        if hints is not None:
            names = {"teacher": TEACHER_FILE, "features": "features"}
            paths = {field: str(self.folder / name) for field, name in names.items()}
            hints = hints.model_copy(update=paths)
        macs = recipe.sampling.batch_macs * (KNOWN_SIZE / side) ** 2
        changes = {
            "data": DataConfig(size=side, padding=recipe.data.padding, mean=mean, std=std),
            "initial": str(self.folder / "initial"),
            "hypernetwork": load_pretrained(self.folder / "initial").config,
            "hints": hints,
            "sampling": recipe.sampling.model_copy(update={"batch_macs": macs}),
        }
        return recipe.model_copy(update=changes)

    def _go_on(self) -> None:
        """Where the folder stands."""
        check_unused(self.folder)
        path = self.folder / ADAPT_FILE
        if not path.exists():
            return
        try:
            facts = json.loads(path.read_bytes())
            asked = AdaptConfig.model_validate(facts["config"])
            self.prepared_in = facts["prepared_in"]
        except (OSError, ValueError, LookupError, TypeError, ValidationError) as error:
            raise CheckpointError(
                f"{str(path)!r} is damaged ({error!r:.200}). Choose another --output."
            ) from error
        if asked != self.config:
            raise ArgumentError(
                f"{str(self.folder)!r} holds an adaptation of {asked.minutes:g} minutes from "
                f"{asked.initial!r} that was asked for otherwise. Ask for the same, or choose "
                f"another --output."
            )
        instead = "Give the same --data, --size and --images, or choose another --output."
        check_same_images(self.folder, facts.get("images"), self.train, instead)

    def _write_facts(self) -> None:
        facts = {"config": self.config.model_dump(mode="json"), "prepared_in": self.prepared_in}
        facts["images"] = facts_of_images(self.train)
        with writing(self.folder):
            write_atomically(self.folder / ADAPT_FILE, json.dumps(facts, indent=2).encode())

    def _prepare(self) -> None:
        """Initial weights, teacher and features."""
        started = time.monotonic()
        known = load_pretrained(self.config.initial)
        self._write_facts()
        adapted = with_new_classes(known, len(self.train.classes), described(self.train))
        save_pretrained(adapted, self.folder / "initial")
        if self.run_config.hints is not None:
            self._train_teacher(started)
            self._open_features(started)
        self.prepared_in = time.monotonic() - started
        self._write_facts()

    def _train_teacher(self, started: float) -> None:
        stage = "teacher"
        self.report(Standing(stage, time.monotonic() - started))
        config = _affordable(self.config.teacher, self.train, _TEACHER_SHARE * self.seconds)
        reached = 0.0

        def report(epoch: int, accuracy: float) -> None:
            nonlocal reached
            reached = accuracy
            detail = f"epoch {epoch} of {config.epochs}, {accuracy:.1f} %"
            self.report(Standing(stage, time.monotonic() - started, detail))

        teacher = train_teacher(config, self.train, self.validation, report=report)
        path = self.folder / TEACHER_FILE
        save_teacher(teacher, path, accuracy=reached, data=self.train.digest())

    def _open_features(self, started: float) -> None:
        def report(done: int, count: int) -> None:
            detail = f"{done:,} of {count:,} images"
            self.report(Standing("features", time.monotonic() - started, detail))

        open_features(self.run_config, self.train, Processes(), report)

    def _open_run(self, config: RunConfig, folder: str) -> Run:
        features = open_features(config, self.train, Processes())
        return Run(config, self.folder / folder, self.train, self.validation, features=features)

    def _train_stably(self) -> None:
        """Until it is time to decay; then branch off."""
        assert self.prepared_in is not None
        run = self._open_run(self.run_config, "stable")
        if not run.resume():
            fit_projections(run.trainer)
        left = max(0.0, self.seconds - self.prepared_in)
        self._follow(run, "training", (1 - _DECAY_SHARE) * left)
        pace = run.progress.seconds / run.progress.step
        steps = max(1, int(_SPARE * (left - run.progress.seconds) / pace))
        branch(run.folder, self.folder / "decayed", steps)

    def _decay(self) -> Run:
        """The branch to its end."""
        decay = load_config(self.folder / "decayed" / RUN_FILE).decay
        assert decay is not None
        run = self._open_run(self.run_config.model_copy(update={"decay": decay}), "decayed")
        run.resume()
        self._follow(run, "decay", float("inf"), decay.start + decay.steps)
        return run

    def _follow(self, run: Run, stage: str, seconds: float, steps: int = _FOREVER) -> None:
        """Train until so many seconds or steps are done, and save."""
        assert self.prepared_in is not None
        for report in run.run(steps):
            spent = self.prepared_in + run.progress.seconds
            self.report(Standing(stage, spent, f"{report.step:,} steps"))
            if run.progress.seconds >= seconds:
                run.save()
                break


def check_images(train: ImageSet) -> None:
    """Refuse images that nothing can be adapted to.

    Raises:
        ArgumentError: they are too few, of one class, not square, or not of three channels.
    """
    count, channels, height, width = train.images.shape
    if channels != 3 or height != width:
        raise ArgumentError(
            f"Images are of shape ({channels}, {height}, {width}); a hypernetwork is adapted to "
            f"square images of 3 channels. Write load_images(root, 'train', size=32)."
        )
    each = train.labels.bincount(minlength=len(train.classes))
    classes = int((each >= FEWEST_OF_A_CLASS).sum())
    if classes < 2 or classes < len(train.classes) or count < FEWEST_IMAGES:
        fewest = int(each.argmin())
        raise ArgumentError(
            f"{count} training images of {len(train.classes)} classes, {int(each[fewest])} of "
            f"{train.classes[fewest]!r}, are too few; expected {FEWEST_IMAGES}, "
            f"{FEWEST_OF_A_CLASS} of each of two or more classes, besides the tenth that is held "
            f"out. Fit a head instead: "
            f"predict_quantized_params(model, calibration=batches, head='fit')."
        )


def _affordable(config: TeacherConfig, train: ImageSet, seconds: float) -> TeacherConfig:
    """With as many epochs as `seconds` allow, by what one takes of the images of a few batches."""
    few = train.sample(4 * config.batch, seed=0)
    once = config.model_copy(update={"epochs": 1})
    taken = 0.0
    for _ in range(2):  # the first finds nothing compiled
        started = time.monotonic()
        train_teacher(once, few, few.sample(len(few) // 8 + 1, seed=0), report=lambda *_: None)
        taken = time.monotonic() - started
    epochs = int(seconds / (taken * len(train) / len(few))) - 1
    return config.model_copy(update={"epochs": min(_MOST_EPOCHS, max(1, epochs))})
