"""A run in its folder: config, state, log, the weights that come out; resuming, branching off."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from ghnqat_sdk.data import ImageSet
from ghnqat_sdk.errors import ArgumentError, CheckpointError
from ghnqat_sdk.files import as_json, write_atomically
from ghnqat_sdk.hypernetwork.pretrained import save_pretrained
from ghnqat_sdk.training.checkpoint import (
    alone_in,
    load_training_state,
    save_training_state,
    writing,
)
from ghnqat_sdk.training.config import RunConfig, load_config
from ghnqat_sdk.training.distributed import Processes
from ghnqat_sdk.training.features import FeatureCache
from ghnqat_sdk.training.folder import BEST_FOLDER, CHECKPOINT_FILE, LAST_FOLDER, LOG_FILE, RUN_FILE
from ghnqat_sdk.training.reports import Progress, StepReport, averages
from ghnqat_sdk.training.state import (
    check_learning,
    check_run_images,
    facts_of_images,
    restore,
    state_of,
)
from ghnqat_sdk.training.teacher import Teacher, check_teacher_fits, load_teacher
from ghnqat_sdk.training.trainer import Trainer
from ghnqat_sdk.training.validation import Validation


class Run:
    """A training run in one folder.

    The folder holds `run.json` (the config), `checkpoint.safetensors` (the state, to resume from),
    `log.jsonl`, and `last/` and `best/`: the averaged weights as `load_pretrained` reads them.

    Args:
        config: The run.
        folder: Where it lives.
        train, validation: Image sets.
        features: The teacher's over `train`, where the config has hints.
        processes: This process's place among all.

    Attributes:
        identity: Tells it from every other run, wherever its folder is moved to; its branches have
            the same. None of a run that began when runs had none.

    Raises:
        ArgumentError: what `Trainer` refuses, or no network of a space that can be validated.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: str | Path,
        train: ImageSet,
        validation: ImageSet,
        *,
        features: FeatureCache | None = None,
        processes: Processes | None = None,
    ) -> None:
        self.config = config
        self.folder = Path(folder)
        self.train = train
        self.identity: str | None = secrets.token_hex(8)
        self.processes = processes or Processes()
        self.trainer = Trainer(config, train, features=features, processes=self.processes)
        self.validation = Validation(config, validation)
        self._recent: list[StepReport] = []
        self._saved = 0

    @property
    def progress(self) -> Progress:
        """Where it stands."""
        return self.trainer.progress

    def resume(self) -> bool:
        """Continue from the folder's state, if there is one; says whether there was.

        Raises:
            ArgumentError: it was trained on other images.
            CheckpointError: the state is damaged, or belongs to other sizes.
        """
        state = load_training_state(self.folder)
        if state is None:
            return False
        check_run_images(self.folder, state[1], self.train)
        try:
            restore(self.trainer, *state)
        except (RuntimeError, TypeError, KeyError, ValueError) as error:
            raise CheckpointError(
                f"The state in {str(self.folder)!r} does not fit its config: "
                f"{' '.join(str(error).split())}. {self._how_to_fit()}, or start in another folder."
            ) from error
        self.identity = state[1].get("run")
        self._saved = self.progress.step
        return True

    def _how_to_fit(self) -> str:
        """What to write where the state does not fit the config."""
        try:
            changed = load_config(self.folder / RUN_FILE) != self.config
        except ArgumentError:
            changed = False
        if changed:
            return f"Go on with its own {RUN_FILE}: leave out --config or the --set that changes it"
        return f"Restore the {RUN_FILE} that was beside it"

    def run(self, steps: int) -> Iterator[StepReport]:
        """Train until so many steps are done, yielding after every step.

        It checkpoints and validates as the config says.

        Raises:
            ArgumentError: the folder holds a state that was not resumed, or another process trains
                the run there.
            CheckpointError: it diverges, or a file cannot be written; the last checkpoint stays.
        """
        self._check_that_nothing_is_lost()
        with self.alone():
            self.write_config()
            yield from self._steps(steps)

    def alone(self) -> AbstractContextManager[None]:
        """Around a training: no other process trains the run in the folder meanwhile."""
        return alone_in(self.folder) if self.processes.rank == 0 else nullcontext()

    def _steps(self, steps: int) -> Iterator[StepReport]:
        for report in self.trainer.steps(steps):
            self._recent.append(report)
            last = report.step == steps
            if last or report.step % self.config.validation.every == 0:
                self.validate()
            if last or report.step % self.config.checkpoint_every == 0:
                self.save()
            yield report

    def _check_that_nothing_is_lost(self) -> None:
        if self.progress.step == 0 and (self.folder / CHECKPOINT_FILE).exists():
            raise ArgumentError(
                f"{str(self.folder)!r} holds the state of a run, which a new one would overwrite. "
                "Write run.resume() before, or name another folder."
            )

    def save(self) -> None:
        """Write the state, and the averaged weights to `last/`.

        Raises:
            CheckpointError: it has diverged, or a file cannot be written; what was there stays.
        """
        check_learning(self.trainer, self.folder, self._saved)
        if self.processes.rank == 0:
            tensors, facts = state_of(self.trainer)
            facts |= {"run": self.identity, "trained_on": facts_of_images(self.train)}
            save_training_state(self.folder, tensors, facts)
            save_pretrained(self.trainer.averaged(), self.folder / LAST_FOLDER)
        self._saved = self.progress.step
        self.processes.wait()

    def write_config(self) -> None:
        """Write it to the folder, as `ghnqat-train run --resume` reads it."""
        if self.processes.rank == 0:
            write_config(self.config, self.folder)
        self.processes.wait()

    def validate(self) -> dict[str, float]:
        """Log mean top-1 of the validation networks, in percent by space and bits, and return it;
        the best weights so far go to `best/`.

        Raises:
            CheckpointError: it has diverged, or a file cannot be written.
        """
        check_learning(self.trainer, self.folder, self._saved)
        figures = self.validation.figures(self.trainer.averaged(), self.processes)
        if self.processes.rank == 0:
            mean = sum(figures.values()) / len(figures)
            best_before, self.progress.best = self.progress.best, max(self.progress.best, mean)
            self.log({"validation": figures, "mean": round(mean, 2), **averages(self._recent)})
            if mean > best_before:
                save_pretrained(self.trainer.averaged(), self.folder / BEST_FOLDER)
        self._recent.clear()
        self.processes.wait()
        return figures

    def log(self, entry: Mapping[str, object]) -> None:
        """Add a line to the folder's log: where the run stands, and `entry`, which counts more."""
        facts = {**vars(self.progress), **entry}
        rounded = {n: round(x, 3) if isinstance(x, float) else x for n, x in facts.items()}
        with writing(self.folder), (self.folder / LOG_FILE).open("a") as file:
            file.write(as_json(rounded) + "\n")


