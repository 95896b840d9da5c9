"""The console script `ghnqat`: predict, evaluate, inspect, version."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ghnqat_sdk.cli.console import add_json_flag, run_command
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.progress import progress_bar
from ghnqat_sdk.version import __version__

if TYPE_CHECKING:
    from ghnqat_sdk.calls import Call
    from ghnqat_sdk.graph.graph import ComputationGraph
    from ghnqat_sdk.predict import PredictionReport
    from ghnqat_sdk.quantization.report import QuantizationReport
    from ghnqat_sdk.training.spaces.protocol import Space

SPACES = {"deepnets": ("id", "deep", "wide", "bn-free", "val"), "families": ("test", "val")}
"""Spaces of architectures and their splits, the one that is evaluated by default first."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `ghnqat`; returns the exit status."""
    return run_command(_parser(), arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ghnqat", description="Predicted weights for quantized CNNs."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    _add_predict(commands)
    _add_evaluate(commands)
    _add_inspect(commands)
    version = commands.add_parser("version", help="print the version")
    add_json_flag(version)
    version.set_defaults(handler=_version)
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        help="a torchvision model (resnet18), MODULE:CALLABLE that returns one, or an architecture of a space "
        "(deepnets/id/3, families/test/7)",
    )
    parser.add_argument(
        "--classes", type=int, default=10, help="classes of the model (default: 10)"
    )
    parser.add_argument(
        "--input", metavar="N,C,H,W", help="shape of an example input, where it cannot be guessed"
    )


def _add_hypernetwork(parser: argparse.ArgumentParser, bits: str | None = "4,4") -> None:
    parser.add_argument(
        "--hypernetwork",
        default="default",
        help="hypernetwork: 'default', a folder or a Hub repo id (default: default)",
    )
    parser.add_argument("--revision", help="branch, tag or commit of a Hub repo")
    parser.add_argument(
        "--bits",
        default=bits,
        metavar="W,A",
        help=f"2 to 8 bits, or 32 for float (default: {bits or 'no prediction'})",
    )


def _add_ends(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--first-last-bits",
        type=int,
        metavar="BITS",
        help="bits of the first and the last layers (default: --bits)",
    )


def _add_predict(commands: Any) -> None:
    predict = commands.add_parser("predict", help="predict a model's parameters and save them")
    _add_model(predict)
    _add_hypernetwork(predict)
    predict.add_argument(
        "--head",
        choices=("auto", "predict", "keep"),
        default="auto",
        help="what happens to classifiers",
    )
    _add_ends(predict)
    predict.add_argument("--output", help="write the predicted state_dict to this safetensors file")
    add_json_flag(predict)
    predict.set_defaults(handler=_predict)


def _add_evaluate(commands: Any) -> None:
    evaluate = commands.add_parser(
        "evaluate", help="accuracy of predicted, unseen networks on real images"
    )
    _add_hypernetwork(evaluate)
    evaluate.add_argument(
        "--data", required=True, help="image folder (test/<class>/*.jpg) or torchvision's CIFAR-10"
    )
    evaluate.add_argument(
        "--space", choices=SPACES, default="deepnets", help="architectures (default: deepnets)"
    )
    splits = {split: None for of_space in SPACES.values() for split in of_space}
    evaluate.add_argument(
        "--split", choices=splits, help="of the space (default: id of deepnets, test of families)"
    )
    evaluate.add_argument("--graphs", type=int, default=50, help="how many of them (default: 50)")
    evaluate.add_argument(
        "--images", type=int, default=2000, help="how many test images (default: 2000)"
    )
    evaluate.add_argument(
        "--protocol",
        choices=("paper", "calibrated"),
        default="paper",
        help="see docs/evaluation.md",
    )
    evaluate.add_argument("--seed", type=int, default=0, help="chooses the images (default: 0)")
    evaluate.add_argument("--device", default="cpu", help="cpu or cuda")
    evaluate.add_argument(
        "--json", metavar="FILE", help="write the result as JSON; - for the screen"
    )
    evaluate.set_defaults(handler=_evaluate)


def _add_inspect(commands: Any) -> None:
    inspect = commands.add_parser(
        "inspect", help="show a model's computation graph, and what its quantization costs"
    )
    _add_model(inspect)
    inspect.add_argument(
        "--picture", metavar="FILE", help="draw the graph into this .png, .svg or .pdf"
    )
    _add_hypernetwork(inspect, bits=None)
    _add_ends(inspect)
    inspect.add_argument(
        "--data", help="with --bits: measure on images of this folder (default: on random numbers)"
    )
    inspect.add_argument(
        "--plot", metavar="FILE", help="with --bits: draw the costs into this image"
    )
    add_json_flag(inspect)
    inspect.set_defaults(handler=_inspect)


def _predict(options: argparse.Namespace) -> None:
    from ghnqat_sdk.bits import parse_bits_text
    from ghnqat_sdk.predict import prediction_report

    qmodel = _predicted(options, _model(options), head=options.head)
    report = prediction_report(qmodel)
    if options.output:
        _save_state(qmodel, Path(options.output))
    if options.json:
        print(json.dumps({"bits": parse_bits_text(options.bits), **vars(report)}))
    else:
        print(report)
        if options.output:
            print(f"saved to {options.output}")


