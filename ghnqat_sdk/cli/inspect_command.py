"""`ghnqat inspect`: a model's graph, and what its quantization costs."""

from __future__ import annotations

import json
from argparse import Namespace
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ghnqat_sdk.cli.callables import DEFAULT_CLASSES
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
from ghnqat_sdk.cli.paths import IMAGES, PICTURE, check_image_folder, check_output_file
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.files import as_json, replacing
from ghnqat_sdk.plotting import require_matplotlib
from ghnqat_sdk.progress import working

if TYPE_CHECKING:
    from torch import nn

    from ghnqat_sdk.calls import Call
    from ghnqat_sdk.data import Known
    from ghnqat_sdk.graph.graph import ComputationGraph
    from ghnqat_sdk.hypernetwork.ghn import GraphHypernetwork
    from ghnqat_sdk.prediction import PredictionReport
    from ghnqat_sdk.quantization.report import QuantizationReport

_OF_A_PREDICTION = {
    "first_last_bits": None,
    "revision": None,
    "data": None,
    "plot": None,
    "hypernetwork": "default",
}
"""Options that say something about a prediction, and what they are where nobody wrote them."""


def add_inspect(commands: Any) -> None:
    """Add `ghnqat inspect` to the parser's commands."""
    what = "show a model's computation graph, and what its quantization costs"
    parser = add_command(commands, "inspect", what, check=_check, run=_inspect)
    add_model(parser)
    parser.add_argument(
        "--picture",
        type=PICTURE,
        metavar="FILE",
        help="draw the graph into this .png, .svg or .pdf",
    )
    add_hypernetwork(parser)
    add_bits(parser, default=None)
    parser.add_argument(
        "--data",
        type=IMAGES,
        help="with --bits: measure on images of this folder (default: on random numbers)",
    )
    parser.add_argument(
        "--plot",
        type=PICTURE,
        metavar="FILE",
        help="with --bits: draw the costs into this .png, .svg or .pdf",
    )
    add_json_flag(parser)


def _check(options: Namespace) -> None:
    asked = (
        name for name, default in _OF_A_PREDICTION.items() if getattr(options, name) != default
    )
    first = next(asked, None)
    if options.bits is None and first is not None:
        raise ArgumentError(f"--{first.replace('_', '-')} needs a prediction. Add --bits 4,4")
    check_prediction(options)
    if options.data is not None:
        check_image_folder(options.data, "train")
        _image_size(options.input)
    for option, path in (("--picture", options.picture), ("--plot", options.plot)):
        if path is not None:
            check_output_file(option, path)
            require_matplotlib(option)


def _image_size(sizes: tuple[int, ...] | None) -> int | None:
    """Side of the images that --input asks for; without it they are as the hypernetwork knows
    them."""
    if sizes is None:
        return None
    if len(sizes) != 4 or sizes[1] != 3 or sizes[2] != sizes[3] or sizes[3] < 8:
        text = ",".join(map(str, sizes))
        raise ArgumentError(
            f"--input {text} is no batch of square colour images, which --data gives. Write, for "
            "example, --input 2,3,32,32"
        )
    return sizes[3]


def _inspect(options: Namespace) -> None:
    from ghnqat_sdk.graph.draw import draw_graph

    hypernetwork = None if options.bits is None else loaded_hypernetwork(options)
    otherwise = DEFAULT_CLASSES if hypernetwork is None else hypernetwork.config.num_classes
    asked = options.classes is not None
    model = build_model(options.model, options.classes, asked=asked, otherwise=otherwise)
    graph, call = traced(model, options.input)
    measured = None
    if hypernetwork is not None:
        graph, measured = _measure(options, hypernetwork, model, graph, call)
    if options.picture is not None:
        with working("drawing"), replacing(options.picture) as temporary:
            draw_graph(graph, temporary)
    if measured is not None and options.plot is not None:
        with replacing(options.plot) as temporary:
            measured.report.plot(temporary)
    if options.json:
        print(as_json(_graph_facts(graph) | (measured.facts() if measured else {})))
        return
    _print_graph(graph)
    if measured is not None:
        print(f"\n{measured.prediction}\nmeasured on {measured.batch}\n\n{measured.report}")
    for file in (options.picture, options.plot):
        if file is not None:
            print(f"drawn into {file}")


