"""`ghnqat-train adapt`: a hypernetwork for a user's own classes."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ghnqat_sdk.choices import FEWEST_IMAGES, FEWEST_OF_A_CLASS
from ghnqat_sdk.cli.arguments import Real, Whole, hypernetwork_name
from ghnqat_sdk.cli.console import add_command, add_json_flag
from ghnqat_sdk.cli.models import hub_names
from ghnqat_sdk.cli.paths import (
    FOLDER,
    IMAGES,
    check_hypernetwork,
    check_image_folder,
    check_output_folder,
)
from ghnqat_sdk.cli.train_run import MOST_THREADS
from ghnqat_sdk.files import as_json
from ghnqat_sdk.progress import working
from ghnqat_sdk.training.folder import check_unused

if TYPE_CHECKING:
    from ghnqat_sdk.data import ImageSet
    from ghnqat_sdk.training.adapt import Report, Standing

SMALLEST, LARGEST = 16, 64
MOST_IMAGES = 10_000
MOST_MINUTES = 100_000


def add_adapt(commands: Any) -> None:
    """Add `ghnqat-train adapt` to the parser's commands."""
    adapt = add_command(
        commands,
        "adapt",
        "make a hypernetwork for your own classes",
        check=_check,
        run=_adapt,
        description="Train weights that exist on, for the classes of an image folder, with a small "
        "teacher of these images. The same command goes on with what was interrupted. --output "
        "then is a hypernetwork: ghnqat predict MODEL --hypernetwork FOLDER.",
    )
    adapt.add_argument(
        "--data", type=IMAGES, required=True, help="image folder: train/<class>/*.jpg"
    )
    adapt.add_argument(
        "--output", type=FOLDER, required=True, metavar="FOLDER", help="folder of the result"
    )
    adapt.add_argument(
        "--from",
        dest="initial",
        type=hypernetwork_name,
        default="default",
        metavar="HYPERNETWORK",
        help="'default', a folder or a Hub repo to start from (default: default)",
    )
    adapt.add_argument(
        "--minutes",
        type=Real(0.01, MOST_MINUTES),
        default=30.0,
        help="that all of it takes, interruptions left out (default: 30)",
    )
    adapt.add_argument(
        "--size",
        type=Whole(SMALLEST, LARGEST),
        default=32,
        help=f"side in pixels that images are resized to, {SMALLEST} to {LARGEST} (default: 32)",
    )
    adapt.add_argument(
        "--images",
        type=Whole(FEWEST_IMAGES, 10 * MOST_IMAGES),
        default=MOST_IMAGES,
        help=f"most training images, {FEWEST_IMAGES} or more, at random (default: {MOST_IMAGES})",
    )
    adapt.add_argument(
        "--threads",
        type=Whole(0, MOST_THREADS),
        default=0,
        help="CPU threads, 0 for all (default: 0)",
    )
    add_json_flag(adapt)


def _check(options: Namespace) -> None:
    check_image_folder(options.data, "train")
    check_hypernetwork("--from", options.initial)
    check_output_folder("--output", options.output)
    check_unused(options.output)


def _adapt(options: Namespace) -> None:
    import torch

    from ghnqat_sdk.training.adapt import Adaptation, AdaptConfig
    from ghnqat_sdk.training.process import settle_process

    settle_process()
    if options.threads:
        torch.set_num_threads(options.threads)
    config = AdaptConfig(initial=options.initial, minutes=options.minutes)
    with working("loading images"):
        train, validation = _images(options)
    with _bar(60 * options.minutes) as report, hub_names():
        adaptation = Adaptation(config, options.output, train, validation, report=report)
        progress = adaptation.run().progress
    facts = {"output": options.output, "classes": len(train.classes)}
    facts["training_images"] = len(train)
    if options.json:
        print(as_json(facts | vars(progress)))
    else:
        print(
            f"{options.output}: {len(train.classes)} classes from {len(train):,} images, "
            f"{progress.step:,} steps, best validation {progress.best:.1f} %"
        )


def _images(options: Namespace) -> tuple[ImageSet, ImageSet]:
    """Training and validation images, normalized by their own mean and deviation."""
    from ghnqat_sdk.data import load_images

    train, validation = (
        load_images(options.data, split, options.size, own_statistics=True)
        for split in ("train", "val")
    )
    if len(train) > options.images:
        train = _drawn(train, options.images)
    return train, validation  # all of them in the order of the folder, as `run --resume` reads them


def _drawn(images: ImageSet, count: int) -> ImageSet:
    """Some at random, among them of each class as many as an adaptation needs."""
    import torch

    shuffled = images.sample(len(images), seed=0)
    later = torch.ones(len(shuffled), dtype=torch.int8)
    for label in shuffled.labels.unique():
        later[(shuffled.labels == label).nonzero().flatten()[:FEWEST_OF_A_CLASS]] = 0
    return shuffled.take(later.argsort(stable=True)[:count])


@contextmanager
def _bar(seconds: float) -> Iterator[Report]:
    """A bar of the minutes, with the stage before it; on terminals only."""
    from tqdm import tqdm

    form = "{desc}: {percentage:3.0f}%|{bar}| {postfix}"
    with tqdm(total=round(seconds), disable=None, bar_format=form) as bar:

        def report(standing: Standing) -> None:
            bar.set_description(standing.stage, refresh=False)
            bar.set_postfix_str(standing.detail, refresh=False)
            bar.update(min(round(standing.seconds), bar.total) - bar.n)

        yield report
