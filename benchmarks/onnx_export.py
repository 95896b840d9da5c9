"""Exported networks beside ONNX Runtime's own static quantizer: prints the tables of
docs/export.md.

python benchmarks/onnx_export.py --data data/cifar10
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from networks import Torchvision
from torch import Tensor

from ghnqat_sdk import predict_quantized_params
from ghnqat_sdk.data import load_images
from ghnqat_sdk.export import export_onnx
from ghnqat_sdk.export.onnx_graph import Graph, float_twin, fold_batch_norms, separate_constants
from ghnqat_sdk.export.program import require_ranges, to_onnx, with_onnx_quantizers
from ghnqat_sdk.export.runtime import integer_convolutions, milliseconds, runner

NETWORKS = (
    "resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0",
    "squeezenet1_1",
    "shufflenet_v2_x1_0", "googlenet", "densenet121", "mnasnet1_0", "regnet_y_400mf", "vgg11_bn",
)  # fmt: skip


@dataclass(frozen=True)
class Images:
    """Normalized images (N, 3, S, S): to choose ranges with, and to count right answers on."""

    calibration: Tensor
    validation: Tensor
    labels: Tensor

    @classmethod
    def load(cls, root: str, size: int) -> Images:
        train = load_images(root, "train", size).sample(256, seed=0)
        held_out = load_images(root, "val", size).sample(500, seed=0)
        return cls(
            train.normalise(train.images).contiguous(),
            held_out.normalise(held_out.images).contiguous(),
            held_out.labels,
        )


class Reader:
    """Calibration images as ONNX Runtime's quantizer asks for them."""

    def __init__(self, name: str, images: Tensor) -> None:
        self.feeds: Iterator[dict[str, Any]] = ({name: x.numpy()} for x in images.split(64))

    def get_next(self) -> dict[str, Any] | None:
        return next(self.feeds, None)


def float_file(qmodel: torch.nn.Module, images: Tensor) -> bytes:
    """The float twin, with batch norms folded."""
    import copy

    bare = copy.deepcopy(qmodel).eval()
    inputs = (images[:8],)
    require_ranges(bare, inputs)
    graph = Graph(to_onnx(with_onnx_quantizers(bare), inputs, 21))
    separate_constants(graph)
    fold_batch_norms(graph)
    return float_twin(graph)


def own_quantizer(content: bytes, images: Tensor, folder: Path) -> bytes:
    """What ONNX Runtime's static quantizer makes of a float file."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    paths = [folder / name for name in ("float.onnx", "prepared.onnx", "own.onnx")]
    paths[0].write_bytes(content)
    quant_pre_process(paths[0], paths[1])
    quantize_static(
        paths[1],
        paths[2],
        Reader("x", images),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return paths[2].read_bytes()


def classes_of(content: bytes, images: Tensor) -> Tensor:
    """(N,) class that a file gives each image."""
    run = runner(content)
    return torch.cat([run((x,))[0].argmax(1) for x in images.split(50)])


def measure(name: str, bits: tuple[int, int], images: Images, turns: int) -> str:
    """One row of the table."""
    torch.manual_seed(0)
    chunks = images.calibration.split(64)
    network = Torchvision(name).build()
    qmodel = predict_quantized_params(
        network, bits, calibration=chunks, example_inputs=chunks[0][:2]
    ).eval()
    with torch.no_grad():
        expected = torch.cat([qmodel(x).argmax(1) for x in images.validation.split(50)])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ours.onnx"
        report = export_onnx(qmodel, path, images.calibration)
        packed = export_onnx(qmodel, path, images.calibration, storage="int4").size
        export_onnx(qmodel, path, images.calibration)
        in_float = float_file(qmodel, chunks[0])
        files = [
            in_float,
            path.read_bytes(),
            own_quantizer(in_float, images.calibration, Path(folder)),
        ]
    one = [images.validation[:1]]
    ours = classes_of(files[1], images.validation)
    times = [
        statistics.median(t)
        for t in zip(*(milliseconds(files, one) for _ in range(turns)), strict=True)
    ]
    right = [(chosen == images.labels).float().mean().item() for chosen in (expected, ours)]
    return (
        f"| {name} | W{bits[0]}/A{bits[1]} | {report.integer_convolutions} of "
        f"{report.convolutions} | {integer_convolutions(files[2])} | {times[0]:.2f} | "
        f"{times[0] / times[1]:.2f} | {times[0] / times[2]:.2f} | {times[2] / times[1]:.2f} | "
        f"{report.size / report.float_size:.3f} | {packed / report.float_size:.3f} | "
        f"{100 * (ours == expected).float().mean():.1f} | {100 * right[0]:.1f} | "
        f"{100 * right[1]:.1f} |"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="image folder, or torchvision's CIFAR-10")
    parser.add_argument("--networks", nargs="+", default=NETWORKS, help="of torchvision")
    parser.add_argument("--size", type=int, default=64, help="side of the images in pixels")
    parser.add_argument("--bits", nargs="+", default=("8,8", "4,8"))
    parser.add_argument("--turns", type=int, default=5, help="medians of five runs to take")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    images = Images.load(options.data, options.size)
    print(
        "| network | bits | in integers | own | float, ms | times as fast | own | ours to own | "
        "int8 | int4 | same class, % | top-1, torch | top-1 |"
    )
    print("|" + " --- |" * 13)
    for name in options.networks:
        for text in options.bits:
            weight, activation = map(int, text.split(","))
            print(measure(name, (weight, activation), images, options.turns), flush=True)


if __name__ == "__main__":
    main()
