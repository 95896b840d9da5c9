"""Quantized networks in ExecuTorch, by XNNPACK, beside their float twins.

For each network at W4/A8: convolutions and linear layers that XNNPACK runs on integers, the size of
the program beside that in float, milliseconds of one image by the clock, and for how many
validation images it names the class that the model names. Needs the torchao extra and executorch.
Lines are kept in --lines, and nothing is measured twice.

taskset -c 0 python benchmarks/pt2e_executorch.py --data data/cifar10 --lines executorch.jsonl
taskset -c 0 python benchmarks/pt2e_executorch.py --data data/cifar10 --lines executorch.jsonl \\
    --networks torchvision/mobilenet_v2
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

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

BITS = (4, 8)
LEAST_SECONDS = 0.1
"""Of one turn of one network."""
_PRODUCTS = ("conv", "linear", "addmm")
_OF_LAYERS = "quantized_decomposed.dequantize_per_channel"
"""What an exported model does once for each layer whose weight is integers."""


@torch.no_grad()
def quantized(qmodel: nn.Module, chunks: Sequence[Tensor]) -> nn.Module:
    """The model as XNNPACK takes it."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    twin = to_float(copy.deepcopy(qmodel)).eval()
    any_batch = ({0: torch.export.Dim.AUTO},)
    program = torch.export.export(twin, (chunks[0],), dynamic_shapes=any_batch).module()
    prepared = prepare_pt2e(program, pt2e_quantizer(qmodel, xnnpack=True))
    for images in chunks:  # ranges of outputs
        prepared(images)
    return convert_pt2e(prepared)


def lowered(model: nn.Module, image: Tensor) -> Any:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    program = torch.export.export(model, (image,))
    return to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])


def calls(graph: Any) -> list[str]:
    return [str(node.target) for node in graph.nodes if node.op == "call_function"]


def products(targets: Sequence[str]) -> int:
    return sum(any(word in target for word in _PRODUCTS) for target in targets)


def left_outside(program: Any) -> int:
    """Products that XNNPACK did not take."""
    return products(calls(program.exported_program().graph))


def runner(file: Path, program: Any) -> Callable[[Tensor], Tensor]:
    from executorch.runtime import Runtime

    program.to_executorch().save(str(file))
    method = Runtime.get().load_program(file).load_method("forward")
    return lambda image: method.execute([image])[0]


@torch.no_grad()
def measure(name: str, images: Images) -> Line:
    """What one network gives."""
    qmodel = predicted(name, BITS, images)
    model = quantized(qmodel, images.chunks)
    in_float = lowered(to_float(copy.deepcopy(qmodel)).eval(), images.one)
    in_integers = lowered(model, images.one)
    with TemporaryDirectory() as folder:
        files = [Path(folder) / "float.pte", Path(folder) / "integers.pte"]
        runs = list(map(runner, files, (in_float, in_integers)))
        sizes = [file.stat().st_size for file in files]
        timed = [partial(run, images.one) for run in runs]
        # XNNPACK computes in threads of its own, whose time is that of the clock.
        float_ms, integer_ms = turns_ms(timed, TURNS, LEAST_SECONDS, time.perf_counter)
        chosen = classes(runs[1], images.validation, batch=1)
    targets = calls(model.graph)
    return {
        "network": name,
        "layers": products(targets),
        "integer": sum(_OF_LAYERS in target for target in targets) - left_outside(in_integers),
        "size": round(sizes[1] / sizes[0], 3),
        "float_ms": float_ms,
        "integer_ms": integer_ms,
        "same_class": percent(chosen == classes(qmodel, images.validation)),
    }


def table(lines: Sequence[Line]) -> str:
    columns = ["network", "on integers", "size", "float, ms", "W4/A8, ms", "times", "same class, %"]
    rows = [head(columns)]
    for line in lines:
        rows.append(
            row(
                [
                    line["network"].partition("/")[2],
                    f"{line['integer']} of {line['layers']}",
                    f"{line['size']:.2f}",
                    *times_cells(line),
                    f"{line['same_class']:.1f}",
                ]
            )
        )
    return "\n".join(rows)


if __name__ == "__main__":
    measure_networks(options_of(__doc__).parse_args(), measure, table)
