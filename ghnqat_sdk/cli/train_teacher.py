"""`ghnqat-train teacher`: the network whose features are hints."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ghnqat_sdk.cli.arguments import Whole
from ghnqat_sdk.cli.console import add_command, add_json_flag
from ghnqat_sdk.cli.paths import (
    FILE,
    check_image_folder,
    check_input_file,
    check_output_file,
)
from ghnqat_sdk.cli.train_config import add_data
from ghnqat_sdk.cli.train_run import MOST_THREADS
from ghnqat_sdk.errors import ArgumentError, problems
from ghnqat_sdk.files import as_json
from ghnqat_sdk.progress import working

if TYPE_CHECKING:
    from ghnqat_sdk.training.teacher import TeacherConfig


def add_teacher(commands: Any) -> None:
    """Add `ghnqat-train teacher` to the parser's commands."""
    what = "train the teacher whose features are hints"
    teacher = add_command(commands, "teacher", what, check=_check, run=_teacher)
    add_data(teacher)
    teacher.add_argument(
        "--output",
        type=FILE,
        required=True,
        metavar="FILE",
        help="file to write, as teacher.safetensors",
    )
    teacher.add_argument("--config", type=FILE, metavar="FILE", help="a TeacherConfig as JSON")
    teacher.add_argument(
        "--threads",
        type=Whole(0, MOST_THREADS),
        default=0,
        help="CPU threads, 0 for all (default: 0)",
    )
    add_json_flag(teacher)


def _check(options: Namespace) -> None:
    check_image_folder(options.data, "train")
    check_output_file("--output", options.output)
    if options.config is not None:
        check_input_file("--config", options.config)


def _teacher(options: Namespace) -> None:
    import torch

    from ghnqat_sdk.training.teacher import save_teacher, train_teacher

    config = _config(options.config)
    if options.threads:
        torch.set_num_threads(options.threads)
    with working("loading images"):
        train, validation = (config.load(options.data, split) for split in ("train", "val"))
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
    if options.json:
        print(as_json({"output": options.output, "accuracy": reached}))
    else:
        print(f"{options.output}: {reached:.2f} % of validation images")


def _config(path: str | None) -> TeacherConfig:
    from pydantic import ValidationError

    from ghnqat_sdk.training.teacher import TeacherConfig

    if path is None:
        return TeacherConfig()
    try:
        return TeacherConfig.model_validate_json(Path(path).read_bytes())
    except ValidationError as error:
        raise ArgumentError(
            f"--config {path!r} is no TeacherConfig: {problems(error)}. Write, for example, "
            f'{{"epochs": 20}}'
        ) from error
