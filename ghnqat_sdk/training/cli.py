"""The console script `ghnqat-train`: train a hypernetwork, list recipes, download CIFAR-10."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ghnqat_sdk.console import add_json_flag, run_command
from ghnqat_sdk.errors import ArgumentError

_STEPS_BETWEEN_SPARINGS = 50


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `ghnqat-train`; returns the exit status."""
    return run_command(_parser(), arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ghnqat-train", description="Train graph hypernetworks (GHN-QAT).")
    commands = parser.add_subparsers(dest="command", required=True)
    _add_run(commands)
    recipes = commands.add_parser("recipes", help="list the recipes, or print one as a config file")
    recipes.add_argument("name", nargs="?", help="print this recipe as JSON")
    recipes.set_defaults(handler=_recipes)
    download = commands.add_parser("download", help="download CIFAR-10 (170 MB) with torchvision")
    download.add_argument("--data", required=True, help="folder to put it in")
    download.set_defaults(handler=_download)
    return parser


def _add_run(commands: Any) -> None:
    run = commands.add_parser(
        "run",
        help="train, or continue a run",
        description="Train, or continue a run. With torchrun, every process trains on architectures of its own: "
        "torchrun --nproc-per-node 2 -m ghnqat_sdk.training.cli run ...",
    )
    run.add_argument("--data", required=True, help="image folder (train/<class>/*.jpg) or torchvision's CIFAR-10")
    run.add_argument("--output", required=True, help="folder of the run")
    source = run.add_mutually_exclusive_group()
    source.add_argument("--recipe", help="a name that `ghnqat-train recipes` lists (default: all-bits)")
    source.add_argument("--config", help="a run's config as JSON")
    run.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="change a field of the config")
    run.add_argument("--initial", help="weights to start from: 'default', a folder or a Hub repo id")
    run.add_argument("--resume", action="store_true", help="continue the run in --output")
    run.add_argument("--device", default="cpu", help="cpu or cuda")
    run.add_argument("--threads", type=int, default=1, help="CPU threads of each process (default: 1)")
    run.add_argument("--tensorboard", action="store_true", help="log for TensorBoard (extra: train)")
    add_json_flag(run)
    run.set_defaults(handler=_run)


def _run(options: argparse.Namespace) -> None:
    import torch

    from ghnqat_sdk.training.datasets import load_images
    from ghnqat_sdk.training.distributed import Processes
    from ghnqat_sdk.training.process import keep_compiled_convolutions, keep_freed_memory
    from ghnqat_sdk.training.trainer import Trainer

    keep_compiled_convolutions()
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    config = _config(options)
    output = Path(options.output)
    if not options.resume and (output / "checkpoint.safetensors").exists():
        raise ArgumentError(f"{options.output!r} holds a run already. Add --resume, or choose another --output.")
    processes = Processes.from_environment()
    try:
        train, validation = load_images(options.data, "train"), load_images(options.data, "val")
        trainer = Trainer(
            config,
            output,
            train,
            validation,
            processes=processes,
            device=options.device,
            initial=options.initial,
            tensorboard=options.tensorboard,
        )
        if options.resume:
            trainer.resume()
        _follow(trainer, options.json)
    finally:
        processes.leave()


def _follow(trainer: Any, as_json: bool) -> None:
    from tqdm import tqdm

    from ghnqat_sdk.training.process import sparing_old_objects

    leader = trainer.processes.rank == 0
    progress = {"initial": trainer.progress.step, "total": trainer.config.steps, "unit": "step"}
    smoothed = None
    with sparing_old_objects() as spare, tqdm(**progress, disable=not leader or None) as bar:
        for report in trainer.run():
            if trainer.progress.step % _STEPS_BETWEEN_SPARINGS == 0:
                spare()
            smoothed = report.loss if smoothed is None else 0.98 * smoothed + 0.02 * report.loss
            bar.update()
            bar.set_postfix(loss=f"{smoothed:.3f}", best=f"{trainer.progress.best:.1f}", refresh=False)
    if leader and as_json:
        print(json.dumps(vars(trainer.progress)))


def _config(options: argparse.Namespace) -> Any:
    from pydantic import ValidationError

    from ghnqat_sdk.training.config import RunConfig, make_recipe

    saved = Path(options.output) / "run.json"
    try:
        if options.config or (options.resume and saved.exists() and not options.recipe):
            config = RunConfig.model_validate_json(Path(options.config or saved).read_bytes())
        else:
            config = make_recipe(options.recipe or "all-bits")
        return RunConfig.model_validate(config.model_dump() | dict(_assignment(text) for text in options.set))
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ArgumentError(f"The config is not valid: {problems}. See: ghnqat-train recipes all-bits") from error
    except OSError as error:
        raise ArgumentError(f"The config cannot be read: {error}") from error


def _assignment(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ArgumentError(f"--set {text!r} is not FIELD=VALUE. Write, for example, --set steps=1000")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def _recipes(options: argparse.Namespace) -> None:
    from ghnqat_sdk.training.config import RECIPES, make_recipe

    if options.name:
        print(make_recipe(options.name).model_dump_json(indent=2))
        return
    for name, recipe in RECIPES.items():
        print(f"{name:18} {recipe.__doc__}")


def _download(options: argparse.Namespace) -> None:
    from ghnqat_sdk.training.datasets import download_cifar10

    download_cifar10(options.data)


if __name__ == "__main__":
    sys.exit(main())
