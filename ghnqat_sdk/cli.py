"""The console script `ghnqat`: predict, evaluate, inspect, version."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ghnqat_sdk.console import add_json_flag, progress_bar, run_command
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.version import __version__

SPLITS = ("id", "deep", "wide", "bn-free", "val")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `ghnqat`; returns the exit status."""
    return run_command(_parser(), arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ghnqat", description="Predicted weights for quantized CNNs.")
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
        "model", help="a torchvision model (resnet18), MODULE:CALLABLE that returns one, or an architecture id/0"
    )
    parser.add_argument("--classes", type=int, default=10, help="classes of the model (default: 10)")
    parser.add_argument("--input", metavar="N,C,H,W", help="shape of an example input, where it cannot be guessed")


def _add_hypernetwork(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint", default="default", help="hypernetwork: 'default', a folder or a Hub repo id (default: default)"
    )
    parser.add_argument("--revision", help="branch, tag or commit of a Hub repo")
    parser.add_argument("--bits", default="4,4", metavar="W,A", help="2 to 8 bits, or 32 for float (default: 4,4)")


def _add_predict(commands: Any) -> None:
    predict = commands.add_parser("predict", help="predict a model's parameters and save them")
    _add_model(predict)
    _add_hypernetwork(predict)
    predict.add_argument(
        "--head", choices=("auto", "predict", "keep"), default="auto", help="what happens to classifiers"
    )
    predict.add_argument(
        "--ends", type=int, metavar="BITS", help="bits of the first and the last layers (default: --bits)"
    )
    predict.add_argument("--output", help="write the predicted state_dict to this safetensors file")
    add_json_flag(predict)
    predict.set_defaults(handler=_predict)


def _add_evaluate(commands: Any) -> None:
    evaluate = commands.add_parser("evaluate", help="accuracy of predicted, unseen networks on real images")
    _add_hypernetwork(evaluate)
    evaluate.add_argument("--data", required=True, help="image folder (test/<class>/*.jpg) or torchvision's CIFAR-10")
    evaluate.add_argument("--split", choices=SPLITS, default="id", help="architectures (default: id)")
    evaluate.add_argument("--graphs", type=int, default=50, help="how many of them (default: 50)")
    evaluate.add_argument("--images", type=int, default=2000, help="how many test images (default: 2000)")
    evaluate.add_argument("--protocol", choices=("paper", "calibrated"), default="paper", help="see docs/evaluation.md")
    evaluate.add_argument("--seed", type=int, default=0, help="chooses the images (default: 0)")
    evaluate.add_argument("--device", default="cpu", help="cpu or cuda")
    evaluate.add_argument("--json", metavar="FILE", help="write the result as JSON; - for the screen")
    evaluate.set_defaults(handler=_evaluate)


def _add_inspect(commands: Any) -> None:
    inspect = commands.add_parser("inspect", help="show a model's computation graph")
    _add_model(inspect)
    add_json_flag(inspect)
    inspect.set_defaults(handler=_inspect)


def _predict(options: argparse.Namespace) -> None:
    from ghnqat_sdk.api import predict_quantized_params, prediction_report
    from ghnqat_sdk.quantization.bits import parse_bits_text

    bits = parse_bits_text(options.bits)
    qmodel = predict_quantized_params(
        _model(options),
        bits,
        hypernetwork=options.checkpoint,
        revision=options.revision,
        example_inputs=_example(options),
        head=options.head,
        ends=options.ends,
        inplace=True,
    )
    report = prediction_report(qmodel)
    if options.output:
        _save_state(qmodel, Path(options.output))
    if options.json:
        print(json.dumps({"bits": bits, **vars(report)}))
    else:
        print(report)
        if options.output:
            print(f"saved to {options.output}")


def _save_state(qmodel: Any, path: Path) -> None:
    from safetensors.torch import save_model

    if path.suffix != ".safetensors":
        raise ArgumentError(f"--output {str(path)!r} does not end in .safetensors. Write --output model.safetensors")
    try:
        save_model(qmodel, str(path))
    except OSError as error:
        raise ArgumentError(f"{str(path)!r} cannot be written: {error}") from error


