"""Networks ranked by the accuracy that they have with predicted parameters, without training
any."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ghnqat_sdk.bits import Bits, Pair, parse_bits
from ghnqat_sdk.calls import tensors_in
from ghnqat_sdk.data import ImageSet
from ghnqat_sdk.errors import ArgumentError, GhnqatError
from ghnqat_sdk.files import digest
from ghnqat_sdk.graph.trace import trace
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

Line = dict[str, Any]
"""What is known of one network: its name, and its graph's digest, accuracy and costs, or why it has
none."""


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

    Where the images have other classes than the hypernetwork's, by name and order, each network's
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
            in it for the same network, bits and images is not measured again; what failed is tried
            again.
        progress: Show a bar, on terminals only.

    Returns:
        All networks; those that cannot be measured, whatever the reason, are among its `failed`.

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
    known = _known(results, study)
    entries = [(name, entry, known.get(name, {})) for name, entry in named]
    found = _measured(entries, partial(_measure, bits, fitting, measured, network), processes)
    lines = {}
    for line in progress_bar(found, "ranking", len(entries)) if progress else found:
        name = line["name"]
        lines[name] = line
        if results is not None and line.get("graph") not in known.get(name, {}):
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
    entries: Sequence[tuple[str, Any, dict[str, Line]]], measure: Any, processes: int
) -> Iterator[Line]:
    """A line for each network, as they come."""
    if processes == 1:
        yield from map(measure, entries)
        return
    with ProcessPoolExecutor(processes, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        for future in as_completed([pool.submit(measure, entry) for entry in entries]):
            yield future.result()


def _measure(
    bits: Bits,
    fitting: ImageSet,
    measured: ImageSet,
    hypernetwork: GraphHypernetwork,
    named: tuple[str, Any, dict[str, Line]],
) -> Line:
    """The line of one network, which may be among those known of its name by graph."""
    name, entry, known = named
    classes = len(fitting.classes)
    example = fitting.normalise(fitting.images[:2])
    try:
        model = entry if isinstance(entry, nn.Module) else entry.build(classes)
        graph = _graph_digest(model, example)
        if graph in known:
            return known[graph]
        qmodel = predict_quantized_params(
            model,
            bits,
            hypernetwork=hypernetwork,
            example_inputs=example,
            calibration=list(fitting.batches(BATCH)),
            head="auto" if fitting.classes == hypernetwork.config.images.classes else "fit",
        )
        accuracy = _accuracy(qmodel, measured)
        return {"name": name, "graph": graph, "accuracy": accuracy, **_costs(qmodel, measured)}
    except GhnqatError as error:
        return {"name": name, "error": str(error)}
    except Exception as error:  # whatever a user's network raises
        first = str(error).partition("\n")[0]
        return {"name": name, "error": f"{type(error).__name__}: {first}"}


def _graph_digest(model: nn.Module, example: Tensor) -> str:
    """16 hexadecimal digits of what a network is without its values: operations, shapes, edges, and
    the settings that its modules print, as padding, which no node has."""
    graph = trace(model, example)
    settings = re.sub(" at 0x[0-9a-f]+", "", repr(model))
    facts = repr((graph.nodes, graph.edges, graph.unreached, settings))
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


@torch.no_grad()
def _accuracy(qmodel: nn.Module, images: ImageSet) -> float:
    qmodel.eval()
    classes = len(images.classes)
    hits = [_scores(qmodel(x), len(y), classes).argmax(1) == y for x, y in images.batches(BATCH)]
    return 100 * int(torch.cat(hits).sum()) / len(images)


def _scores(output: Any, rows: int, classes: int) -> Tensor:
    """(rows, classes), the one tensor of that size among the outputs of a network.

    Raises:
        ArgumentError: none is, or several are.
    """
    tensors = list(tensors_in(output))
    scores = [x for x in tensors if x.shape[:1] == (rows,) and x.numel() == rows * classes]
    if len(scores) != 1:
        raise ArgumentError(
            f"Its outputs are of shapes {[tuple(x.shape) for x in tensors]}; expected one tensor "
            f"of scores, {(rows, classes)}, for the {classes} classes of the images. Build it with "
            f"as many outputs, or rank a network that returns its scores alone."
        )
    return scores[0].reshape(rows, classes)


@torch.no_grad()
def _costs(qmodel: nn.Module, images: ImageSet) -> dict[str, int]:
    """Of one image, over all quantized layers."""
    layers = require_fake_quantized_layers(qmodel, "rank_architectures")
    with evaluating(qmodel), counting_costs(layers, 1) as costs:
        qmodel(images.normalise(images.images[:1]))
    bits = [layer.weight.numel() * layer.weight_quantizer.bits for layer in layers.values()]
    return {"macs": sum(cost.macs for cost in costs.values()), "weight_bits": sum(bits)}


def _known(results: str | Path | None, study: str) -> dict[str, dict[str, Line]]:
    """Lines of the same study by name and graph, but for networks that failed; one cut off when its
    process was killed is passed over.

    Raises:
        ArgumentError: the file is one of something else, to which nothing must be appended.
    """
    lines: dict[str, dict[str, Line]] = {}
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


def _ranking(lines: Sequence[Line]) -> Ranking:
    fields = RankedNetwork.__dataclass_fields__
    measured = [{name: line[name] for name in fields} for line in lines if "error" not in line]
    networks = [RankedNetwork(**each) for each in measured]
    networks.sort(key=lambda network: (-network.accuracy, network.macs))
    failed = {line["name"]: line["error"] for line in lines if "error" in line}
    return Ranking(tuple(networks), failed)
