"""What the benchmarks of exports share: networks, images, models, and a line for each network."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import add_data, add_json, append, parser, read_lines, write_json
from networks import classifier
from torch import Tensor, nn

from ghnqat_sdk import predict_quantized_params
from ghnqat_sdk.data import ImageSet, load_images

NETWORKS = (
    "torchvision/resnet18", "torchvision/resnet50", "torchvision/mobilenet_v2",
    "torchvision/mobilenet_v3_small", "torchvision/efficientnet_b0",
    "torchvision/shufflenet_v2_x1_0", "torchvision/googlenet", "torchvision/densenet121",
    "torchvision/regnet_y_400mf", "timm/mobilenetv4_conv_small", "timm/ghostnet_100",
    "timm/rexnet_100",
)  # fmt: skip
TURNS = 5
CHUNK = 64
"""Images that a model is calibrated on at a time."""

Line = dict[str, Any]


@dataclass(frozen=True)
class Images:
    """Normalized images (N, 3, S, S): to choose ranges with, and to classify."""

    calibration: Tensor
    validation: Tensor
    labels: Tensor

    @classmethod
    def load(cls, root: str, size: int) -> Images:
        train = load_images(root, "train").sample(128, seed=0)
        held_out = load_images(root, "val").sample(500, seed=0)
        return cls(enlarged(train, size), enlarged(held_out, size), held_out.labels)

    @property
    def chunks(self) -> tuple[Tensor, ...]:
        return self.calibration.split(CHUNK)

    @property
    def one(self) -> Tensor:
        return self.validation[:1]

    def right(self, chosen: Tensor) -> float:
        """Percent of the validation images for which a class is the right one."""
        return percent(chosen == self.labels)


def enlarged(images: ImageSet, size: int) -> Tensor:
    """Resized after decoding: decoding all of a folder at another size takes minutes."""
    normal = images.normalize(images.images).contiguous()
    resized = nn.functional.interpolate(normal, size=size, mode="bilinear", antialias=True)
    return resized.contiguous()


def predicted(name: str, bits: tuple[int, int], images: Images) -> nn.Module:
    """A network with predicted parameters, calibrated, always the same."""
    torch.manual_seed(0)
    chunks = images.chunks
    return predict_quantized_params(
        classifier(name), bits, calibration=chunks, example_inputs=chunks[0][:2]
    ).eval()


@torch.no_grad()
def classes(model: Callable[[Tensor], Tensor], images: Tensor, batch: int = 50) -> Tensor:
    """(N,) class that a model gives each image."""
    return torch.cat([model(x).argmax(1) for x in images.split(batch)])


def percent(which: Tensor) -> float:
    return round(100 * which.float().mean().item(), 1)


# ---- a line for each network


def options_of(description: str | None) -> argparse.ArgumentParser:
    options = parser(description)
    add_data(options)
    add_json(options)
    options.add_argument("--lines", type=Path, required=True, help="file for what is measured")
    options.add_argument("--networks", nargs="+", default=NETWORKS, help="of torchvision and timm")
    options.add_argument("--size", type=int, default=64, help="side of the images in pixels")
    return options


def measure_networks(
    options: argparse.Namespace,
    measure: Callable[[str, Images], Line],
    table: Callable[[Sequence[Line]], str],
) -> None:
    """Measure the networks that have no line yet, on one thread, and print the table of all."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    images = Images.load(options.data, options.size)
    done = {line["network"]: line for line in read_lines(options.lines)}
    for name in options.networks:
        if name not in done:
            done[name] = measure(name, images)
            append(options.lines, done[name])
            print(done[name], flush=True)
    lines = [done[name] for name in options.networks]
    print(table(lines))
    if options.json:
        write_json(options.json, lines)


def times_cells(line: Line) -> list[str]:
    """Milliseconds in float and in integers, and how many times as fast the latter are."""
    in_float, in_integers = line["float_ms"], line["integer_ms"]
    return [f"{in_float:.2f}", f"{in_integers:.2f}", f"{in_float / in_integers:.2f}"]