def _evaluate(options: argparse.Namespace) -> None:
    from ghnqat_sdk.hypernetwork.pretrained import load_pretrained
    from ghnqat_sdk.quantization.bits import parse_bits_text
    from ghnqat_sdk.training.datasets import load_images
    from ghnqat_sdk.training.evaluate import calibration_batches, evaluate_graphs
    from ghnqat_sdk.training.spaces import ArchitectureSpace

    bits = parse_bits_text(options.bits)
    space = ArchitectureSpace(options.split)
    for name, limit in (("graphs", len(space)), ("images", 10**6)):
        if not 1 <= getattr(options, name) <= limit:
            raise ArgumentError(f"--{name} {getattr(options, name)} is out of range; write a number from 1 to {limit}.")
    hypernetwork = load_pretrained(options.checkpoint, revision=options.revision)
    images = load_images(options.data, "val" if options.split == "val" else "test").sample(options.images, options.seed)
    batches = calibration_batches(options.data, options.seed) if options.protocol == "calibrated" else None
    result = evaluate_graphs(
        hypernetwork,
        [space[index] for index in range(options.graphs)],
        images,
        bits,
        protocol=options.protocol,
        calibration=batches,
        device=options.device,
        progress=lambda items: progress_bar(items, f"{options.split} W{bits[0]}/A{bits[1]}", options.graphs),
    )
    facts = {name: getattr(options, name) for name in ("checkpoint", "split", "graphs", "protocol", "seed")}
    text = json.dumps({**facts, "images": len(images), "bits": bits, **result.as_dict()}, indent=2)
    if options.json == "-":
        print(text)
        return
    if options.json:
        _write(Path(options.json), text + "\n")
    what = f"{options.split}, W{bits[0]}/A{bits[1]}, {options.graphs} graphs, {len(images)} images"
    print(f"{what}, {options.protocol} protocol")
    print(f"top-1 {result.top1}\ntop-5 {result.top5}   (mean ± standard error; max, percent)")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise ArgumentError(f"{str(path)!r} cannot be written: {error}") from error


def _inspect(options: argparse.Namespace) -> None:
    from ghnqat_sdk.graph.trace import trace

    graph = trace(_model(options), _example(options))
    if options.json:
        nodes = [{name: getattr(node, name) for name in ("op", "module", "kernel", "stride", "dilation", "groups")}
                 | {"parameters": {p.name: p.shape for p in node.parameters}} for node in graph.nodes]  # fmt: skip
        print(json.dumps({"nodes": nodes, "edges": graph.edges, "unreached": dict(graph.unreached)}))
        return
    for index, node in enumerate(graph.nodes):
        sources = ",".join(str(s) for s, t in graph.edges if t == index)
        shapes = "  ".join(f"{p.name} {'×'.join(map(str, p.shape))}" for p in node.parameters)
        print(f"{index:4}  {node.op:16} ← {sources:12} {shapes}")
    counts = ", ".join(f"{count} {op}" for op, count in Counter(node.op for node in graph.nodes).most_common())
    print(f"{len(graph)} nodes ({counts}), {len(graph.edges)} edges, {len(graph.parameters)} parameters")
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
    split, slash, index = name.partition("/")
    if slash:
        from ghnqat_sdk.training.spaces import ArchitectureSpace

        if not index.isdigit():
            raise ArgumentError(f"{name!r} is not SPLIT/INDEX. Write, for example, id/0")
        return ArchitectureSpace(split)[int(index)].build(options.classes)
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise ArgumentError(
            f"{name!r} is no torchvision classifier ({', '.join(known[:4])}, …). For a model of your own, write "
            f"MODULE:CALLABLE, for example my_models:make_resnet20"
        )
    return torchvision.models.get_model(name, weights=None, num_classes=options.classes)


def _imported(name: str) -> Callable[[], Any]:
    import importlib

    module, _, attribute = name.partition(":")
    sys.path.insert(0, "")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ArgumentError(f"{name!r} cannot be imported: {error}. Write MODULE:CALLABLE, found from here.") from error
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