def write_config(config: RunConfig, folder: Path) -> None:
    """Write it as the config of the run in a folder.

    Raises:
        CheckpointError: it cannot be written.
    """
    with writing(folder):
        write_atomically(folder / RUN_FILE, config.model_dump_json(indent=2).encode())


def check_images(folder: str | Path, config: RunConfig, train: ImageSet) -> None:
    """Refuse images that the run in `folder` was not trained on, or that its teacher does not
    know.

    Raises:
        ArgumentError, CheckpointError: so it is, or the state or the teacher is damaged.
    """
    state = load_training_state(Path(folder))
    check_run_images(folder, {} if state is None else state[1], train)
    if config.hints is not None:
        _teacher_for(train, config.hints.teacher)


def open_features(
    config: RunConfig, train: ImageSet, processes: Processes, report: Any = None
) -> FeatureCache | None:
    """The features that the config's hints need; process 0 computes those that are not on disk.

    Raises:
        ArgumentError, CheckpointError: a teacher that is missing, damaged, or of others.
    """
    if config.hints is None:
        return None
    teacher = _teacher_for(train, config.hints.teacher)
    if processes.rank == 0 and not FeatureCache.is_current(config.hints.features, teacher, train):
        FeatureCache.build(config.hints.features, teacher, train, report=report)
    processes.wait()
    return FeatureCache.open(config.hints.features, teacher, train)


def _teacher_for(train: ImageSet, path: str) -> Teacher:
    teacher = load_teacher(path, train.classes)
    check_teacher_fits(teacher, train)
    return teacher
