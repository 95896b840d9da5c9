"""Networks ranked by the accuracy that they have with predicted parameters, without training
any."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ghnqat_sdk.bits import Pair, parse_bits
from ghnqat_sdk.data import ImageSet
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.hypernetwork.ghn import GraphHypernetwork
from ghnqat_sdk.hypernetwork.pretrained import DEFAULT, load_pretrained
from ghnqat_sdk.progress import progress_bar
from ghnqat_sdk.search.budget import Budget
from ghnqat_sdk.search.measuring import Line, Study
from ghnqat_sdk.search.ranked import RankedNetwork, Ranking

_PAIRS = "rank_architectures([('small', model), ...], (4, 4), images)"

_LINE_BEGINS = '{"study": '


def rank_architectures(
    models: Iterable[Any],
    bits: Pair | Mapping[str, Pair],
    images: ImageSet,
    *,
    budget: Mapping[str, float | None] | None = None,
    validation: ImageSet | None = None,
    hypernetwork: str | Path | GraphHypernetwork = DEFAULT,
    processes: int = 1,
    results: str | Path | None = None,
    progress: bool = True,
) -> Ranking:
    """Rank networks by their accuracy with predicted, calibrated parameters.

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
            or no networks.
    """
    limits = Budget.of(budget)
    parsed = _parsed(bits)
    named = named_entries(models)
    fitting, measured = held_out(images, validation)
    network = hypernetwork
    if not isinstance(network, GraphHypernetwork):
        network = load_pretrained(network)
    study = Study(parsed, fitting, measured, network, limits)
    key = study.key()
    known = _known(results, key)
    entries = [(name, entry, known.get(name, {})) for name, entry in named.items()]
    found = _measured(entries, study, processes)
    lines = {}
    for line in progress_bar(found, "ranking", len(entries)) if progress else found:
        name = line["name"]
        lines[name] = line
        if (
            results is not None
            and "beyond" not in line
            and line not in known.get(name, {}).values()
        ):
            _append(Path(results), {"study": key, **line})
    return _ranking([lines[name] for name in named], limits)


def _parsed(bits: Pair | Mapping[str, Pair]) -> Pair | dict[str, Pair]:
    if not isinstance(bits, Mapping):
        return parse_bits(bits)
    return {pattern: parse_bits(pair) for pattern, pair in bits.items()}


def named_entries(models: Iterable[Any]) -> dict[str, Any]:
    """Networks and architectures by name.

    Raises:
        ArgumentError: an entry of another kind, a name given twice, or no networks.
    """
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
            f"A network is given as {type(entry).__name__}; expected a pair (name, nn.Module) or "
            f"an architecture of a space. Write {_PAIRS}."
        )
    return entry[0], entry[1]


def _is_network(entry: Any) -> bool:
    return isinstance(entry, nn.Module) or hasattr(entry, "build")


def held_out(images: Any, validation: ImageSet | None) -> tuple[ImageSet, ImageSet]:
    """What is fitted to, and what is measured with: every third image where nothing else is given.

    Raises:
        ArgumentError: `images` is no ImageSet.
    """
    if not isinstance(images, ImageSet):
        raise ArgumentError(
            f"images is a {type(images).__name__}; expected an ImageSet. Write "
            f"load_images(folder, 'train') or ImageSet.of(images, labels)."
        )
    if validation is not None:
        return images, validation
    # By label, so that a third of each class is held out.
    order = images.labels.argsort(stable=True)
    held = torch.arange(len(order)) % 3 == 2
    return images.take(order[~held]), images.take(order[held])


def _measured(
    entries: Sequence[tuple[str, Any, dict[str, Line]]], study: Study, processes: int
) -> Iterator[Line]:
    """A line for each network, as they come."""
    if processes == 1:
        yield from (study.line(*entry) for entry in entries)
        return
    with ProcessPoolExecutor(processes, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        for future in as_completed([pool.submit(study.line, *entry) for entry in entries]):
            yield future.result()


def _known(results: str | Path | None, study: str) -> dict[str, dict[str, Line]]:
    """Lines of the same study by name and graph, but for networks that failed; one cut off when its
    process was killed is passed over.

    Raises:
        ArgumentError: the file is one of something else, to which nothing must be appended.
    """
    lines: dict[str, dict[str, Line]] = {}
    for text in [] if results is None else _lines_of(Path(results)):
        if not (_LINE_BEGINS.startswith(text) or text.startswith(_LINE_BEGINS)):
            raise ArgumentError(
                f"results={str(results)!r} holds lines that are no results of rank_architectures. "
                "Write the name of another file, which may be a new one."
            )
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if line.pop("study") == study and "graph" in line:
            lines.setdefault(line["name"], {})[line["graph"]] = line
    return lines


def _lines_of(path: Path) -> list[str]:
    if not path.exists():
        return []
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError as error:
        raise ArgumentError(
            f"results={str(path)!r} cannot be read: {error.strerror}. Write another file's name."
        ) from error


def _append(path: Path, line: Line) -> None:
    with path.open("a+b") as file:
        if file.tell() and not path.read_bytes().endswith(b"\n"):
            file.write(b"\n")
        file.write(json.dumps(line).encode() + b"\n")


def _ranking(lines: Sequence[Line], budget: Budget) -> Ranking:
    fields = RankedNetwork.__dataclass_fields__
    measured = [line for line in lines if "accuracy" in line]
    networks = [
        RankedNetwork(**{n: x for n, x in line.items() if n in fields}) for line in measured
    ]
    networks.sort(key=lambda network: (-network.accuracy, network.macs))
    failed, beyond = (
        {line["name"]: line[kind] for line in lines if kind in line} for kind in ("error", "beyond")
    )
    return Ranking(tuple(networks), failed, beyond, budget)
