"""What a run keeps to go on from: everything that a trainer holds, as tensors and facts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ghnqat_sdk.data import ImageSet
from ghnqat_sdk.errors import ArgumentError, CheckpointError
from ghnqat_sdk.training.checkpoint import give_weights, pack, restore_optimizer
from ghnqat_sdk.training.config import RunConfig
from ghnqat_sdk.training.folder import LAST_FOLDER
from ghnqat_sdk.training.reports import Progress
from ghnqat_sdk.training.teacher import load_teacher, teacher_digest
from ghnqat_sdk.training.trainer import Trainer

_MOST_OF_NAMES = 80


def state_of(trainer: Trainer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by name, and JSON-able facts."""
    tensors: dict[str, Tensor] = {}
    optimizer = pack(trainer.optimizer.state_dict(), "optimizer", tensors)
    for part, module in _parts(trainer).items():
        tensors |= {f"{part}.{name}": tensor for name, tensor in module.state_dict().items()}
    facts = {"optimizer": optimizer, "optimizer_type": trainer.config.optimizer.name}
    if trainer.features is not None:
        facts["teacher"] = trainer.features.teacher
    return tensors, vars(trainer.progress) | facts


def restore(trainer: Trainer, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Give a trainer the state of another.

    Raises:
        RuntimeError, TypeError, KeyError, ValueError: it is of other sizes, of another optimizer,
            or of another teacher.
    """
    for part, module in _parts(trainer).items():
        give_weights(module, _with_prefix(tensors, f"{part}."))
    own = trainer.config.optimizer.name
    found = facts.get("optimizer_type", own)
    if found != own:
        raise ValueError(f"it is of the optimizer {found!r}, not {own!r}")
    _check_teacher(trainer, facts)
    if facts.get("optimizer") is not None:
        config = trainer.config.optimizer
        chosen = {*type(config).model_fields, *getattr(config, "settings", ())}
        restore_optimizer(trainer.optimizer, facts["optimizer"], tensors, chosen)
    trainer.progress = Progress(**{name: facts[name] for name in vars(Progress())})


def check_learning(trainer: Trainer, folder: Path, saved: int) -> None:
    """Refuse weights that no longer mean anything, before they take the place of good ones.

    Args:
        trainer: Of the run; all its processes find the same.
        folder: Of the run.
        saved: The step of its checkpoint, 0 where it has none.

    Raises:
        CheckpointError: a weight is not finite in half precision, far above all that is learned.
    """
    weight = _diverged(trainer)
    if weight is None:
        return
    kept = f"The checkpoint of step {saved} is kept" if saved else "There is no checkpoint yet"
    raise CheckpointError(
        f"The run in {str(folder)!r} has diverged by step {trainer.progress.step}: {weight!r} is "
        f"not finite in half precision. {kept}: lower optimizer.learning_rate, which is "
        f"{trainer.config.optimizer.learning_rate:g}, and {'resume' if saved else 'start again'}."
    )


def _diverged(trainer: Trainer) -> str | None:
    """Name of a weight that is not finite in half precision, None where all are."""
    for part, module in _parts(trainer).items():
        learned = {name: weight.detach().half() for name, weight in module.named_parameters()}
        for name, tensor in (module.state_dict() | learned).items():
            if not tensor.isfinite().all():
                return f"{part}.{name}"
    return None


def facts_of_images(images: ImageSet) -> dict[str, Any]:
    """What tells training images from others, JSON-able."""
    shown = [images.images.shape[-1], *images.mean, *images.std]
    classes = list(images.classes)
    return {"count": len(images), "classes": classes, "shown": shown, "digest": images.digest()}


def check_same_images(
    folder: str | Path, kept: Mapping[str, Any] | None, images: ImageSet, instead: str
) -> None:
    """Refuse other training images than those that the work in a folder began with.

    Args:
        folder: The folder.
        kept: Of those images, from `facts_of_images`; None where nobody noted them, so that any
            will do.
        images: What it shall go on with.
        instead: What to write instead, in a sentence.

    Raises:
        ArgumentError: they differ.
    """
    now = facts_of_images(images)
    if kept is not None and kept["digest"] != now["digest"]:
        raise ArgumentError(
            f"{str(folder)!r} was begun with {_described(kept)}; what came are {_described(now)}. "
            f"{instead}"
        )


def check_run_images(folder: str | Path, facts: Mapping[str, Any], images: ImageSet) -> None:
    """Refuse other training images than those that a run's state, with these facts, is of.

    Where its config was changed to another size or normalization, they cannot be compared, and
    classes of the same names will do.

    Raises:
        ArgumentError: they differ.
    """
    kept, now = facts.get("trained_on"), facts_of_images(images)
    if kept is None or (kept["classes"] == now["classes"] and kept["shown"] != now["shown"]):
        return
    weights = str(Path(folder) / LAST_FOLDER)
    anew = f"start a run from its weights in another folder: --set initial={weights}"
    if len(kept["classes"]) != len(now["classes"]):
        anew = f"adapt its weights to these: ghnqat-train adapt --from {weights}"
    instead = f"Go on with the data that it was begun with, or {anew}"
    check_same_images(folder, kept, images, instead)


def check_run_teacher(
    folder: str | Path, facts: Mapping[str, Any], config: RunConfig, images: ImageSet
) -> None:
    """Refuse another teacher than the one that a run's state, with these facts, is of.

    Raises:
        ArgumentError, CheckpointError: so it is, or the teacher cannot be read.
    """
    if config.hints is None or "teacher" not in facts:
        return
    own = teacher_digest(load_teacher(config.hints.teacher, images.classes))
    if reason := _other_teacher(own, facts["teacher"]):
        raise CheckpointError(f"The state in {str(folder)!r} does not fit its config: {reason}.")


def _described(facts: Mapping[str, Any]) -> str:
    names = ", ".join(facts["classes"])
    names = names if len(names) <= _MOST_OF_NAMES else f"{names[:_MOST_OF_NAMES]}…"
    size = facts["shown"][0]
    return (
        f"{facts['count']:,} images of {size} × {size} pixels and {len(facts['classes'])} classes "
        f"({names}; digest {facts['digest']})"
    )


def _check_teacher(trainer: Trainer, facts: dict[str, Any]) -> None:
    """The projections of a run mean something for one teacher alone."""
    own = None if trainer.features is None else trainer.features.teacher
    found = facts.get("teacher") or own
    if own is not None and (reason := _other_teacher(own, found)):
        raise ValueError(reason)


def _other_teacher(own: str, found: str | None) -> str | None:
    """What is wrong with hints of the teacher `own`, where a state is of `found`."""
    if own == found:
        return None
    return (
        f"its hints are of the teacher {found:.8}…, not of {own:.8}…; hints.teacher must name the "
        f"file that it was trained with"
    )


def _parts(trainer: Trainer) -> dict[str, nn.Module]:
    """What learns, and its average, by the names that a state gives them."""
    parts = {"model": trainer.model, "average": trainer.average, "hints": trainer.hints}
    return {part: module for part, module in parts.items() if module is not None}


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
