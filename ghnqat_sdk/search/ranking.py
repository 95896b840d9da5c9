"""Networks ranked by the accuracy that they have with predicted parameters, without training
any."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from ghnqat_sdk.bits import Pair, parse_bits
from ghnqat_sdk.checks import check_whole
from ghnqat_sdk.choices import RankingOrder
from ghnqat_sdk.data import ImageSet
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.hypernetwork.ghn import GraphHypernetwork
from ghnqat_sdk.hypernetwork.pretrained import DEFAULT, hypernetwork_of
from ghnqat_sdk.progress import progress_bar
from ghnqat_sdk.search.budget import Budget
from ghnqat_sdk.search.measuring import Line, Study
from ghnqat_sdk.search.processes import lines_of
from ghnqat_sdk.search.ranked import RankedNetwork, Ranking, by_promise
from ghnqat_sdk.search.results import append_line, known_lines, results_file

_PAIRS = "rank_architectures([('small', model), ...], (4, 4), images)"

_FEWEST = 3  # images of which a third is held out


def rank_architectures(
    models: Iterable[Any],
    bits: Pair | Mapping[str, Pair],
    images: ImageSet,
    *,
    budget: Mapping[str, float | None] | None = None,
    validation: ImageSet | None = None,
    by: RankingOrder = "accuracy",
    hypernetwork: str | Path | GraphHypernetwork = DEFAULT,
    processes: int = 1,
    results: str | Path | None = None,
    progress: bool = True,
) -> Ranking:
    """Rank networks by their accuracy with predicted, calibrated parameters, or by how far a short
    training of them will come.

    Where the images have other classes than the hypernetwork's, by name and order, each network's
    classifier is fitted to them (`fit_head`); otherwise it is predicted.

    Args:
        models: Pairs (name, nn.Module), which stay as they are, or architectures of a space, such
            as `Families("test")`, which are built for the classes of the images; a pair gives one
            another name.
        bits: (weight, activation) of all networks, or a mapping from patterns of layer names, as in
            `predict_quantized_params`.
        images: To calibrate with, and to fit classifiers to.
        budget: The most that one image may cost, as {"macs": 20e6, "weight_bits": 4e6,
            "latency_ms": 5}; see `RankedNetwork`. Networks beyond it are not predicted. Latencies
            are measured where they are limited, and only alone on a machine are they to be trusted.
        validation: To measure with; by default every third of `images`, which is then used for
            nothing else.
        by: "accuracy", or "training": the networks come by `RankedNetwork.promise`, which goes by
            the loss with predicted parameters and the norm of the first gradient.
        hypernetwork: As in `predict_quantized_params`.
        processes: How many work at once, each with a copy of the images.
        results: File of JSON lines, to which each network's is appended when it is known. What is
            in it for the same network, bits and images is not measured again; what failed is tried
            again.
        progress: Show a bar, on terminals only.

    Returns:
        All networks; those that cannot be measured, whatever the reason, are among its `failed`,
        and those that cost too much among its `beyond`.

    Raises:
        ArgumentError: an entry of another kind, a name given twice, bits or a budget that are none,
            no networks, `validation` of other classes, an unknown `by`, or `results` that cannot be
            written.
    """
    if by not in get_args(RankingOrder):
        raise ArgumentError(f"by={by!r} is unknown. Write by='accuracy' or by='training'.")
    limits = Budget.of(budget)
    parsed = _parsed(bits)
    named = named_entries(models)
    fitting, measured = held_out(images, validation)
    check_whole("processes", processes, 1, "processes=2")
    file = None if results is None else results_file(results)
    training = by == "training"
    study = Study(parsed, fitting, measured, hypernetwork_of(hypernetwork), limits, training)
    key = study.key()
    known = {} if file is None else known_lines(file, key)
    entries = [(name, entry, known.get(name, {})) for name, entry in named.items()]
    found = lines_of(entries, study, processes)
    lines = {}
    for line in progress_bar(found, "ranking", len(entries)) if progress else found:
        name = line["name"]
        lines[name] = line
        new = "beyond" not in line and line not in known.get(name, {}).values()
        if file is not None and new:
            append_line(file, key, line)
    ranking = _ranking([lines[name] for name in named], limits)
    return by_promise(ranking) if training else ranking


def _parsed(bits: Pair | Mapping[str, Pair]) -> Pair | dict[str, Pair]:
    if not isinstance(bits, Mapping):
        return parse_bits(bits)
    return {pattern: parse_bits(pair) for pattern, pair in bits.items()}


def named_entries(models: Iterable[Any]) -> dict[str, Any]:
    """Networks and architectures by name.

    Raises:
        ArgumentError: an entry of another kind, a name given twice, or no networks.
    """
    if not isinstance(models, Iterable):
        raise ArgumentError(f"models is a {type(models).__name__}; expected pairs. Write {_PAIRS}.")
    named = [_named(entry) for entry in models]
    if not named or len(dict(named)) < len(named):
        raise ArgumentError(
            f"{len(named)} networks with {len(dict(named))} names; expected one name for each of "
            f"at least one. Write {_PAIRS}."
        )
    return dict(named)


def _named(entry: Any) -> tuple[str, Any]:
    if hasattr(entry, "build") and hasattr(entry, "key"):
        return "/".join(map(str, entry.key)), entry
    pair = isinstance(entry, (tuple, list)) and len(entry) == 2
    if not pair or not isinstance(entry[0], str) or not _is_network(entry[1]):
        raise ArgumentError(
            f"A network is given as {entry!r:.100}; expected a pair (name, nn.Module) or an "
            f"architecture of a space. Write {_PAIRS}."
        )
    return entry[0], entry[1]


def _is_network(entry: Any) -> bool:
    return isinstance(entry, nn.Module) or hasattr(entry, "build")


def held_out(images: Any, validation: ImageSet | None) -> tuple[ImageSet, ImageSet]:
    """What is fitted to, and what is measured with: every third image where nothing else is given.

    Raises:
        ArgumentError: one of them is no ImageSet, they are of different classes, or there are too
            few to hold any out.
    """
    for name, given in (("images", images), ("validation", validation)):
        if not isinstance(given, ImageSet) and not (name == "validation" and given is None):
            raise ArgumentError(
                f"{name} is a {type(given).__name__}; expected an ImageSet. Write "
                f"load_images(folder, 'train') or ImageSet.of(images, labels)."
            )
    if validation is None:
        return _thirds(images)
    if validation.classes != images.classes:
        raise ArgumentError(
            f"validation is of the classes {_listed(validation)}, and images of "
            f"{_listed(images)}; expected the same in the same order. Load both from one folder, "
            "or write ImageSet.of(images, labels, classes=...) with the same classes for both."
        )
    return images, validation


def _thirds(images: ImageSet) -> tuple[ImageSet, ImageSet]:
    """Two thirds and one, by label, so that a third of each class is held out."""
    if len(images) < _FEWEST:
        raise ArgumentError(
            f"{len(images)} images are too few to hold a third of them out. Write some tens, or "
            "validation=... for others to measure with."
        )
    order = images.labels.argsort(stable=True)
    held = torch.arange(len(order), device=order.device) % 3 == 2
    return images.take(order[~held]), images.take(order[held])


def _listed(images: ImageSet) -> str:
    return f"{', '.join(images.classes):.80}"


def _ranking(lines: Sequence[Line], budget: Budget) -> Ranking:
    fields = RankedNetwork.__dataclass_fields__
    measured = [line for line in lines if "accuracy" in line]
    networks = [
        RankedNetwork(**{n: x for n, x in line.items() if n in fields} | {"kept": (*line["kept"],)})
        for line in measured
    ]
    networks.sort(key=lambda network: (-network.accuracy, network.macs))
    failed, beyond = (
        {line["name"]: line[kind] for line in lines if kind in line} for kind in ("error", "beyond")
    )
    return Ranking(tuple(networks), failed, beyond, budget)
