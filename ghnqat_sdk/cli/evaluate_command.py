"""`ghnqat evaluate`: accuracy of predicted networks of a space."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ghnqat_sdk.cli.arguments import SPACES, Whole, bits_pair, device
from ghnqat_sdk.cli.console import add_command
from ghnqat_sdk.cli.models import (
    add_hypernetwork,
    check_device,
    check_prediction,
    hub_names,
    open_space,
)
from ghnqat_sdk.cli.paths import FILE, IMAGES, check_image_folder, check_output_file, replacing
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.progress import progress_bar, working

if TYPE_CHECKING:
    from ghnqat_sdk.training.evaluation import Evaluation

MOST_GRAPHS = 500
MOST_IMAGES = 1_000_000
_SPLITS = {space: tuple(s for s in splits if s != "train") for space, splits in SPACES.items()}


def add_evaluate(commands: Any) -> None:
    """The command and its options."""
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
        choices=("paper", "calibrated"),
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
    parser.add_argument(
        "--bits",
        type=bits_pair,
        default="4,4",
        metavar="W,A",
        help="2 to 8 bits, or 32 for float (default: 4,4)",
    )
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
    splits = _SPLITS[options.space]
    if options.split is None:
        options.split = splits[0]
    if options.split not in splits:
        raise ArgumentError(
            f"--split {options.split} is not of {options.space}. Write one of {', '.join(splits)}"
        )
    read = ["val" if options.split == "val" else "test"]
    check_image_folder(options.data, *read, *(["train"] * (options.protocol == "calibrated")))
    check_prediction(options)
    if options.json not in (None, "-"):
        check_output_file("--json", options.json)


def _evaluate(options: Namespace) -> None:
    with working("loading torch"):
        space = open_space(options.space, options.split)
    check_device(options.device)
    if options.graphs > len(space):
        raise ArgumentError(
            f"--graphs {options.graphs} is more than {options.space}/{options.split} has. Write at "
            f"most {len(space)}"
        )
    count, result = _evaluation(options, space)
    names = ("hypernetwork", "space", "graphs", "protocol", "seed", "split", "bits")
    facts = {name: getattr(options, name) for name in names} | {"images": count}
    facts["families"] = [space[index].family for index in range(options.graphs)]
    text = json.dumps(facts | result.as_dict(), indent=2)
    if options.json == "-":
        print(text)
        return
    if options.json is not None:
        with replacing(options.json) as temporary:
            Path(temporary).write_text(text + "\n")
    weight, activation = options.bits
    networks = f"{options.space} {options.split}, W{weight}/A{activation}, {options.graphs} graphs"
    print(f"{networks}, {count} images, {options.protocol} protocol")
    print(f"top-1 {result.top1}\ntop-5 {result.top5}   (mean ± standard error; max, percent)")


def _evaluation(options: Namespace, space: Any) -> tuple[int, Evaluation]:
    """Number of images, and the accuracies on them."""
    from ghnqat_sdk.data import load_images
    from ghnqat_sdk.hypernetwork.pretrained import load_pretrained
    from ghnqat_sdk.training.evaluation import calibration_batches, evaluate_graphs

    with working("loading the hypernetwork"), hub_names():
        hypernetwork = load_pretrained(options.hypernetwork, revision=options.revision)
    with working("loading images"):
        split = "val" if options.split == "val" else "test"
        images = load_images(options.data, split).sample(options.images, options.seed)
        calibrated = options.protocol == "calibrated"
        batches = calibration_batches(options.data, options.seed) if calibrated else None
    what = "{} W{}/A{}".format(options.split, *options.bits)
    result = evaluate_graphs(
        hypernetwork,
        [space[index] for index in range(options.graphs)],
        images,
        options.bits,
        protocol=options.protocol,
        calibration=batches,
        device=options.device,
        progress=lambda items: progress_bar(items, what, options.graphs),
    )
    return len(images), result
