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

import copy
from collections.abc import Sequence
from functools import partial

import torch
from common import head, row, turns_ms
from exported import (
    TURNS,
    Images,
    Line,
    classes,
    measure_networks,
    options_of,
    percent,
    predicted,
    times_cells,
)
from torch import Tensor, nn

from ghnqat_sdk import to_float
from ghnqat_sdk.export import pt2e_quantizer

BITS = (8, 8)
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
def compiled(twin: nn.Module, program: nn.Module, images: Images) -> tuple[list[float], Tensor]:
    """Milliseconds of one image in float and in integers, and the classes that the latter give."""
    from torch._inductor import config

    torch._dynamo.reset()
    with config.patch(freezing=True):
        runs = [torch.compile(model) for model in (twin, program)]
        times = turns_ms([partial(run, images.one) for run in runs], TURNS, LEAST_SECONDS)
        return times, classes(runs[1], images.validation, batch=1)


@torch.no_grad()
def measure(name: str, images: Images) -> Line:
    """What one network gives."""
    qmodel = predicted(name, BITS, images)
    twin = to_float(copy.deepcopy(qmodel)).eval()
    program = converted(qmodel, twin, images.one)
    in_kernels = lowered(program, images.one)
    (in_float, in_integers), chosen = compiled(twin, program, images)
    return {
        "network": name,
        "convolutions": convolutions(twin, images.one),
        "integer": integer_convolutions(in_kernels),
        "float_ms": in_float,
        "integer_ms": in_integers,
        "same_class": percent(chosen == classes(qmodel, images.validation)),
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
                    *times_cells(line),
                    f"{line['same_class']:.1f}",
                ]
            )
        )
    return "\n".join(rows)


if __name__ == "__main__":
    measure_networks(options_of(__doc__).parse_args(), measure, table)
