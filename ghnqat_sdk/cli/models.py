"""The argument `model`, and what goes with it: from words to modules."""

from __future__ import annotations

import re
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ghnqat_sdk.cli.arguments import (
    Whole,
    bit_width,
    bits_by_layer,
    bits_pair,
    hypernetwork_name,
    model_name,
    revision,
    shape,
)
from ghnqat_sdk.cli.callables import DEFAULT_CLASSES, of_callable
from ghnqat_sdk.cli.paths import check_hypernetwork
from ghnqat_sdk.cli.words import OF_BITS, advising
from ghnqat_sdk.errors import ArgumentError, CheckpointError, TraceError
from ghnqat_sdk.progress import working

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ghnqat_sdk.calls import Call
    from ghnqat_sdk.graph.graph import ComputationGraph
    from ghnqat_sdk.hypernetwork.ghn import GraphHypernetwork
    from ghnqat_sdk.training.spaces.protocol import Architecture, Space

MOST_CLASSES = 100_000
_MODEL = (
    "a torchvision model (resnet18), MODULE:CALLABLE that returns one, or an architecture of a "
    "space (deepnets/id/3, families/test/7)"
)


def add_model(parser: ArgumentParser) -> None:
    """The model, its classes and its input."""
    parser.add_argument("model", type=model_name, help=_MODEL)
    parser.add_argument(
        "--classes",
        type=Whole(1, MOST_CLASSES),
        help="that the model tells apart; a callable of your own gets them as num_classes "
        "(default: its own, else as many as the hypernetwork's)",
    )
    parser.add_argument(
        "--input",
        type=shape,
        metavar="N,C,H,W",
        help="shape of an example input, where it cannot be guessed",
    )


def add_hypernetwork(parser: ArgumentParser) -> None:
    """Which weights predict."""
    parser.add_argument(
        "--hypernetwork",
        type=hypernetwork_name,
        default="default",
        help="'default', 'hub', a folder or a Hub repo (default: default)",
    )
    parser.add_argument(
        "--revision", type=revision, help="branch, tag or commit of a Hub repo (default: main)"
    )


def add_bits(parser: ArgumentParser, default: str | None = "4,4") -> None:
    """At which bits, layer by layer if need be, and those of the first and the last."""
    add_bits_by_layer(parser, default)
    parser.add_argument(
        "--first-last-bits",
        type=bit_width,
        metavar="BITS",
        help="bits of the first and the last layers (default: --bits)",
    )


def add_bits_by_layer(parser: ArgumentParser, default: str | None = "4,4") -> None:
    """At which bits, layer by layer if need be."""
    parser.add_argument(
        "--bits",
        type=bits_by_layer,
        default=default,
        metavar="W,A",
        help="2 to 8 bits, or 32 for float; or by names of layers, the first that matches "
        f"counts: 'stem*=8,8;*=4,4' (default: {default or 'no prediction'})",
    )


def add_bits_pair(parser: ArgumentParser) -> None:
    """At which bits, one pair for all layers."""
    parser.add_argument(
        "--bits",
        type=bits_pair,
        default="4,4",
        metavar="W,A",
        help="2 to 8 bits, or 32 for float (default: 4,4)",
    )


def check_prediction(options: Namespace) -> None:
    """Refuse a hypernetwork that cannot be there."""
    check_hypernetwork("--hypernetwork", options.hypernetwork, options.revision)


def build_model(
    name: str, classes: int | None, *, asked: bool = False, otherwise: int = DEFAULT_CLASSES
) -> nn.Module:
    """The module that the argument `model` names.

    Args:
        name: As on the command line.
        classes: That it should tell apart; None for a callable's own, else `otherwise`.
        asked: Whether that is the user's wish, which a callable must not leave unheard.
        otherwise: Classes of what does not say how many it has.

    Raises:
        ArgumentError: there is none of that name, or the user's callable does not give one, or does
            not take the classes that were asked for.
    """
    with working(f"building {name}"):
        if ":" in name:
            return of_callable(name, classes, asked, otherwise)
        count = otherwise if classes is None else classes
        if "/" in name:
            space, split, index = name.split("/")
            networks = open_space(space, split)
            if int(index) >= len(networks):
                raise ArgumentError(
                    f"{name!r} is not there: networks of {space}/{split} are from 0 to "
                    f"{len(networks) - 1}. Write, for example, {space}/{split}/0"
                )
            return networks[int(index)].build(count)
        return _of_torchvision(name, count)


