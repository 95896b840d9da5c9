"""What a run keeps to go on from: everything that a trainer holds, as tensors and facts."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ghnqat_sdk.training.checkpoint import pack, restore_optimizer
from ghnqat_sdk.training.reports import Progress
from ghnqat_sdk.training.trainer import Trainer


def state_of(trainer: Trainer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by name, and JSON-able facts."""
    tensors: dict[str, Tensor] = {}
    optimizer = pack(trainer.optimizer.state_dict(), "optimizer", tensors)
    parts = {"model": trainer.model, "average": trainer.average, "hints": trainer.hints}
    for part, module in parts.items():
        if module is not None:
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
    parts = {"model": trainer.model, "average": trainer.average, "hints": trainer.hints}
    for part, module in parts.items():
        if module is not None:
            module.load_state_dict(_with_prefix(tensors, f"{part}."))
    own = trainer.config.optimizer.name
    found = facts.get("optimizer_type", own)
    if found != own:
        raise ValueError(f"it is of the optimizer {found!r}, not {own!r}")
    _check_teacher(trainer, facts)
    if facts.get("optimizer") is not None:
        restore_optimizer(trainer.optimizer, facts["optimizer"], tensors)
    trainer.progress = Progress(**{name: facts[name] for name in vars(Progress())})


def _check_teacher(trainer: Trainer, facts: dict[str, Any]) -> None:
    """The projections of a run mean something for one teacher alone."""
    own = None if trainer.features is None else trainer.features.teacher
    found = facts.get("teacher", own)
    if own is not None and found != own:
        raise ValueError(
            f"its hints are of the teacher {found:.8}…, not of {own:.8}…; hints.teacher must name "
            f"the file that it was trained with"
        )


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