def _predicted(options: argparse.Namespace, model: Any, head: Any = "auto") -> Any:
    """The model itself, with predicted parameters."""
    from ghnqat_sdk.bits import parse_bits_text
    from ghnqat_sdk.predict import predict_quantized_params

    return predict_quantized_params(
        model,
        parse_bits_text(options.bits),
        hypernetwork=options.hypernetwork,
        revision=options.revision,
        example_inputs=_example(options),
        head=head,
        first_last_bits=options.first_last_bits,
        inplace=True,
    )


def _save_state(qmodel: Any, path: Path) -> None:
    from safetensors.torch import save_model

    if path.suffix != ".safetensors":
        raise ArgumentError(
            f"--output {str(path)!r} does not end in .safetensors. Write --output model.safetensors"
        )
    try:
        save_model(qmodel, str(path))
    except OSError as error:
        raise ArgumentError(f"{str(path)!r} cannot be written: {error}") from error


def _evaluate(options: argparse.Namespace) -> None:
    from ghnqat_sdk.bits import parse_bits_text
    from ghnqat_sdk.data import load_images
    from ghnqat_sdk.hypernetwork.pretrained import load_pretrained
    from ghnqat_sdk.training.evaluation import calibration_batches, evaluate_graphs

    bits = parse_bits_text(options.bits)
    split = options.split or SPACES[options.space][0]
    space = _space(options.space, split)
    for name, limit in (("graphs", len(space)), ("images", 10**6)):
        if not 1 <= getattr(options, name) <= limit:
            raise ArgumentError(
                f"--{name} {getattr(options, name)} is out of range; write a number from 1 to {limit}."
            )
    hypernetwork = load_pretrained(options.hypernetwork, revision=options.revision)
    images = load_images(options.data, "val" if split == "val" else "test").sample(
        options.images, options.seed
    )
    batches = (
        calibration_batches(options.data, options.seed)
        if options.protocol == "calibrated"
        else None
    )
    architectures = [space[index] for index in range(options.graphs)]
    result = evaluate_graphs(
        hypernetwork,
        architectures,
        images,
        bits,
        protocol=options.protocol,
        calibration=batches,
        device=options.device,
        progress=lambda items: progress_bar(
            items, f"{split} W{bits[0]}/A{bits[1]}", options.graphs
        ),
    )
    facts = {
        name: getattr(options, name)
        for name in ("hypernetwork", "space", "graphs", "protocol", "seed")
    }
    facts |= {"split": split, "images": len(images), "bits": bits}
    facts["families"] = [architecture.family for architecture in architectures]
    text = json.dumps({**facts, **result.as_dict()}, indent=2)
    if options.json == "-":
        print(text)
        return
    if options.json:
        _write(Path(options.json), text + "\n")
    what = f"{options.space} {split}, W{bits[0]}/A{bits[1]}, {options.graphs} graphs, {len(images)} images"
    print(f"{what}, {options.protocol} protocol")
    print(f"top-1 {result.top1}\ntop-5 {result.top5}   (mean ± standard error; max, percent)")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise ArgumentError(f"{str(path)!r} cannot be written: {error}") from error


def _inspect(options: argparse.Namespace) -> None:
    from ghnqat_sdk.graph.draw import draw_graph
    from ghnqat_sdk.graph.trace import trace_with_call

    _check_inspect(options)
    model = _model(options)
    graph, call = trace_with_call(model, _example(options))
    measured = None
    if options.bits is not None:
        graph, measured = _measure(options, model, graph, call)
    if options.picture is not None:
        draw_graph(graph, options.picture)
    if measured is not None and options.plot is not None:
        measured.report.plot(options.plot)
    if options.json:
        print(json.dumps(_graph_facts(graph) | (measured.facts() if measured else {})))
        return
    _print_graph(graph)
    if measured is not None:
        print(f"\n{measured.prediction}\nmeasured on {measured.batch}\n\n{measured.report}")
    for file in (options.picture, options.plot):
        if file is not None:
            print(f"drawn into {file}")


def _check_inspect(options: argparse.Namespace) -> None:
    """Options that say something about a prediction need one."""
    asked = {
        "first_last_bits": None,
        "revision": None,
        "data": None,
        "plot": None,
        "hypernetwork": "default",
    }
    given = [name for name, default in asked.items() if getattr(options, name) != default]
    if options.bits is None and given:
        raise ArgumentError(f"--{given[0].replace('_', '-')} needs a prediction. Add --bits 4,4")


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
    options: argparse.Namespace, model: Any, graph: ComputationGraph, call: Call
) -> tuple[ComputationGraph, _Measured]:
    """The graph with the bits of each layer, and what they cost; `model` becomes the predicted one."""
    from ghnqat_sdk.bits import FLOAT_BITS
    from ghnqat_sdk.graph.annotate import annotate_bits
    from ghnqat_sdk.predict import prediction_report
    from ghnqat_sdk.quantization.layers import fake_quantized_layers
    from ghnqat_sdk.quantization.report import quantization_report

    qmodel = _predicted(options, model)
    layers = fake_quantized_layers(qmodel)
    bits = {
        name: (layer.weight_quantizer.bits, layer.input_quantizer.bits)
        for name, layer in layers.items()
    }
    if options.data is not None:
        batch, words = _calibrated_on(options, qmodel, call)
    else:
        batch = call.with_numbers()
        shapes = ", ".join("×".join(map(str, x.shape)) for x in batch.tensors())
        words = f"random numbers {shapes} (seed 0), not calibrated; --data measures on images"
    measured = _Measured(prediction_report(qmodel), quantization_report(qmodel, batch), words)
    return annotate_bits(graph, bits, (FLOAT_BITS, FLOAT_BITS)), measured