def open_space(name: str, split: str) -> Space:
    """A split of a space of architectures."""
    from ghnqat_sdk.training.spaces.deepnets import DeepNets
    from ghnqat_sdk.training.spaces.families import Families

    spaces: dict[str, Callable[[str], Space]] = {"deepnets": DeepNets, "families": Families}
    return spaces[name](split)


def chosen_split(space: str, split: str | None, splits: Sequence[str]) -> str:
    """The split that was asked for, else the first of those of the space.

    Raises:
        ArgumentError: it is none of them.
    """
    if split is None:
        return splits[0]
    if split not in splits:
        raise ArgumentError(f"--split {split} is not of {space}. Write one of {', '.join(splits)}")
    return split


def first_networks(space: Space, count: int, option: str, name: str) -> list[Architecture]:
    """The first networks of a split, `name`; `option` says how many.

    Raises:
        ArgumentError: it has not so many.
    """
    if count > len(space):
        raise ArgumentError(f"{option} {count} is more than {name} has. Write at most {len(space)}")
    return [space[index] for index in range(count)]


def example_of(sizes: tuple[int, ...] | None) -> Tensor | None:
    """The example input of this shape, on the meta device."""
    if sizes is None:
        return None
    import torch

    return torch.empty(sizes, device="meta")


def traced(
    model: nn.Module, sizes: tuple[int, ...] | None, source: str = "--input"
) -> tuple[ComputationGraph, Call]:
    """The graph of the model, and the inputs that it was recorded on; `source` is where their
    shape comes from.

    Raises:
        ArgumentError: it cannot be run on inputs of the shape that was given.
        TraceError: without a shape, it cannot be traced at all.
    """
    from ghnqat_sdk.advice import ONE_IMAGE
    from ghnqat_sdk.graph.trace import trace_with_call

    text = ",".join(map(str, sizes or ()))
    batch = {ONE_IMAGE: f"This is one image, without N. Write --input 2,{text}"}
    with working("tracing"):
        try:
            with advising(batch):
                return trace_with_call(model, example_of(sizes))
        except TraceError as error:
            if sizes is None:
                raise
            raise ArgumentError(f"{source} {text} does not fit the model: {error}") from error


def loaded_hypernetwork(options: Namespace) -> GraphHypernetwork:
    """The one that --hypernetwork and --revision name.

    Raises:
        ArgumentError: a Hub repo or revision that is not there.
    """
    from ghnqat_sdk.hypernetwork.pretrained import load_pretrained

    with working("loading the hypernetwork"), hub_names():
        return load_pretrained(options.hypernetwork, revision=options.revision)


def predicted(
    options: Namespace, model: nn.Module, hypernetwork: GraphHypernetwork, head: Any = "auto"
) -> nn.Module:
    """The model itself, with parameters predicted by the hypernetwork.

    Raises:
        ArgumentError: patterns of bits that fit no layer.
    """
    from ghnqat_sdk.predict import predict_quantized_params

    with working("predicting"), advising(OF_BITS):
        return predict_quantized_params(
            model,
            options.bits,
            hypernetwork=hypernetwork,
            example_inputs=example_of(options.input),
            head=head,
            first_last_bits=options.first_last_bits,
            inplace=True,
        )


@contextmanager
def hub_names() -> Iterator[None]:
    """A repo or a revision that the Hub does not have is a mistake of the user, not a failure of
    the Hub."""
    try:
        yield
    except CheckpointError as error:
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        if isinstance(error.__cause__, (RepositoryNotFoundError, RevisionNotFoundError)):
            raise ArgumentError(str(error)) from error
        raise


def check_device(name: str) -> None:
    """Refuse a device that this machine lacks.

    Raises:
        ArgumentError: so it does.
    """
    import torch

    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = re.split(r"[\n.]", str(error))[0]
        raise ArgumentError(
            f"--device {name!r} is not there: {reason}. Write --device cpu"
        ) from error


def _of_torchvision(name: str, classes: int) -> nn.Module:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise ArgumentError(
            f"{name!r} is no torchvision classifier ({', '.join(known[:4])}, …). For a model of "
            "your own, write MODULE:CALLABLE, for example my_models:make_resnet20"
        )
    model: nn.Module = models.get_model(name, weights=None, num_classes=classes)
    return model
