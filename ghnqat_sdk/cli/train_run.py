"""`ghnqat-train run` and `decay`: train a hypernetwork, continue, branch off."""

from __future__ import annotations

import math
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ghnqat_sdk.cli.arguments import Real, Whole, recipe_name
from ghnqat_sdk.cli.console import add_command, add_json_flag
from ghnqat_sdk.cli.paths import (
    FILE,
    FOLDER,
    check_image_folder,
    check_input_file,
    check_output_folder,
)
from ghnqat_sdk.cli.train_config import (
    add_data,
    add_set,
    check_has_config,
    run_config,
    was_restarted,
)
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.files import as_json
from ghnqat_sdk.progress import working
from ghnqat_sdk.training.folder import CHECKPOINT_FILE, RUN_FILE

if TYPE_CHECKING:
    from ghnqat_sdk.training.config import RunConfig
    from ghnqat_sdk.training.distributed import Processes
    from ghnqat_sdk.training.reports import Progress, StepReport
    from ghnqat_sdk.training.run import Run

MOST_STEPS = 1_000_000_000
MOST_THREADS = 1024
_STEPS_BETWEEN_SPARINGS = 50


def add_run(commands: Any) -> None:
    """Add `ghnqat-train run` to the parser's commands."""
    run = add_command(
        commands,
        "run",
        "train, or continue a run",
        check=_check_run,
        run=_run,
        description="Train until --steps are done, or continue a run to more of them. With "
        "torchrun, every process trains on architectures of its own: torchrun --nproc-per-node 2 "
        "-m ghnqat_sdk.cli.train run ...",
    )
    _add_training(
        run, "folder of the run", "optimizer steps that are done at the end, of a resumed run too"
    )
    source = run.add_mutually_exclusive_group()
    source.add_argument(
        "--recipe",
        type=recipe_name,
        help="a name that `ghnqat-train recipes` lists (default: all-bits)",
    )
    source.add_argument("--config", type=FILE, metavar="FILE", help="a run's config as JSON")
    add_set(run)
    run.add_argument("--resume", action="store_true", help="continue the run in --output")


def add_decay(commands: Any) -> None:
    """Add `ghnqat-train decay` to the parser's commands."""
    decay = add_command(
        commands,
        "decay",
        "branch off a stable run and let its rate fall to zero",
        check=_check_decay,
        run=_decay,
        description="Copy the state of a stable run, and train it on while the learning rate falls "
        "to zero and hints fade. The stable run stays as it is.",
    )
    decay.add_argument("run", type=FOLDER, metavar="RUN", help="folder of the stable run")
    _add_training(
        decay, "folder of the branch; continues one that is there", "steps until the rate is zero"
    )
    decay.add_argument(
        "--hints",
        type=Real(0, 1),
        default=0.5,
        help="share of them in which hints fade (default: 0.5)",
    )


def _add_training(parser: ArgumentParser, output: str, steps: str) -> None:
    add_data(parser)
    parser.add_argument("--output", type=FOLDER, required=True, metavar="FOLDER", help=output)
    parser.add_argument("--steps", type=Whole(1, MOST_STEPS), required=True, help=steps)
    parser.add_argument(
        "--threads",
        type=Whole(1, MOST_THREADS),
        default=1,
        help="CPU threads of each process (default: 1)",
    )
    add_json_flag(parser)


def _check_run(options: Namespace) -> None:
    started = _holds_state(options.output)
    if options.resume and not started:
        raise ArgumentError(
            f"--output {options.output!r} holds no run to resume. Leave out --resume to start one "
            "there"
        )
    if started and not _resumes(options):
        raise ArgumentError(
            f"--output {options.output!r} holds a run already. Add --resume, or choose another "
            "folder"
        )
    if options.config is not None:
        check_input_file("--config", options.config)
    _check_training(options)


def _check_decay(options: Namespace) -> None:
    if not Path(options.output, RUN_FILE).exists():
        require_run(options.run, "branch off")
    _check_training(options)


def require_run(folder: str, purpose: str) -> None:
    """Refuse a RUN that is none.

    Raises:
        ArgumentError: so it is, or its config has been lost.
    """
    check_has_config(folder)
    if not _holds_state(folder):
        raise ArgumentError(
            f"RUN {folder!r} holds no run to {purpose}. Train its first steps: ghnqat-train run "
            f"--output {folder} --steps 1000"
        )


def _check_training(options: Namespace) -> None:
    check_image_folder(options.data, "train")
    check_output_folder("--output", options.output)


def _holds_state(folder: str) -> bool:
    return Path(folder, CHECKPOINT_FILE).is_file()


def _resumes(options: Namespace) -> bool:
    return options.resume or was_restarted()


