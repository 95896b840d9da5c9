"""The console script `ghnqat-train`: train a teacher, train a hypernetwork, let it decay; recipes and data."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ghnqat_sdk.cli.console import add_json_flag, run_command
from ghnqat_sdk.errors import ArgumentError

if TYPE_CHECKING:
    from pydantic import ValidationError

_STEPS_BETWEEN_SPARINGS = 50


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `ghnqat-train`; returns the exit status."""
    return run_command(_parser(), arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ghnqat-train", description="Train graph hypernetworks (GHN-QAT)."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    _add_run(commands)
    _add_decay(commands)
    _add_teacher(commands)
    recipes = commands.add_parser("recipes", help="list the recipes, or print one as a config file")
    recipes.add_argument("name", nargs="?", help="print this recipe as JSON")
    add_json_flag(recipes)
    recipes.set_defaults(handler=_recipes)
    download = commands.add_parser("download", help="download CIFAR-10 (170 MB) with torchvision")
    download.add_argument("--data", required=True, help="folder to put it in")
    download.set_defaults(handler=_download)
    return parser


def _add_run(commands: Any) -> None:
    run = commands.add_parser(
        "run",
        help="train, or continue a run",
        description="Train until --steps are done, or continue a run to more of them. With torchrun, every process "
        "trains on architectures of its own: torchrun --nproc-per-node 2 -m ghnqat_sdk.cli.train run ...",
    )
    run.add_argument(
        "--data", required=True, help="image folder (train/<class>/*.jpg) or torchvision's CIFAR-10"
    )
    run.add_argument("--output", required=True, help="folder of the run")
    run.add_argument(
        "--steps", required=True, type=int, help="optimizer steps that are done at the end"
    )
    source = run.add_mutually_exclusive_group()
    source.add_argument(
        "--recipe", help="a name that `ghnqat-train recipes` lists (default: all-bits)"
    )
    source.add_argument("--config", help="a run's config as JSON")
    run.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="change a field, as sampling.meta_batch=4",
    )
    run.add_argument("--resume", action="store_true", help="continue the run in --output")
    run.add_argument(
        "--threads", type=int, default=1, help="CPU threads of each process (default: 1)"
    )
    add_json_flag(run)
    run.set_defaults(handler=_run)


def _add_decay(commands: Any) -> None:
    decay = commands.add_parser(
        "decay",
        help="branch weights that ship off a stable run",
        description="Copy the state of a stable run, and train it on while the learning rate falls to zero and hints "
        "fade. The stable run stays as it is.",
    )
    decay.add_argument("run", metavar="RUN", help="folder of the stable run")
    decay.add_argument("--data", required=True, help="the images of that run")
    decay.add_argument(
        "--output", required=True, help="folder of the branch; continues one that is there"
    )
    decay.add_argument("--steps", required=True, type=int, help="steps until the rate is zero")
    decay.add_argument(
        "--hints", type=float, default=0.5, help="share of them in which hints fade (default: 0.5)"
    )
    decay.add_argument(
        "--threads", type=int, default=1, help="CPU threads of each process (default: 1)"
    )
    add_json_flag(decay)
    decay.set_defaults(handler=_decay)


def _add_teacher(commands: Any) -> None:
    teacher = commands.add_parser("teacher", help="train the teacher whose features are hints")
    teacher.add_argument(
        "--data", required=True, help="image folder (train/<class>/*.jpg) or torchvision's CIFAR-10"
    )
    teacher.add_argument("--output", required=True, help="file to write, as teacher.safetensors")
    teacher.add_argument("--config", help="a TeacherConfig as JSON")
    teacher.add_argument("--threads", type=int, default=0, help="CPU threads (default: all)")
    teacher.set_defaults(handler=_teacher)


def _run(options: argparse.Namespace) -> None:
    output = Path(options.output)
    resume = options.resume or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    config = _config(options, resume)
    started = (output / "checkpoint.safetensors").exists()
    if started and not resume:
        raise ArgumentError(
            f"{options.output!r} holds a run already. Add --resume, or choose another --output."
        )
    if options.resume and not started:
        raise ArgumentError(
            f"{options.output!r} holds no run to resume. Leave out --resume to start one there."
        )
    _train(config, options, options.steps)


def _decay(options: argparse.Namespace) -> None:
    from ghnqat_sdk.training.config import load_config
    from ghnqat_sdk.training.distributed import Processes
    from ghnqat_sdk.training.run import RUN_FILE, branch

    _check_positive("--steps", options.steps)
    saved = Path(options.output) / RUN_FILE
    processes = Processes.from_environment()
    if processes.rank == 0 and not saved.exists():
        branch(options.run, options.output, options.steps, options.hints)
    processes.wait()
    config = load_config(saved)
    if config.decay is None:
        raise ArgumentError(
            f"{options.output!r} holds a stable run. Choose another --output for the branch."
        )
    _train(config, options, config.decay.start + config.decay.steps)


