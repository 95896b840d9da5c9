"""The console script `ghnqat-train`: train a teacher, train a hypernetwork, let it decay, adapt one
to other images; recipes and data."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from ghnqat_sdk.cli.arguments import recipe_name
from ghnqat_sdk.cli.console import (
    Parser,
    add_command,
    add_json_flag,
    new_parser,
    nothing_to_check,
    run_command,
)
from ghnqat_sdk.cli.paths import FOLDER, check_output_folder
from ghnqat_sdk.cli.train_adapt import add_adapt
from ghnqat_sdk.cli.train_async import add_async
from ghnqat_sdk.cli.train_run import add_decay, add_run
from ghnqat_sdk.cli.train_teacher import add_teacher
from ghnqat_sdk.files import as_json


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `ghnqat-train`; returns the exit status."""
    return run_command(make_parser(), arguments)


def make_parser() -> Parser:
    """The parser of `ghnqat-train` with all its commands."""
    parser, commands = new_parser("ghnqat-train", "Train graph hypernetworks (GHN-QAT).")
    add_run(commands)
    add_decay(commands)
    add_async(commands)
    add_teacher(commands)
    add_adapt(commands)
    _add_recipes(commands)
    _add_download(commands)
    return parser


def _add_recipes(commands: Any) -> None:
    what = "list the recipes, or print one as a config file"
    recipes = add_command(commands, "recipes", what, check=nothing_to_check, run=_recipes)
    recipes.add_argument("name", nargs="?", type=recipe_name, help="print this recipe as JSON")
    add_json_flag(recipes)


def _add_download(commands: Any) -> None:
    what = "download CIFAR-10 (170 MB) with torchvision"
    download = add_command(commands, "download", what, check=_check_download, run=_download)
    download.add_argument("--data", type=FOLDER, required=True, help="folder to put it in")
    add_json_flag(download)


def _recipes(options: Namespace) -> None:
    from ghnqat_sdk.training.config import load_recipe
    from ghnqat_sdk.training.folder import recipe_names

    if options.name:
        print(load_recipe(options.name).model_dump_json(indent=2))
        return
    listed = {name: load_recipe(name).description for name in recipe_names()}
    if options.json:
        print(as_json(listed))
        return
    for name, description in listed.items():
        print(f"{name:18} {description}")


def _check_download(options: Namespace) -> None:
    check_output_folder("--data", options.data)


def _download(options: Namespace) -> None:
    from ghnqat_sdk.data import download_cifar10

    download_cifar10(options.data)
    print(as_json({"data": options.data}) if options.json else f"CIFAR-10 is in {options.data}")


if __name__ == "__main__":
    sys.exit(main())