def _calibrated_on(options: argparse.Namespace, qmodel: Any, call: Call) -> tuple[Any, str]:
    """Validation images of the folder, of the size that --input says, after calibration on training images."""
    from ghnqat_sdk.data import load_images
    from ghnqat_sdk.quantization.calibrate import calibrate

    size = 32 if options.input is None else call.tensors()[0].shape[-1]
    train, validation = (load_images(options.data, split, size) for split in ("train", "val"))
    calibration = train.sample(512, seed=0)
    calibrate(qmodel, calibration.batches(64))
    ((images, _),) = validation.sample(64, seed=0).batches(64)
    words = f"{len(images)} validation images {size}×{size} of {options.data}, calibrated on {len(calibration)} others"
    return images, words


def _graph_facts(graph: ComputationGraph) -> dict[str, Any]:
    names = ("op", "module", "kernel", "stride", "dilation", "groups", "bits")
    nodes = [
        {name: getattr(node, name) for name in names}
        | {"parameters": {p.name: p.shape for p in node.parameters}}
        for node in graph.nodes
    ]
    return {"nodes": nodes, "edges": graph.edges, "unreached": dict(graph.unreached)}


def _print_graph(graph: ComputationGraph) -> None:
    sources: list[list[int]] = [[] for _ in graph.nodes]
    for source, target in graph.edges:
        sources[target].append(source)
    read = [",".join(map(str, each)) for each in sources]
    width = min(24, max((len(text) for text in read), default=0))
    for index, node in enumerate(graph.nodes):
        shapes = "  ".join(f"{p.name} {'×'.join(map(str, p.shape))}" for p in node.parameters)
        print(f"{index:4}  {node.op:16} ← {read[index]:{width}}  {shapes}".rstrip())
    counts = ", ".join(
        f"{count} {op}" for op, count in Counter(node.op for node in graph.nodes).most_common()
    )
    print(
        f"{len(graph)} nodes ({counts}), {len(graph.edges)} edges, {len(graph.parameters)} parameters"
    )
    for name, reason in graph.unreached.items():
        print(f"not in the graph: {name} ({reason})")


def _version(options: argparse.Namespace) -> None:
    import torch

    if options.json:
        print(json.dumps({"ghnqat_sdk": __version__, "torch": torch.__version__}))
    else:
        print(f"ghnqat-sdk {__version__} (torch {torch.__version__})")


def _model(options: argparse.Namespace) -> Any:
    """The nn.Module that the argument `model` names."""
    name = options.model
    if ":" in name:
        return _imported(name)()
    if "/" in name:
        return _of_space(name).build(options.classes)
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise ArgumentError(
            f"{name!r} is no torchvision classifier ({', '.join(known[:4])}, …). For a model of your own, write "
            f"MODULE:CALLABLE, for example my_models:make_resnet20"
        )
    return torchvision.models.get_model(name, weights=None, num_classes=options.classes)


def _of_space(name: str) -> Any:
    """The architecture that SPACE/SPLIT/INDEX names."""
    parts = name.split("/")
    if len(parts) != 3 or not parts[2].isdecimal():
        raise ArgumentError(
            f"{name!r} is not SPACE/SPLIT/INDEX. Write, for example, deepnets/id/3 or families/test/7"
        )
    return _space(*parts[:2])[int(parts[2])]


def _space(name: str, split: str) -> Space:
    from ghnqat_sdk.training.spaces.deepnets import DeepNets
    from ghnqat_sdk.training.spaces.families import Families

    spaces: dict[str, Callable[[str], Space]] = {"deepnets": DeepNets, "families": Families}
    if name not in spaces:
        raise ArgumentError(f"There is no space {name!r}. Write one of {', '.join(spaces)}.")
    return spaces[name](split)


def _imported(name: str) -> Callable[[], Any]:
    import importlib

    module, _, attribute = name.partition(":")
    sys.path.insert(0, "")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ArgumentError(
            f"{name!r} cannot be imported: {error}. Write MODULE:CALLABLE, found from here."
        ) from error
    finally:
        sys.path.remove("")


def _example(options: argparse.Namespace) -> Any:
    if options.input is None:
        return None
    import torch

    try:
        shape = [int(part) for part in options.input.split(",")]
        return torch.empty(shape, device="meta")
    except (ValueError, RuntimeError) as error:
        raise ArgumentError(
            f"--input {options.input!r} is not a shape. Write, for example, --input 2,3,32,32"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
