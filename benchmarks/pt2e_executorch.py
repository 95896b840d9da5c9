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
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from common import head, median_ms, row
from networks import classifier
from onnx_export import Images
from pt2e_inductor import TURNS, Line, measure_networks, options_of
from torch import Tensor, nn

from ghnqat_sdk import predict_quantized_params, to_float
from ghnqat_sdk.export import pt2e_quantizer

BITS = (4, 8)
_REPEATS = 50
"""Runs of one turn."""
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
    torch.manual_seed(0)
    chunks = images.calibration.split(64)
    qmodel = predict_quantized_params(
        classifier(name), BITS, calibration=chunks, example_inputs=chunks[0][:2]
    ).eval()
    image = images.validation[:1]
    twin = to_float(copy.deepcopy(qmodel)).eval()
    model = quantized(qmodel, chunks)
    targets = calls(model.graph)
    program = lowered(model, image)
    with TemporaryDirectory() as folder:
        files = [Path(folder) / "float.pte", Path(folder) / "integers.pte"]
        runs = [
            runner(file, each)
            for file, each in zip(files, (lowered(twin, image), program), strict=True)
        ]
        sizes = [file.stat().st_size for file in files]
        turns = [[median_ms(partial(run, image), _REPEATS) for run in runs] for _ in range(TURNS)]
        chosen = torch.cat([runs[1](x.contiguous()).argmax(1) for x in images.validation.split(1)])
    expected = torch.cat([qmodel(x).argmax(1) for x in images.validation.split(50)])
    in_float, in_integers = (round(median(times), 3) for times in zip(*turns, strict=True))
    return {
        "network": name,
        "layers": products(targets),
        "integer": sum(_OF_LAYERS in target for target in targets) - left_outside(program),
        "size": round(sizes[1] / sizes[0], 3),
        "float_ms": in_float,
        "integer_ms": in_integers,
        "same_class": round(100 * (chosen == expected).float().mean().item(), 1),
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
                    f"{line['float_ms']:.2f}",
                    f"{line['integer_ms']:.2f}",
                    f"{line['float_ms'] / line['integer_ms']:.2f}",
                    f"{line['same_class']:.1f}",
                ]
            )
        )
    return "\n".join(rows)


def main() -> None:
    options = options_of(__doc__).parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    images = Images.load(options.data, options.size)
    measure_networks(options, lambda name: measure(name, images), table)


if __name__ == "__main__":
    main()
