"""A branch of a stable run: its state in another folder, with a rate that falls to zero."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.training.checkpoint import load_training_state, save_training_state
from ghnqat_sdk.training.config import RunConfig, load_config
from ghnqat_sdk.training.folder import RUN_FILE
from ghnqat_sdk.training.reports import Progress
from ghnqat_sdk.training.run import write_config
from ghnqat_sdk.training.schedules import DecayConfig


def branch(folder: str | Path, output: str | Path, steps: int, hints: float = 0.5) -> RunConfig:
    """Copy the state of a stable run to `output`, with a rate that falls to zero in `steps` steps.

    What validates best is sought anew. The run in `folder` stays as it is and can go on.

    Raises:
        ArgumentError: no run there, one that decays already, or an output that holds a run.
        CheckpointError: a file cannot be read or written.
    """
    source = Path(folder)
    target = Path(output)
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
            f"steps={steps} and hints={hints} are no decay. Write at least one step, and a share "
            f"of 0 to 1."
        ) from error
    config = config.model_copy(update={"decay": decay})
    save_training_state(target, tensors, facts | {"best": Progress().best})
    write_config(config, target)
    return config


def check_branch(
    folder: str | Path, output: str | Path, steps: int, hints: float = 0.5
) -> tuple[RunConfig, DecayConfig]:
    """Refuse another branch in `output` than what `branch` with the same arguments makes there;
    returns the branch's config, and its decay.

    The run in `folder` may have gone on since, or be gone: then any branch will do, as where the
    state of one of both does not say which run it is of.

    Raises:
        ArgumentError: no branch, or one of another run, of other steps or hints.
        CheckpointError: a state is damaged.
    """
    config = load_config(Path(output) / RUN_FILE)
    decay = config.decay
    if decay is None:
        raise ArgumentError(
            f"{str(output)!r} holds a stable run. Choose another --output for the branch."
        )
    if (decay.steps, decay.hints) != (steps, hints):
        raise ArgumentError(
            f"{str(output)!r} holds a branch of --steps {decay.steps} --hints {decay.hints:g}; "
            f"what came are --steps {steps} --hints {hints:g}. Write the same to go on with it, or "
            f"choose another --output."
        )
    states = [load_training_state(Path(each)) for each in (folder, output)]
    run, branched = (None if state is None else state[1].get("run") for state in states)
    if None not in (run, branched) and run != branched:
        raise ArgumentError(
            f"{str(output)!r} holds a branch of another run than the one in {str(folder)!r}. Name "
            f"the run that it is of to go on with it, or choose another --output."
        )
    return config, decay
