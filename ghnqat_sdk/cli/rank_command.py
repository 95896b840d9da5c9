"""`ghnqat rank`: which networks are worth training, without training any."""

from __future__ import annotations

from argparse import Namespace
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

from ghnqat_sdk.choices import RankingOrder
from ghnqat_sdk.cli.arguments import MOST_IMAGES, SPACES, Real, Whole, model_name
from ghnqat_sdk.cli.console import add_command, add_json_flag
from ghnqat_sdk.cli.models import (
    add_bits_by_layer,
    add_hypernetwork,
    build_model,
    check_prediction,
    chosen_split,
    first_networks,
    loaded_hypernetwork,
    open_space,
)
from ghnqat_sdk.cli.paths import (
    FILE,
    IMAGES,
    PICTURE,
    check_image_folder,
    check_output_file,
)
from ghnqat_sdk.cli.words import OF_BITS, said
from ghnqat_sdk.errors import ArgumentError, GhnqatError
from ghnqat_sdk.files import replacing
from ghnqat_sdk.plotting import require_matplotlib
from ghnqat_sdk.progress import working

if TYPE_CHECKING:
    from ghnqat_sdk.search.ranked import Ranking

_NETWORKS = 20
_MOST_NETWORKS = 10_000
_MOST_COST = 1e15


def add_rank(commands: Any) -> None:
    """Add `ghnqat rank` to the parser's commands."""
    what = "rank networks by their accuracy with predicted parameters, without training any"
    parser = add_command(commands, "rank", what, check=_check, run=_rank)
    _add_networks(parser)
    add_hypernetwork(parser)
    add_bits_by_layer(parser)
    parser.add_argument(
        "--data", type=IMAGES, required=True, help="image folder (train/<class>/*.jpg)"
    )
    parser.add_argument(
        "--size",
        type=Whole(8, 512),
        help="side of the images (default: that of the hypernetwork's, 32 of the one that ships)",
    )
    parser.add_argument(
        "--images",
        type=Whole(2, MOST_IMAGES),
        default=1000,
        help="how many to calibrate on, and as many of the held-out ones to measure on, or all "
        "there are (default: 1000)",
    )
    parser.add_argument("--seed", type=Whole(0, 2**63 - 1), default=0, help="chooses the images")
    _add_limits(parser)
    parser.add_argument(
        "--by",
        choices=get_args(RankingOrder),
        default="accuracy",
        help="accuracy with predicted parameters, or how far a short training will come, told from "
        "them and the norm of the first gradient (default: accuracy)",
    )
    parser.add_argument(
        "--processes", type=Whole(1, 256), default=1, help="that work at once (default: 1)"
    )
    parser.add_argument(
        "--results", type=FILE, help="JSON lines of what is known; an interrupted call goes on"
    )
    parser.add_argument("--plot", type=PICTURE, help="draw accuracy over multiply-accumulates")
    add_json_flag(parser)


def _add_limits(parser: Any) -> None:
    parser.add_argument(
        "--max-macs",
        type=Real(1, _MOST_COST),
        help="leave out networks of more multiply-accumulates, and name the Pareto front",
    )
    parser.add_argument(
        "--max-weight-bits",
        type=Real(1, _MOST_COST),
        help="the same for the bits of all weights together",
    )
    parser.add_argument(
        "--max-latency-ms",
        type=Real(1e-6, _MOST_COST),
        help="the same for milliseconds of the float network for one image, measured here",
    )


def _add_networks(parser: Any) -> None:
    parser.add_argument(
        "model",
        type=model_name,
        nargs="*",
        default=[],
        help="torchvision models, MODULE:CALLABLE, or architectures (families/test/7)",
    )
    parser.add_argument("--space", choices=tuple(SPACES), help="networks of a space beside these")
    every = tuple(dict.fromkeys(split for splits in SPACES.values() for split in splits))
    parser.add_argument("--split", choices=every, help="of the space (default: its first)")
    parser.add_argument(
        "--count",
        type=Whole(1, _MOST_NETWORKS),
        help=f"how many of the space (default: {_NETWORKS})",
    )


def _check(options: Namespace) -> None:
    if not options.model and options.space is None:
        raise ArgumentError(
            "No networks. Write models (ghnqat rank resnet18 mobilenet_v2 ...) or --space families"
        )
    for option in ("split", "count"):
        given = getattr(options, option)
        if given is not None and options.space is None:
            raise ArgumentError(f"--{option} {given} is of no space. Write --space as well")
    if options.space is not None:
        options.split = chosen_split(options.space, options.split, SPACES[options.space])
    _check_names(options)
    check_prediction(options)
    check_image_folder(options.data, "train")
    for option in ("results", "plot"):
        if getattr(options, option) is not None:
            check_output_file(f"--{option}", getattr(options, option))
    if options.plot is not None:
        require_matplotlib("--plot")


def _check_names(options: Namespace) -> None:
    """Refuse a network that is named twice, or named and among those of the space."""
    names = list(options.model)
    if options.space is not None:
        numbers = range(options.count or _NETWORKS)
        names += [f"{options.space}/{options.split}/{number}" for number in numbers]
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise ArgumentError(f"{twice!r} comes twice. Write each network once")


def _rank(options: Namespace) -> None:
    ranking, count = _ranking(options)
    if options.plot is not None:
        with replacing(options.plot) as temporary:
            ranking.plot(temporary)
    if options.json:
        print(ranking.to_json())
    else:
        _print(ranking, count)
    if ranking.failed and not ranking.networks:
        raise GhnqatError(f"No network can be measured, {len(ranking.failed)} failed")


def _print(ranking: Ranking, count: int) -> None:
    print(ranking)
    print(f"accuracies are of {count:,} held-out images")
    if ranking.budget.limits:
        front = ", ".join(network.name for network in ranking.front())
        print(f"Pareto front within the budget: {front or 'no network'}")


def _ranking(options: Namespace) -> tuple[Ranking, int]:
    """With the number of images that accuracies are of."""
    from ghnqat_sdk.data import load_images_like
    from ghnqat_sdk.search.ranking import rank_architectures

    hypernetwork = loaded_hypernetwork(options)
    like = hypernetwork.config.images
    with working("loading images"):
        images, held_out = (
            load_images_like(like, options.data, split, options.size).sample(
                options.images, options.seed
            )
            for split in ("train", "val")
        )
    networks: list[Any] = [(name, build_model(name, len(images.classes))) for name in options.model]
    if options.space is not None:
        space = open_space(options.space, options.split)
        name = f"{options.space}/{options.split}"
        networks += first_networks(space, options.count or _NETWORKS, "--count", name)
    ranking = rank_architectures(
        networks,
        options.bits,
        images,
        budget={
            "macs": options.max_macs,
            "weight_bits": options.max_weight_bits,
            "latency_ms": options.max_latency_ms,
        },
        validation=held_out,
        by=options.by,
        hypernetwork=hypernetwork,
        processes=options.processes,
        results=options.results,
    )
    failed = {name: said(why, OF_BITS) for name, why in ranking.failed.items()}
    return replace(ranking, failed=failed), len(held_out)
