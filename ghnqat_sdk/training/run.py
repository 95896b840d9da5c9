"""A run in its folder: config, state, log, validation, the weights that come out; resuming and branching off."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from ghnqat_sdk.data import ImageSet
from ghnqat_sdk.errors import ArgumentError, CheckpointError
from ghnqat_sdk.files import write_atomically
from ghnqat_sdk.hypernetwork.pretrained import save_pretrained
from ghnqat_sdk.training.checkpoint import (
    load_training_state,
    pack,
    restore_optimizer,
    save_training_state,
    writing,
)
from ghnqat_sdk.training.compute import Setting
from ghnqat_sdk.training.config import RunConfig
from ghnqat_sdk.training.distributed import Processes
from ghnqat_sdk.training.features import FeatureCache
from ghnqat_sdk.training.networks import Network, prepare_network
from ghnqat_sdk.training.optimizers import DecayConfig
from ghnqat_sdk.training.spaces.protocol import Architecture
from ghnqat_sdk.training.teacher import load_teacher
from ghnqat_sdk.training.trainer import Progress, StepReport, Trainer

RUN_FILE = "run.json"
BEST_FOLDER = "best"
LAST_FOLDER = "last"
LOG_FILE = "log.jsonl"

_HIGHEST = 10.0
"""Loss of a network in a mean; that of an exploding one would say nothing of the others."""


class Run:
    """A training run in one folder.

    The folder holds `run.json` (the config), `checkpoint.safetensors` (the state, to resume from), `log.jsonl`, and
    `last/` and `best/`: the averaged weights as `load_pretrained` reads them.

    Args:
        config: The run.
        folder: Where it lives.
        train, validation: Image sets; only process 0 validates.
        features: The teacher's over `train`, where the config has hints.
        processes: This process's place among all.

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
        self.config, self.folder, self.validation_images = config, Path(folder), validation
        self.processes = processes or Processes()
        self.trainer = Trainer(config, train, features=features, processes=self.processes)
        self._recent: list[StepReport] = []
        self._validated = validation_architectures(config)
        self._validation: list[Network] | None = None

    @property
    def progress(self) -> Progress:
        """Where it stands."""
        return self.trainer.progress

    def resume(self) -> bool:
        """Continue from the folder's state, if there is one; says whether there was.

        Raises:
            CheckpointError: the state is damaged, or belongs to other sizes.
        """
        state = load_training_state(self.folder)
        if state is None:
            return False
        self._restore(*state)
        return True

    def run(self, steps: int) -> Iterator[StepReport]:
        """Train until so many steps are done, yielding after every step; checkpoints and validates as the config says.

        Raises:
            CheckpointError: a file cannot be written.
        """
        self._write_config()
        for report in self.trainer.steps(steps):
            self._recent.append(report)
            last = report.step == steps
            if last or report.step % self.config.validation.every == 0:
                self._validate()
            if last or report.step % self.config.checkpoint_every == 0:
                self.save()
            yield report

    def save(self) -> None:
        """Write the state, and the averaged weights to `last/`."""
        if self.processes.rank == 0:
            tensors, facts = self._state()
            save_training_state(self.folder, tensors, facts)
            save_pretrained(self.trainer.averaged(), self.folder / LAST_FOLDER)
        self.processes.wait()

    def _write_config(self) -> None:
        if self.processes.rank == 0:
            with writing(self.folder):
                text = self.config.model_dump_json(indent=2)
                write_atomically(self.folder / RUN_FILE, text.encode())
        self.processes.wait()

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        trainer, tensors = self.trainer, dict[str, Tensor]()
        optimizer = pack(trainer.optimizer.state_dict(), "optimizer", tensors)
        tensors |= {f"model.{name}": t for name, t in trainer.model.state_dict().items()}
        tensors |= {f"average.{name}": t for name, t in trainer.average.state_dict().items()}
        if trainer.hints is not None:
            tensors |= {f"hints.{name}": t for name, t in trainer.hints.state_dict().items()}
        facts = {"optimizer": optimizer, "optimizer_type": self.config.optimizer.type}
        if trainer.features is not None:
            facts["teacher"] = trainer.features.teacher
        return tensors, vars(trainer.progress) | facts

    def _restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        trainer = self.trainer
        try:
            trainer.model.load_state_dict(_with_prefix(tensors, "model."))
            trainer.average.load_state_dict(_with_prefix(tensors, "average."))
            if trainer.hints is not None:
                trainer.hints.load_state_dict(_with_prefix(tensors, "hints."))
            kind = self.config.optimizer.type
            if facts.get("optimizer_type", kind) != kind:
                raise ValueError(
                    f"it is of the optimizer {facts['optimizer_type']!r}, not {kind!r}"
                )
            self._check_teacher(facts)
            if facts.get("optimizer") is not None:
                restore_optimizer(trainer.optimizer, facts["optimizer"], tensors)
            known = {name: facts[name] for name in vars(Progress())}
            trainer.progress = Progress(**known)
        except (RuntimeError, TypeError, KeyError, ValueError) as error:
            raise CheckpointError(
                f"The state in {str(self.folder)!r} does not fit its config: {' '.join(str(error).split()):.300}. "
                f"Restore the run.json that was beside it, or start in another folder."
            ) from error

    def _check_teacher(self, facts: dict[str, Any]) -> None:
        """The projections of a run mean something for one teacher alone."""
        features = self.trainer.features
        own = None if features is None else features.teacher
        if own is not None and facts.get("teacher", own) != own:
            raise ValueError(
                f"its hints are of the teacher {facts['teacher']:.8}…, not of {own:.8}…; "
                f"hints.teacher must name the file that it was trained with"
            )

    # Validation and log

    def _validate(self) -> None:
        """Mean top-1 of unseen validation networks on validation images; the best weights so far go to `best/`."""
        if self.processes.rank == 0:
            figures = self._figures()
            mean = sum(figures.values()) / len(figures)
            self._log({"validation": figures, "mean": round(mean, 2), **averages(self._recent)})
            if mean > self.progress.best:
                self.progress.best = mean
                save_pretrained(self.trainer.averaged(), self.folder / BEST_FOLDER)
        self._recent.clear()
        self.processes.wait()

    @torch.no_grad()
    def _figures(self) -> dict[str, float]:
        """By space and bits, with batch statistics, as the paper measures."""
        config = self.config
        images = self.validation_images.sample(config.validation.images, seed=0)
        batches = list(images.batches(64))
        figures: dict[str, float] = {}
        model = self.trainer.averaged()
        for setting in config.bits.settings:
            found = defaultdict(list)
            for network in self._validation_networks():
                (predicted,) = model([network.graph.with_bits(setting.bits)])
                how = Setting(setting.bits, config.hypernetwork.ranges, False, config.compute)
                right = sum(
                    (network.plan.run(predicted, x, how)[0].argmax(1).cpu() == y).sum().item()
                    for x, y in batches
                )
                found[network.architecture.key[0]].append(100 * right / len(images))
            for space, values in found.items():
                name = "{} W{}/A{}".format(space, *setting.bits)
                figures[name] = round(sum(values) / len(values), 2)
        return figures

    def _validation_networks(self) -> list[Network]:
        if self._validation is None:
            classes = self.config.hypernetwork.num_classes
            self._validation = [prepare_network(a, classes) for a in self._validated]
        return self._validation

    def _log(self, entry: dict[str, object]) -> None:
        facts = {
            k: round(v, 1) if isinstance(v, float) else v for k, v in vars(self.progress).items()
        }
        with writing(self.folder), (self.folder / LOG_FILE).open("a") as file:
            file.write(json.dumps(facts | entry) + "\n")