def _run(options: Namespace) -> None:
    with working("loading torch"):
        config = run_config(options, _resumes(options))
    if config.decay is not None and options.steps > config.decay.start + config.decay.steps:
        raise ArgumentError(
            f"The branch in {options.output!r} has decayed after step "
            f"{config.decay.start + config.decay.steps}, and learns nothing up to {options.steps}. "
            "Go on with its stable run, or start one from its weights in another folder: "
            f"--set initial={options.output}/last"
        )
    advice = f"and --steps is {options.steps}. Write a larger number to go on"
    _train(config, options, options.steps, advice)


def _decay(options: Namespace) -> None:
    from ghnqat_sdk.training.branch import branch, check_branch
    from ghnqat_sdk.training.distributed import Processes

    saved = Path(options.output) / RUN_FILE
    processes = Processes.from_environment()
    if processes.rank == 0 and not saved.exists():
        _check_images(options)
        branch(options.run, options.output, options.steps, options.hints)
    processes.wait()
    config, decay = check_branch(options.run, options.output, options.steps, options.hints)
    last = decay.start + decay.steps
    _train(config, options, last, "the last of its decay. Choose another --output for another one")


def _check_images(options: Namespace) -> None:
    """Before a branch is made, which would be gone on with."""
    from ghnqat_sdk.training.config import load_config
    from ghnqat_sdk.training.run import check_images

    config = load_config(Path(options.run) / RUN_FILE)
    with working("loading images"):
        train = config.data.load(options.data, "train")
    check_images(options.run, config, train)


def _train(config: RunConfig, options: Namespace, steps: int, advice: str) -> None:
    """Train until `steps` are done; `advice` is for those who have them already."""
    import torch

    from ghnqat_sdk.training.distributed import Processes
    from ghnqat_sdk.training.initial import check_parts
    from ghnqat_sdk.training.process import settle_process

    facts = _checked_facts(options.output, steps, advice)
    settle_process()
    check_parts(config)
    torch.set_num_threads(options.threads)
    processes = Processes.from_environment()
    try:
        run = open_run(config, options.output, options.data, facts, processes)
        _follow(run, steps, options.json)
    finally:
        processes.leave()


def open_run(
    config: RunConfig, folder: str, data: str, facts: dict[str, Any], processes: Processes
) -> Run:
    """The run in a folder, resumed where there is a state, of which `facts` are."""
    from ghnqat_sdk.training.run import Run, open_features
    from ghnqat_sdk.training.state import check_run_images, check_run_teacher

    with working("loading images and the state"):
        train, validation = (config.data.load(data, part) for part in ("train", "val"))
        # Before features of other images take the place of what is on disk.
        check_run_images(folder, facts, train)
        check_run_teacher(folder, facts, config, train)
        features = open_features(config, train, processes)
        run = Run(config, folder, train, validation, features=features, processes=processes)
        run.resume()  # which finds nothing to resume in the folder of a new run
    return run


def _checked_facts(output: str, steps: int, advice: str) -> dict[str, Any]:
    """Of the state in a folder, none where it holds none; a state of so many steps is refused."""
    facts = facts_in(output)
    done = facts.get("step", 0)
    if done >= steps:
        raise ArgumentError(f"{output!r} has done {done} steps, {advice}")
    return facts


def facts_in(folder: str) -> dict[str, Any]:
    """Of the state in a folder, none where it holds none."""
    from ghnqat_sdk.training.checkpoint import load_training_state

    state = load_training_state(Path(folder))
    return {} if state is None else state[1]


def _follow(run: Run, steps: int, for_machines: bool) -> None:
    from tqdm import tqdm

    from ghnqat_sdk.training.process import sparing_old_objects

    leader = run.processes.rank == 0
    extent = {"initial": run.progress.step, "total": steps, "unit": "step"}
    with sparing_old_objects() as spare, tqdm(**extent, disable=not leader or None) as bar:
        for report in run.run(steps):
            if report.step % _STEPS_BETWEEN_SPARINGS == 0:
                spare()
            bar.update()
            bar.set_postfix(standing(run.progress, report), refresh=False)
    if not leader:
        return
    if for_machines:
        print(as_json(vars(run.progress)))
    else:
        best = run.progress.best
        validated = f"best validation {best:.1f} %" if best >= 0 else "not validated yet"
        print(f"{run.folder}: {run.progress.step} steps, {validated}")


def standing(progress: Progress, report: StepReport) -> dict[str, str]:
    """What stands beside the bar: the loss of this step, images so far, and the best validation
    once there is one."""
    losses = sorted(one.loss for one in report.networks if math.isfinite(one.loss))
    shown = {"images": f"{progress.images / 1e6:.2f}M"}
    if losses:
        # The middle one: that of an exploding network would hide the others.
        shown = {"loss": f"{losses[len(losses) // 2]:.3g}"} | shown
    # It is negative before the first validation.
    return shown | {"best": f"{progress.best:.1f}"} if progress.best >= 0 else shown
