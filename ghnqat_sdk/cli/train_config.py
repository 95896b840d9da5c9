"""What commands of training take alike, and the config of a run: from a recipe or a file, and the
fields that the command line changes."""

from __future__ import annotations

import json
import os
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ghnqat_sdk.cli.arguments import assignment
from ghnqat_sdk.cli.paths import IMAGES, check_hypernetwork
from ghnqat_sdk.errors import ArgumentError, problems
from ghnqat_sdk.training.folder import CHECKPOINT_FILE, RUN_FILE

if TYPE_CHECKING:
    from ghnqat_sdk.training.config import RunConfig

_SEE = "See: ghnqat-train recipes all-bits"


def add_data(parser: ArgumentParser) -> None:
    """Images to train on."""
    parser.add_argument(
        "--data",
        type=IMAGES,
        required=True,
        help="image folder (train/<class>/*.jpg) or torchvision's CIFAR-10",
    )


def add_set(parser: ArgumentParser) -> None:
    """What changes fields of a run."""
    parser.add_argument(
        "--set",
        action="append",
        type=assignment,
        default=[],
        metavar="FIELD=VALUE",
        help="change a field, as sampling.meta_batch=4",
    )


def run_config(options: Namespace, resume: bool) -> RunConfig:
    """The config that the options of `run` ask for; a run that goes on keeps its own.

    Raises:
        ArgumentError: a file that holds no config, fields that are wrong, or files that it names
            and that are missing.
    """
    from pydantic import ValidationError

    from ghnqat_sdk.training.config import RunConfig, load_config, load_recipe

    saved = Path(options.output) / RUN_FILE
    if resume and not (options.config or options.recipe):
        check_has_config(options.output)
    if options.config or (resume and saved.exists() and not options.recipe):
        config = load_config(options.config or saved)
    else:
        config = load_recipe(options.recipe or "all-bits")
    fields = config.model_dump(mode="json")
    for text in options.set:
        if resume and not was_restarted() and text.startswith("initial="):
            raise ArgumentError(
                "--set initial is of a new run, and --resume goes on from the state of this one. "
                "Choose another --output for a run from other weights"
            )
        assign(fields, text)
    try:
        config = RunConfig.model_validate_json(json.dumps(fields))
    except ValidationError as error:
        raise ArgumentError(f"The config is not valid: {problems(error)}. {_SEE}") from error
    _check_files(config)
    return config


def check_has_config(folder: str) -> None:
    """Refuse the folder of a run whose config has been lost.

    Raises:
        ArgumentError: it holds a state without one.
    """
    if Path(folder, CHECKPOINT_FILE).exists() and not Path(folder, RUN_FILE).is_file():
        raise ArgumentError(
            f"{folder!r} holds the state of a run, and the {RUN_FILE} that belongs beside it is "
            f"missing. Restore it, or write it anew: ghnqat-train run --resume --config FILE"
        )


def was_restarted() -> bool:
    """Whether torchrun has started this again, as it was written, after a process was killed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def assign(fields: dict[str, Any], text: str) -> None:
    """Change one field of a nested config, as in sampling.meta_batch=4 or networks.0.share=0.5.

    Raises:
        ArgumentError: the text is not FIELD=VALUE, or there is no such place.
    """
    path, equals, value = text.partition("=")
    if not equals:
        raise ArgumentError(
            f"--set {text!r} is not FIELD=VALUE. Write, for example, --set sampling.meta_batch=4"
        )
    *way, last = path.split(".")
    place: Any = fields
    try:
        for name in way:
            place = place[_key(place, name)]
        place[_key(place, last)] = _parsed(value)
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise ArgumentError(f"--set {text!r}: there is no field {path!r}. {_SEE}") from error


def _key(place: Any, name: str) -> int | str:
    """What `name` stands for: in a list a number, counted from its beginning."""
    return range(len(place)).index(int(name)) if isinstance(place, list) else name


def _parsed(value: str) -> Any:
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


def _check_files(config: RunConfig) -> None:
    """What the config names is looked for before images are read."""
    if config.initial is not None:
        check_hypernetwork("The config's initial =", config.initial)
    if config.hints is not None and not Path(config.hints.teacher).is_file():
        raise ArgumentError(
            f"The config's hints.teacher = {config.hints.teacher!r} is no file. Train one, "
            "ghnqat-train teacher --output teacher.safetensors, or go without: --set hints=null"
        )