@dataclass(frozen=True)
class _Measured:
    """A prediction's report, and the costs of its quantization on a batch, in words."""

    prediction: PredictionReport
    report: QuantizationReport
    batch: str

    def facts(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "prediction": vars(self.prediction),
            "batch": self.batch,
            "quantization": json.loads(self.report.to_json()),
        }


def _measure(
    options: Namespace,
    hypernetwork: GraphHypernetwork,
    model: nn.Module,
    graph: ComputationGraph,
    call: Call,
) -> tuple[ComputationGraph, _Measured]:
    """The graph with the bits of each layer, and what they cost; `model` becomes the predicted
    one."""
    from ghnqat_sdk.bits import FLOAT_BITS
    from ghnqat_sdk.graph.annotate import annotate_bits
    from ghnqat_sdk.prediction import prediction_report
    from ghnqat_sdk.quantization.lookup import bits_of, fake_quantized_layers
    from ghnqat_sdk.quantization.report import quantization_report

    qmodel = predicted(options, model, hypernetwork)
    bits = bits_of(fake_quantized_layers(qmodel))
    if options.data is not None:
        batch, words = _calibrated_on(options, qmodel, hypernetwork.config.images)
    else:
        batch, words = _random_batch(call)
    with working("measuring"):
        measured = _Measured(prediction_report(qmodel), quantization_report(qmodel, batch), words)
    return annotate_bits(graph, bits, (FLOAT_BITS, FLOAT_BITS)), measured


def _random_batch(call: Call) -> tuple[Any, str]:
    """Random numbers in the shapes of the call, and what they are."""
    batch = call.with_numbers()
    shapes = ", ".join("×".join(map(str, shape)) for shape in batch.shapes())
    words = f"random numbers {shapes} (seed 0), not calibrated; --data measures on images"
    return batch, words


def _calibrated_on(options: Namespace, qmodel: nn.Module, like: Known) -> tuple[Any, str]:
    """Validation images of the folder, like known ones or of the size that --input says, after
    calibration on training images."""
    from ghnqat_sdk.data import load_images_like
    from ghnqat_sdk.quantization.calibrate import calibrate

    size = _image_size(options.input)
    with working("loading images"):
        train, validation = (
            load_images_like(like, options.data, split, size) for split in ("train", "val")
        )
    calibration = train.sample(512, seed=0)
    calibrate(qmodel, calibration.batches(64))
    ((images, _),) = validation.sample(64, seed=0).batches(64)
    side = images.shape[-1]
    words = f"{len(images)} validation images {side}×{side} of {options.data}"
    return images, f"{words}, calibrated on {len(calibration)} others"


def _graph_facts(graph: ComputationGraph) -> dict[str, Any]:
    names = ("op", "module", "kernel", "stride", "dilation", "groups", "bits")
    nodes = [
        {name: getattr(node, name) for name in names}
        | {"parameters": {p.name: p.shape for p in node.parameters}}
        for node in graph.nodes
    ]
    return {"nodes": nodes, "edges": graph.edges, "unreached": dict(graph.unreached)}


def _print_graph(graph: ComputationGraph) -> None:
    read = [",".join(map(str, each)) for each in graph.predecessors]
    width = min(24, max((len(text) for text in read), default=0))
    for index, node in enumerate(graph.nodes):
        shapes = "  ".join(f"{p.name} {'×'.join(map(str, p.shape))}" for p in node.parameters)
        print(f"{index:4}  {node.op:16} ← {read[index]:{width}}  {shapes}".rstrip())
    counted = Counter(node.op for node in graph.nodes).most_common()
    counts = ", ".join(f"{count} {op}" for op, count in counted)
    edges, parameters = len(graph.edges), len(graph.parameters)
    print(f"{len(graph)} nodes ({counts}), {edges} edges, {parameters} parameters")
    for name, reason in graph.unreached.items():
        print(f"not in the graph: {name} ({reason})")
