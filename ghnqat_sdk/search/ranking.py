"""Networks ranked by the accuracy that they have with predicted parameters, without training
any."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ghnqat_sdk.bits import Bits, Pair, parse_bits
from ghnqat_sdk.data import ImageSet
from ghnqat_sdk.errors import ArgumentError, GhnqatError
from ghnqat_sdk.files import digest
from ghnqat_sdk.hypernetwork.ghn import GraphHypernetwork
from ghnqat_sdk.hypernetwork.pretrained import DEFAULT, load_pretrained
from ghnqat_sdk.predict import predict_quantized_params
from ghnqat_sdk.progress import progress_bar
from ghnqat_sdk.quantization.lookup import require_fake_quantized_layers
from ghnqat_sdk.quantization.state import evaluating
from ghnqat_sdk.search.costs import counting_costs
from ghnqat_sdk.search.ranked import RankedNetwork, Ranking

BATCH = 64
_PAIRS = "rank_architectures([('small', model), ...], (4, 4), images)"

_BEGINNING = '{"study": '


def rank_architectures(
    models: Iterable[Any],
    bits: Pair,
    images: ImageSet,
    *,
    validation: ImageSet | None = None,
    hypernetwork: str | Path | GraphHypernetwork = DEFAULT,
    processes: int = 1,
    results: str | Path | None = None,
    progress: bool = True,
) -> Ranking:
    """Rank networks by their accuracy with predicted, calibrated parameters.

    Where the images have another number of classes than the hypernetwork's, each network's
    classifier is fitted to them (`fit_head`); otherwise it is predicted.

    Args:
        models: Pairs (name, nn.Module), which stay as they are, or architectures of a space, such
            as `Families("test")`, which are built for the classes of the images.
        bits: (weight, activation) of all networks.
        images: To calibrate with, and to fit classifiers to.
        validation: To measure with; by default every third of `images`, which is then used for
            nothing else.
        hypernetwork: As in `predict_quantized_params`.
        processes: How many work at once, each with a copy of the images.
        results: File of JSON lines, to which each network's is appended when it is known. What is
            in it for the same bits and images is not measured again.
        progress: Show a bar, on terminals only.

    Raises:
        ArgumentError: an entry of another kind, a name given twice, bits that are none, or no
            networks.
    """
    bits = parse_bits(bits)
    named = [_named(entry) for entry in models]
    names = [name for name, _ in named]
    if not names or len(set(names)) < len(names):
        raise ArgumentError(
            f"{len(names)} networks with {len(set(names))} names; expected one name for each of at "
            f"least one. Write {_PAIRS}."
        )
    fitting, measured = _parts(images, validation)
    network = hypernetwork
    if not isinstance(network, GraphHypernetwork):
        network = load_pretrained(network)
    weights = digest({name: t.cpu() for name, t in network.state_dict().items()})[:16]
    study = f"{bits[0]},{bits[1]} {fitting.digest()} {measured.digest()} {weights}"
    lines = _known(results, study)
    missing = [(name, entry) for name, entry in named if name not in lines]
    measure = partial(_measure, bits, fitting, measured, network)
    found = _measured(missing, measure, processes)
    for line in progress_bar(found, "ranking", len(missing)) if progress else found:
        lines[line["name"]] = line
        if results is not None:
            _append(Path(results), {"study": study, **line})
    return _ranking([lines[name] for name in names])


def _named(entry: Any) -> tuple[str, Any]:
    if hasattr(entry, "build") and hasattr(entry, "key"):
        return "/".join(map(str, entry.key)), entry
    pair = isinstance(entry, (tuple, list)) and len(entry) == 2
    if not pair or not isinstance(entry[0], str) or not isinstance(entry[1], nn.Module):
        raise ArgumentError(
            f"A network is given as {type(entry).__name__}; expected a pair (name, nn.Module) or "
            f"an architecture of a space. Write {_PAIRS}."
        )
    return entry[0], entry[1]


def _parts(images: Any, validation: ImageSet | None) -> tuple[ImageSet, ImageSet]:
    """What is fitted to, and what is measured with."""
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
    missing: Sequence[tuple[str, Any]], measure: Any, processes: int
) -> Iterator[dict[str, Any]]:
    """A line for each network, as they come."""
    if processes == 1:
        yield from map(measure, missing)
        return
    with ProcessPoolExecutor(processes, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        for future in as_completed([pool.submit(measure, named) for named in missing]):
            yield future.result()


def _measure(
    bits: Bits,
    fitting: ImageSet,
    measured: ImageSet,
    hypernetwork: GraphHypernetwork,
    named: tuple[str, Any],
) -> dict[str, Any]:
    """The line of one network: its accuracy and costs, or why it has none."""
    name, entry = named
    classes = len(fitting.classes)
    try:
        model = entry if isinstance(entry, nn.Module) else entry.build(classes)
        qmodel = predict_quantized_params(
            model,
            bits,
            hypernetwork=hypernetwork,
            example_inputs=fitting.normalise(fitting.images[:2]),
            calibration=list(fitting.batches(BATCH)),
            head="auto" if classes == hypernetwork.config.num_classes else "fit",
        )
        return {"name": name, "accuracy": _accuracy(qmodel, measured), **_costs(qmodel, measured)}
    except GhnqatError as error:
        return {"name": name, "error": str(error)}


@torch.no_grad()
def _accuracy(qmodel: nn.Module, images: ImageSet) -> float:
    qmodel.eval()
    hits = sum(int((qmodel(x).argmax(1) == y).sum()) for x, y in images.batches(BATCH))
    return 100 * hits / len(images)


@torch.no_grad()
def _costs(qmodel: nn.Module, images: ImageSet) -> dict[str, int]:
    """Of one image, over all quantized layers."""
    layers = require_fake_quantized_layers(qmodel, "rank_architectures")
    with evaluating(qmodel), counting_costs(layers, 1) as costs:
        qmodel(images.normalise(images.images[:1]))
    bits = [layer.weight.numel() * layer.weight_quantizer.bits for layer in layers.values()]
    return {"macs": sum(cost.macs for cost in costs.values()), "weight_bits": sum(bits)}


def _known(results: str | Path | None, study: str) -> dict[str, dict[str, Any]]:
    """Lines of the same study by name; one cut off when its process was killed is passed over.

    Raises:
        ArgumentError: the file is one of something else, to which nothing must be appended.
    """
    lines = {}
    for text in [] if results is None else _lines_of(Path(results)):
        if not (_BEGINNING.startswith(text) or text.startswith(_BEGINNING)):
            raise ArgumentError(
                f"results={str(results)!r} holds lines that are no results of rank_architectures. "
                "Write the name of another file, which may be a new one."
            )
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if line.pop("study") == study:
            lines[line["name"]] = line
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


def _append(path: Path, line: dict[str, Any]) -> None:
    with path.open("a+b") as file:
        if file.tell() and not path.read_bytes().endswith(b"\n"):
            file.write(b"\n")
        file.write(json.dumps(line).encode() + b"\n")


def _ranking(lines: Sequence[dict[str, Any]]) -> Ranking:
    networks = [RankedNetwork(**line) for line in lines if "error" not in line]
    networks.sort(key=lambda network: (-network.accuracy, network.macs))
    failed = {line["name"]: line["error"] for line in lines if "error" in line}
    return Ranking(tuple(networks), failed)
