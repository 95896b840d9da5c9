"""Quantized networks through PT2E, compiled by Inductor, beside their float twins.

For each network at W8/A8: its convolutions that became integer kernels, milliseconds of one image
on one thread, medians of five turns in which both follow each other, and for how many validation
images the compiled network names the class that the model names. Needs the torchao extra and a C++
compiler, and takes minutes for each network. Lines are kept in --lines, and nothing is measured
twice.

python benchmarks/pt2e_inductor.py --data data/cifar10 --lines inductor.jsonl
python benchmarks/pt2e_inductor.py --data data/cifar10 --lines inductor.jsonl \\
    --networks torchvision/resnet18
"""

from __future__ import annotations

import argparse
import copy
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import add_data, add_json, append, head, parser, read_lines, row, turns_ms, write_json
from networks import classifier
from onnx_export import NETWORKS, Images
from torch import Tensor, nn

from ghnqat_sdk import predict_quantized_params, to_float
from ghnqat_sdk.export import pt2e_quantizer

Line = dict[str, Any]
Measure = Callable[[str], Line]

BITS = (8, 8)
TURNS = 5
LEAST_SECONDS = 0.2
"""Of one turn of one network."""


def converted(qmodel: nn.Module, twin: nn.Module, image: Tensor) -> torch.fx.GraphModule:
    """The model with its own integers and ranges, as Inductor compiles it."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    program = torch.export.export(twin, (image,)).module()
    return convert_pt2e(prepare_pt2e(program, pt2e_quantizer(qmodel, signed=True)))


def lowered(program: torch.fx.GraphModule, image: Tensor) -> torch.fx.GraphModule:
    """A copy with its layers as calls of integer kernels, as Inductor makes them."""
    from torchao.quantization.pt2e.lowering import lower_pt2e_quantized_to_x86
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer  # noqa: F401

    return lower_pt2e_quantized_to_x86(copy.deepcopy(program), (image,))


def convolutions(twin: nn.Module, image: Tensor) -> int:
    """How many a forward pass in evaluation mode computes."""
    nodes = torch.export.export(twin, (image,)).graph.nodes
    return sum("conv" in str(node.target) and node.op == "call_function" for node in nodes)


def integer_convolutions(program: torch.fx.GraphModule) -> int:
    return sum("onednn.qconv" in str(node.target) for node in program.graph.nodes)


@torch.no_grad()
def measure(name: str, images: Images) -> Line:
    """What one network gives."""
    from torch._inductor import config

    torch.manual_seed(0)
    torch._dynamo.reset()
    chunks = images.calibration.split(64)
    qmodel = predict_quantized_params(
        classifier(name), BITS, calibration=chunks, example_inputs=chunks[0][:2]
    ).eval()
    image = images.validation[:1]
    twin = to_float(copy.deepcopy(qmodel)).eval()
    program = converted(qmodel, twin, image)
    in_kernels = lowered(program, image)
    with config.patch(freezing=True):
        runs = [torch.compile(model) for model in (twin, program)]
        calls = [partial(run, image) for run in runs]
        in_float, in_integers = turns_ms(calls, TURNS, LEAST_SECONDS)
        chosen = torch.cat([runs[1](x).argmax(1) for x in images.validation.split(1)])
    expected = torch.cat([qmodel(x).argmax(1) for x in images.validation.split(50)])
    return {
        "network": name,
        "convolutions": convolutions(twin, image),
        "integer": integer_convolutions(in_kernels),
        "float_ms": in_float,
        "integer_ms": in_integers,
        "same_class": round(100 * (chosen == expected).float().mean().item(), 1),
    }


def table(lines: Sequence[Line]) -> str:
    columns = ["network", "integer kernels", "float, ms", "W8/A8, ms", "times", "same class, %"]
    rows = [head(columns)]
    for line in lines:
        rows.append(
            row(
                [
                    line["network"].partition("/")[2],
                    f"{line['integer']} of {line['convolutions']}",
                    f"{line['float_ms']:.2f}",
                    f"{line['integer_ms']:.2f}",
                    f"{line['float_ms'] / line['integer_ms']:.2f}",
                    f"{line['same_class']:.1f}",
                ]
            )
        )
    return "\n".join(rows)


def measure_networks(
    options: argparse.Namespace, measure: Measure, table: Callable[[Sequence[Line]], str]
) -> None:
    """Measure the networks that have no line yet, and print the table of all."""
    done = {line["network"]: line for line in read_lines(options.lines)}
    for name in options.networks:
        if name not in done:
            done[name] = measure(name)
            append(options.lines, done[name])
            print(done[name], flush=True)
    lines = [done[name] for name in options.networks]
    print(table(lines))
    if options.json:
        write_json(options.json, lines)


def options_of(description: str | None) -> argparse.ArgumentParser:
    options = parser(description)
    add_data(options)
    add_json(options)
    options.add_argument("--lines", type=Path, required=True, help="file for what is measured")
    options.add_argument("--networks", nargs="+", default=NETWORKS, help="of torchvision and timm")
    options.add_argument("--size", type=int, default=64, help="side of the images in pixels")
    return options


def main() -> None:
    options = options_of(__doc__).parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    images = Images.load(options.data, options.size)
    measure_networks(options, lambda name: measure(name, images), table)


if __name__ == "__main__":
    main()
