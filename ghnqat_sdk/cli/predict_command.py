"""`ghnqat predict`: a model's parameters into a file, with a head for the classes of a folder if
asked."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING, Any, get_args

from ghnqat_sdk.choices import HeadChoice
from ghnqat_sdk.cli.arguments import MOST_IMAGES, Whole
from ghnqat_sdk.cli.console import add_command, add_json_flag
from ghnqat_sdk.cli.models import (
    add_bits,
    add_hypernetwork,
    add_model,
    build_model,
    check_prediction,
    loaded_hypernetwork,
    predicted,
    traced,
)
from ghnqat_sdk.cli.paths import (
    IMAGES,
    TENSORS,
    check_image_folder,
    check_output_file,
    count_classes,
)
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.files import as_json, replacing
from ghnqat_sdk.progress import working

if TYPE_CHECKING:
    from torch import nn

    from ghnqat_sdk.data import ImageSet
    from ghnqat_sdk.heads import HeadReport
    from ghnqat_sdk.prediction import PredictionReport

SMALLEST, LARGEST = 8, 1024
_IMAGES = 4000


def add_predict(commands: Any) -> None:
    """Add `ghnqat predict` to the parser's commands."""
    what = "predict a model's parameters and save them"
    parser = add_command(commands, "predict", what, check=_check, run=_predict)
    add_model(parser)
    add_hypernetwork(parser)
    add_bits(parser)
    parser.add_argument(
        "--head",
        choices=get_args(HeadChoice),
        default="auto",
        help="what happens to classifiers: predicted where the number of classes is the "
        "hypernetwork's, always, never, or fitted to the images in --data (default: auto)",
    )
    parser.add_argument(
        "--data",
        type=IMAGES,
        help="image folder for --head fit, train/<class>/*.jpg; the model gets its classes",
    )
    parser.add_argument(
        "--size",
        type=Whole(SMALLEST, LARGEST),
        help="side in pixels that the images in --data are resized to (default: that of the "
        "hypernetwork's)",
    )
    parser.add_argument(
        "--images",
        type=Whole(1, MOST_IMAGES),
        help="most images of --data, drawn at random (default: 4000)",
    )
    parser.add_argument(
        "--output",
        type=TENSORS,
        metavar="FILE",
        help="write the predicted state_dict to this safetensors file",
    )
    add_json_flag(parser)


def _check(options: Namespace) -> None:
    check_prediction(options)
    if (options.head == "fit") != (options.data is not None):
        raise ArgumentError(
            f"--head {options.head} "
            + (
                "needs images. Add --data FOLDER"
                if options.data is None
                else "takes no --data. Write --head fit"
            )
        )
    for option in ("size", "images"):
        if getattr(options, option) is not None and options.data is None:
            raise ArgumentError(f"--{option} is of --data, and there is none. Add --data FOLDER")
    if options.data is not None:
        check_image_folder(options.data, "train")
        _check_classes(options)
    options.images = options.images or _IMAGES
    if options.output is not None:
        check_output_file("--output", options.output)


def _check_classes(options: Namespace) -> None:
    found = count_classes(options.data)
    if options.classes not in (None, found):
        raise ArgumentError(
            f"--classes {options.classes} is not the number of classes in --data {options.data!r}. "
            f"Write --classes {found}, or leave it out"
        )


def _predict(options: Namespace) -> None:
    from ghnqat_sdk.heads.fitting import fit_head_to_images
    from ghnqat_sdk.prediction import prediction_report

    hypernetwork = loaded_hypernetwork(options)
    images = None
    if options.data is not None:
        images = _images(options, options.size or hypernetwork.config.images.size)
    asked, otherwise = options.classes is not None, hypernetwork.config.num_classes
    model = build_model(options.model, _classes(options), asked=asked, otherwise=otherwise)
    if options.input is not None:
        traced(model, options.input)  # whose errors speak of a command line
    qmodel = predicted(options, model, hypernetwork, options.head if images is None else "keep")
    heads = None if images is None else fit_head_to_images(qmodel, images)
    if options.output is not None:
        _save(qmodel, options.output)
    _print(options, prediction_report(qmodel), heads)


def _classes(options: Namespace) -> int | None:
    """As asked for, else those of the folder."""
    asked: int | None = options.classes
    return count_classes(options.data) if asked is None and options.data is not None else asked


def _images(options: Namespace, size: int) -> ImageSet:
    """Those to fit the head to, refused before anything is predicted where none can be fitted."""
    from ghnqat_sdk.data import load_images
    from ghnqat_sdk.heads.classifiers import HELD_OUT_EACH

    with working("loading images"):
        every = load_images(options.data, "train", size, own_statistics=True)
    images = every.sample(options.images, seed=0)
    if int((images.labels.bincount() >= HELD_OUT_EACH).sum()) < 2:
        fewer = len(images) < len(every)
        advice = "Write a larger --images" if fewer else "Put more images there"
        raise ArgumentError(
            f"--head fit needs at least {HELD_OUT_EACH} images of each of two or more classes, and "
            f"{len(images)} images of --data have fewer. {advice}"
        )
    return images


def _print(options: Namespace, report: PredictionReport, heads: HeadReport | None) -> None:
    if options.json:
        names = ("model", "bits", "first_last_bits", "output")
        facts = {name: getattr(options, name) for name in names}
        fitted = {} if heads is None else {"heads": list(map(vars, heads.heads))}
        print(as_json(facts | vars(report) | fitted))
        return
    print(report)
    if heads is not None:
        print(heads)
    if options.output is not None:
        print(f"saved to {options.output}")


def _save(qmodel: nn.Module, path: str) -> None:
    from safetensors.torch import save_model

    with replacing(path) as temporary:
        save_model(qmodel, str(temporary))