def validation_architectures(config: RunConfig) -> list[Architecture]:
    """Of the validation split of each space, the first networks within the limits.

    Raises:
        ArgumentError: a space has none.
    """
    limits = config.validation
    chosen: list[Architecture] = []
    for share in {
        getattr(share, "factory", share.space): share for share in config.networks
    }.values():
        space = share.build("val")
        affordable = (
            a for a in map(space.__getitem__, range(len(space))) if a.macs <= limits.max_macs
        )
        found = list(islice(affordable, limits.networks))
        if not found:
            raise ArgumentError(
                f"No validation network of the space {share.space!r} has at most {limits.max_macs:.3g} "
                f"multiply-accumulates. Raise validation.max_macs, for example to 60e6."
            )
        chosen += found
    return chosen


def averages(reports: Sequence[StepReport]) -> dict[str, object]:
    """Mean training loss, hint loss and accuracy in percent by bits over some steps, non-finite networks left out."""
    seen: dict[str, list[tuple[float, float]]] = defaultdict(list)
    hints: list[float] = []
    for report in reports:
        for one in report.networks:
            if math.isfinite(one.loss):
                name = "W{}/A{}".format(*one.draw.bits)
                seen[name].append((min(one.loss, _HIGHEST), 100 * one.accuracy))
            if one.hint is not None:
                hints.append(one.hint)
    means = {
        bits: [round(sum(column) / len(pairs), 3) for column in zip(*pairs, strict=True)]
        for bits, pairs in sorted(seen.items())
    }
    hint = {"hint": round(sum(hints) / len(hints), 3)} if hints else {}
    return {"training": means, **hint}


def branch(folder: str | Path, output: str | Path, steps: int, hints: float = 0.5) -> RunConfig:
    """Copy the state of a stable run to `output`, with a config whose rate falls to zero in `steps` steps.

    The run in `folder` stays as it is and can go on.

    Raises:
        ArgumentError: no run there, one that decays already, or an output that holds a run.
        CheckpointError: a file cannot be read or written.
    """
    from ghnqat_sdk.training.config import load_config

    source, target = Path(folder), Path(output)
    config = load_config(source / RUN_FILE)
    state = load_training_state(source)
    if state is None:
        raise ArgumentError(
            f"{str(source)!r} holds no state to branch off. Train a run first: ghnqat-train run"
        )
    if config.decay is not None or config.schedule.type != "stable":
        raise ArgumentError(
            f"The run in {str(source)!r} decays already. Branch off the stable run it comes from."
        )
    if (target / RUN_FILE).exists():
        raise ArgumentError(f"{str(target)!r} holds a run. Choose another --output folder.")
    tensors, facts = state
    try:
        decay = DecayConfig(start=facts["step"], steps=steps, hints=hints)
    except ValidationError as error:
        raise ArgumentError(
            f"steps={steps} and hints={hints} are no decay. Write at least one step, and a share of 0 to 1."
        ) from error
    config = config.model_copy(update={"decay": decay})
    save_training_state(target, tensors, facts)
    with writing(target):
        write_atomically(target / RUN_FILE, config.model_dump_json(indent=2).encode())
    return config


def open_features(
    config: RunConfig, train: ImageSet, processes: Processes, report: Any = None
) -> FeatureCache | None:
    """The features that the config's hints need, computed by process 0 where they are not on disk yet.

    Raises:
        ArgumentError, CheckpointError: the teacher is missing, damaged, or of other classes.
    """
    if config.hints is None:
        return None
    teacher = load_teacher(config.hints.teacher, train.classes)
    if processes.rank == 0 and not FeatureCache.is_current(config.hints.features, teacher, train):
        FeatureCache.build(config.hints.features, teacher, train, report=report)
    processes.wait()
    return FeatureCache.open(config.hints.features, teacher, train)


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
