"""`ghnqat-train async`: go on with a run for some minutes, by processes that share its weights."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ghnqat_sdk.cli.arguments import Real, Whole
from ghnqat_sdk.cli.console import add_command, add_json_flag
from ghnqat_sdk.cli.paths import FOLDER, check_image_folder, check_output_folder
from ghnqat_sdk.cli.train_config import add_data, add_set, run_config
from ghnqat_sdk.cli.train_run import facts_in, open_run, require_run
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.files import as_json
from ghnqat_sdk.progress import working
from ghnqat_sdk.training.folder import LAST_FOLDER

if TYPE_CHECKING:
    from ghnqat_sdk.training.asynchronous.run import Standing
    from ghnqat_sdk.training.reports import Progress
    from ghnqat_sdk.training.run import Run

MOST_MINUTES = 1e5
MOST_PROCESSES = 1024
MOST_NETWORKS = 4096


def add_async(commands: Any) -> None:
    """Add `ghnqat-train async` to the parser's commands."""
    command = add_command(
        commands,
        "async",
        "continue a run by processes that wait for none",
        check=_check,
        run=_run,
        description="Continue a stable run for some minutes by processes on this machine that "
        "share its weights and do not wait for each other, on a GPU if compute.device says so. "
        "With --decay the learning rate falls to zero and hints fade in the last share of the "
        "time: the run keeps what was before, and --output gets the weights to use.",
    )
    command.add_argument("run", type=FOLDER, metavar="RUN", help="folder of the run")
    add_data(command)
    command.add_argument("--minutes", type=Real(0.01, MOST_MINUTES), required=True)
    command.add_argument(
        "--processes",
        type=Whole(1, MOST_PROCESSES),
        default=os.cpu_count() or 1,
        help="of one thread each (default: one for each core)",
    )
    command.add_argument(
        "--gather",
        type=Whole(1, MOST_NETWORKS),
        help="networks of a step (default: sampling.meta_batch for each process)",
    )
    command.add_argument("--decay", type=Real(0, 1), default=0.0, help="share of the minutes")
    command.add_argument(
        "--output", type=FOLDER, metavar="FOLDER", help="of the decayed weights, with --decay"
    )
    add_set(command)
    add_json_flag(command)


def _check(options: Namespace) -> None:
    require_run(options.run, "go on with")
    if bool(options.decay) != (options.output is not None):
        raise ArgumentError(
            "--decay and --output belong together: the share of the minutes in which the rate "
            "falls, and the folder of the weights that come out. Write both, or none of them"
        )
    if options.output is not None:
        check_output_folder("--output", options.output)
        if Path(options.output).resolve() == Path(options.run).resolve():
            raise ArgumentError("--output is the folder of the run. Choose another one")
    check_image_folder(options.data, "train")


def _run(options: Namespace) -> None:
    with working("loading torch"):
        from ghnqat_sdk.hypernetwork.pretrained import save_pretrained
        from ghnqat_sdk.training.process import settle_process

        settle_process()
    run = _opened(options)
    standing = _follow(run, options)
    if options.output is None:
        figures = run.validate()
        run.save()
    else:
        save_pretrained(run.trainer.averaged(), options.output)
        figures = run.validation.figures(run.trainer.averaged(), run.processes)
    _say(run, standing, figures, options)


def _opened(options: Namespace) -> Run:
    from ghnqat_sdk.training.distributed import Processes
    from ghnqat_sdk.training.initial import check_parts

    source = {"output": options.run, "config": None, "recipe": None, "set": options.set}
    config = run_config(Namespace(**source), resume=True)
    check_parts(config)
    return open_run(config, options.run, options.data, facts_in(options.run), Processes())


def _follow(run: Run, options: Namespace) -> Standing:
    """Train; gives how far it is in the end."""
    from tqdm import tqdm

    from ghnqat_sdk.training.asynchronous.run import train_together

    together = train_together(
        run, options.minutes, options.processes, decay=options.decay, gather=options.gather
    )
    bar_format = "{percentage:3.0f}%|{bar}| {postfix}"
    with tqdm(total=60 * options.minutes, bar_format=bar_format, disable=None) as bar:
        for standing in together:
            bar.update(min(standing.seconds, bar.total) - bar.n)
            bar.set_postfix(
                step=standing.step,
                images=f"{standing.images / 1e6:.2f}M",
                loss=f"{standing.loss:.3g}",
                refresh=False,
            )
    return standing


def _say(run: Run, standing: Standing, figures: dict[str, float], options: Namespace) -> None:
    """Where the run stands, and what was validated: the same, or a branch that went on."""
    validated = standing if options.output else run.progress
    if options.json:
        of_branch = {"step": validated.step, "images": validated.images, "validation": figures}
        facts = {"branch": of_branch} if options.output else {"validation": figures}
        print(as_json(vars(run.progress) | facts))
        return
    mean = f"validation {sum(figures.values()) / len(figures):.1f} %"
    print(f"{run.folder}: {_extent(run.progress)}")
    print(f"{options.output or run.folder / LAST_FOLDER}: {_extent(validated)}, {mean}")


def _extent(standing: Standing | Progress) -> str:
    return f"{standing.step} steps, {standing.images / 1e6:.2f} M images"
