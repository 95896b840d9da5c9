"""`ghnqat evaluate`: accuracy of predicted networks of a space."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, get_args

from ghnqat_sdk.choices import EvaluationProtocol
from ghnqat_sdk.cli.arguments import MOST_IMAGES, SPACES, Whole, device
from ghnqat_sdk.cli.console import add_command
from ghnqat_sdk.cli.models import (
    add_bits_pair,
    add_hypernetwork,
    check_device,
    check_prediction,
    chosen_split,
    first_networks,
    loaded_hypernetwork,
    open_space,
)
from ghnqat_sdk.cli.paths import FILE, IMAGES, check_image_folder, check_output_file
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.files import as_json, replacing
from ghnqat_sdk.progress import progress_bar, working

if TYPE_CHECKING:
    from ghnqat_sdk.training.evaluation import Evaluation
    from ghnqat_sdk.training.spaces.protocol import Architecture

MOST_GRAPHS = 500
_SPLITS = {
    space: tuple(split for split in splits if not split.endswith("train"))
    for space, splits in SPACES.items()
}


def add_evaluate(commands: Any) -> None:
    """Add `ghnqat evaluate` to the parser's commands."""
    what = "accuracy of predicted, unseen networks on real images"
    parser = add_command(commands, "evaluate", what, check=_check, run=_evaluate)
    add_hypernetwork(parser)
    _add_networks(parser)
    parser.add_argument(
        "--data",
        type=IMAGES,
        required=True,
        help="image folder (test/<class>/*.jpg) or torchvision's CIFAR-10",
    )
    parser.add_argument(
        "--images",
        type=Whole(1, MOST_IMAGES),
        default=2000,
        help="how many test images (default: 2000)",
    )
    parser.add_argument(
        "--protocol",
        choices=get_args(EvaluationProtocol),
        default="paper",
        help="batch statistics, or calibrated before (default: paper)",
    )
    parser.add_argument(
        "--seed", type=Whole(0, 2**63 - 1), default=0, help="chooses the images (default: 0)"
    )
    parser.add_argument("--device", type=device, default="cpu", help="cpu, cuda or mps")
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        type=FILE,
        metavar="FILE",
        help="print the result as JSON, or write it to FILE",
    )


def _add_networks(parser: Any) -> None:
    add_bits_pair(parser)
    parser.add_argument(
        "--space", choices=tuple(SPACES), default="deepnets", help="networks (default: deepnets)"
    )
    every = tuple(dict.fromkeys(split for splits in _SPLITS.values() for split in splits))
    parser.add_argument(
        "--split", choices=every, help="of the space (default: id of deepnets, test of families)"
    )
    parser.add_argument(
        "--graphs", type=Whole(1, MOST_GRAPHS), default=50, help="how many of them (default: 50)"
    )


def _check(options: Namespace) -> None:
    options.split = chosen_split(options.space, options.split, _SPLITS[options.space])
    check_image_folder(
        options.data, _images_for(options.split), *(["train"] * (options.protocol == "calibrated"))
    )
    check_prediction(options)
    if options.json not in (None, "-"):
        check_output_file("--json", options.json)


def _evaluate(options: Namespace) -> None:
    with working("loading torch"):
        space = open_space(options.space, options.split)
    check_device(options.device)
    name = f"{options.space}/{options.split}"
    networks = first_networks(space, options.graphs, "--graphs", name)
    count, result = _evaluation(options, networks)
    names = ("hypernetwork", "space", "graphs", "protocol", "seed", "split", "bits")
    facts = {name: getattr(options, name) for name in names} | {"images": count}
    facts["families"] = [network.family for network in networks]
    text = as_json(facts | result.as_dict(), indent=2)
    if options.json == "-":
        print(text)
        return
    if options.json is not None:
        with replacing(options.json) as temporary:
            temporary.write_text(text + "\n")
    weight, activation = options.bits
    measured = f"{options.space} {options.split}, W{weight}/A{activation}, {options.graphs} graphs"
    print(f"{measured}, {count} images, {options.protocol} protocol")
    print(f"top-1 {result.top1}\ntop-5 {result.top5}   (mean ± standard error; max, percent)")


def _check_classes(found: Sequence[str], known: Sequence[str] | None) -> None:
    """Refuse images whose labels mean something else than those that were trained on.

    Raises:
        ArgumentError: so it is.
    """
    if known is not None and tuple(found) != tuple(known):
        raise ArgumentError(
            f"The classes of --data are {', '.join(found):.80}; the hypernetwork knows "
            f"{', '.join(known):.80}, in this order. Name the folders like these"
        )


def _images_for(split: str) -> str:
    """Validation networks choose weights, and so see no test image."""
    return "val" if split.endswith("val") else "test"


def _evaluation(options: Namespace, networks: Sequence[Architecture]) -> tuple[int, Evaluation]:
    """Number of images, and the accuracies on them."""
    from ghnqat_sdk.data import load_images_like
    from ghnqat_sdk.training.evaluation import calibration_batches, evaluate_graphs

    hypernetwork = loaded_hypernetwork(options)
    with working("loading images"):
        like = hypernetwork.config.images
        images = load_images_like(like, options.data, _images_for(options.split))
        images = images.sample(options.images, options.seed)
        _check_classes(images.classes, like.classes)
        calibrated = options.protocol == "calibrated"
        batches = calibration_batches(options.data, options.seed, like=like) if calibrated else None
    what = "{} W{}/A{}".format(options.split, *options.bits)
    result = evaluate_graphs(
        hypernetwork,
        networks,
        images,
        options.bits,
        protocol=options.protocol,
        calibration=batches,
        device=options.device,
        progress=lambda items: progress_bar(items, what, options.graphs),
    )
    return len(images), result