def _train(config: Any, options: argparse.Namespace, steps: int) -> None:
    import torch

    from ghnqat_sdk.training.distributed import Processes
    from ghnqat_sdk.training.process import (
        flush_denormals,
        keep_compiled_convolutions,
        keep_freed_memory,
    )
    from ghnqat_sdk.training.run import Run, open_features

    _check_positive("--steps", steps)
    _check_positive("--threads", options.threads)
    _check_steps(options.output, steps)
    keep_compiled_convolutions()
    keep_freed_memory()
    flush_denormals()
    torch.set_num_threads(options.threads)
    processes = Processes.from_environment()
    try:
        train, validation = (config.data.load(options.data, split) for split in ("train", "val"))
        features = open_features(config, train, processes)
        run = Run(config, options.output, train, validation, features=features, processes=processes)
        run.resume()
        _follow(run, steps, options.json)
    finally:
        processes.leave()


def _follow(run: Any, steps: int, as_json: bool) -> None:
    from tqdm import tqdm

    from ghnqat_sdk.training.process import sparing_old_objects

    leader = run.processes.rank == 0
    progress = {"initial": run.progress.step, "total": steps, "unit": "step"}
    with sparing_old_objects() as spare, tqdm(**progress, disable=not leader or None) as bar:
        for report in run.run(steps):
            if report.step % _STEPS_BETWEEN_SPARINGS == 0:
                spare()
            bar.update()
            bar.set_postfix(
                images=f"{run.progress.images / 1e6:.2f}M",
                best=f"{run.progress.best:.1f}",
                refresh=False,
            )
    if leader and as_json:
        print(json.dumps(vars(run.progress)))


def _teacher(options: argparse.Namespace) -> None:
    import torch
    from pydantic import ValidationError

    from ghnqat_sdk.data import load_images
    from ghnqat_sdk.training.teacher import TeacherConfig, save_teacher, train_teacher

    text = Path(options.config).read_text() if options.config else "{}"
    try:
        config = TeacherConfig.model_validate_json(text)
    except ValidationError as error:
        raise ArgumentError(
            f"{options.config!r} is no TeacherConfig: {_problems(error)}."
        ) from error
    if options.threads:
        _check_positive("--threads", options.threads)
        torch.set_num_threads(options.threads)
    train, validation = load_images(options.data, "train"), load_images(options.data, "val")
    reached = 0.0

    def report(epoch: int, accuracy: float) -> None:
        nonlocal reached
        reached = accuracy
        print(
            f"epoch {epoch} of {config.epochs}: {accuracy:.2f} % of validation images",
            file=sys.stderr,
        )

    teacher = train_teacher(config, train, validation, report=report)
    save_teacher(teacher, options.output, accuracy=reached, data=train.digest())
    print(f"{options.output}: {reached:.2f} % of validation images")


def _config(options: argparse.Namespace, resume: bool) -> Any:
    from pydantic import ValidationError

    from ghnqat_sdk.training.config import RunConfig, load_config, load_recipe

    saved = Path(options.output) / "run.json"
    if options.config or (resume and saved.exists() and not options.recipe):
        config = load_config(options.config or saved)
    else:
        config = load_recipe(options.recipe or "all-bits")
    fields = config.model_dump(mode="json")
    for text in options.set:
        _assign(fields, text)
    try:
        return RunConfig.model_validate_json(json.dumps(fields))
    except ValidationError as error:
        raise ArgumentError(
            f"The config is not valid: {_problems(error)}. See: ghnqat-train recipes all-bits"
        ) from error


def _problems(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())


def _assign(fields: dict[str, Any], text: str) -> None:
    """Change one field of a nested config, as in sampling.meta_batch=4 or networks.0.share=0.5."""
    path, equals, value = text.partition("=")
    if not equals:
        raise ArgumentError(
            f"--set {text!r} is not FIELD=VALUE. Write, for example, --set sampling.meta_batch=4"
        )
    *way, last = path.split(".")
    place: Any = fields
    try:
        for name in way:
            place = place[int(name)] if isinstance(place, list) else place[name]
        key = int(last) if isinstance(place, list) else last
        place[key] = _parsed(value)
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise ArgumentError(
            f"--set {text!r}: there is no field {path!r}. See them with: ghnqat-train recipes all-bits"
        ) from error


def _parsed(value: str) -> Any:
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


def _check_positive(option: str, value: int) -> None:
    if value < 1:
        raise ArgumentError(f"{option} {value} is too small. Write a whole number of at least 1.")


def _check_steps(output: str, steps: int) -> None:
    from ghnqat_sdk.training.checkpoint import load_training_state

    state = load_training_state(Path(output))
    done = 0 if state is None else state[1].get("step", 0)
    if done >= steps:
        raise ArgumentError(
            f"{output!r} has done {done} steps, and --steps is {steps}. Write a larger number to go on."
        )


def _recipes(options: argparse.Namespace) -> None:
    from ghnqat_sdk.training.config import load_recipe, recipe_names

    if options.name:
        print(load_recipe(options.name).model_dump_json(indent=2))
        return
    listed = {name: load_recipe(name).description for name in recipe_names()}
    if options.json:
        print(json.dumps(listed))
        return
    for name, description in listed.items():
        print(f"{name:18} {description}")


def _download(options: argparse.Namespace) -> None:
    from ghnqat_sdk.data import download_cifar10

    download_cifar10(options.data)


if __name__ == "__main__":
    sys.exit(main())
