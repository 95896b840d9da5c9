"""Labelled images in memory: their statistics, draws of them, and the config that loads them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Protocol

import torch
from pydantic import Field
from torch import Tensor

from ghnqat_sdk import files
from ghnqat_sdk.checks import check_whole
from ghnqat_sdk.configs import CIFAR10_MEAN, CIFAR10_STD, Part
from ghnqat_sdk.data.brightness import statistics_of
from ghnqat_sdk.data.checks import check_fits
from ghnqat_sdk.data.folders import from_folder
from ghnqat_sdk.data.pictures import MODES
from ghnqat_sdk.data.reading import (
    Labelled,
    as_labels,
    class_numbers,
    from_array,
    from_pairs,
    from_torchvision,
)
from ghnqat_sdk.errors import ArgumentError, DataError

VALIDATION_PER_CLASS = 500
"""The last images of each class in the training folder that are held out for choosing."""

_Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images in memory.

    Attributes:
        images: (N, C, H, W) uint8.
        labels: (N,) int64.
        classes: Class names in the order of their labels.
        mean, std: Of each of the C channels, where white is 1; what `normalize` takes out.

    Raises:
        ArgumentError: shapes that do not fit together, images of another type, or labels of no
            class.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...] = CIFAR10_MEAN
    std: tuple[float, ...] = CIFAR10_STD

    def __post_init__(self) -> None:
        check_fits(self.images, self.labels, self.classes, self.mean, self.std)

    @classmethod
    def of(
        cls,
        data: Any,
        labels: Any = None,
        *,
        classes: Sequence[str] | None = None,
        size: int | None = None,
        white: float | None = None,
    ) -> ImageSet:
        """Images as other libraries hold them, normalized by their own statistics.

        Args:
            data: A torchvision data set, or any sequence of (image, label) where an image is a PIL
                image or what `torch.as_tensor` takes; or, with `labels`, an array of all images:
                (N, H, W), (N, H, W, C) or (N, C, H, W).
            labels: (N,) whole numbers from 0.
            classes: Names in the order of the labels; by default those of `data.classes`, or
                numbers.
            size: Images of another size are resized to size × size; needed where they differ in
                size.
            white: The value of white, where 0 is black. By default 255 for uint8, and otherwise 1,
                255 or 65535, if the largest value is above the half of it.

        Raises:
            ArgumentError: no images, labels that do not fit, arrays of no such shape, or values of
                which it is not known what is white.

        Examples:
            >>> images = ImageSet.of(torch.rand(6, 8, 8), [0, 1, 2, 0, 1, 2], size=32)
            >>> images.images.shape, images.classes
            (torch.Size([6, 1, 32, 32]), ('0', '1', '2'))
        """
        if size is not None:
            check_whole("size", size, 1, "size=32")
        if labels is None:
            classes = getattr(data, "classes", None) if classes is None else classes
            images, labels = from_pairs(data, size, white)
        else:
            images = from_array(data, size, white)
        numbers = as_labels(labels, len(images))
        names = class_numbers(numbers) if classes is None else classes
        return cls(images, numbers, tuple(map(str, names)), *statistics_of(images))

    def with_statistics_of(self, training: ImageSet) -> ImageSet:
        """The same images, normalized by the mean and deviation of the images of `training`."""
        mean, std = statistics_of(training.images)
        return dataclasses.replace(self, mean=mean, std=std)

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> ImageSet:
        """The same images on another device."""
        images, labels = self.images.to(device), self.labels.to(device)
        return dataclasses.replace(self, images=images, labels=labels)

    def take(self, indices: Tensor) -> ImageSet:
        """The images at `indices` (M,)."""
        images, labels = self.images[indices], self.labels[indices]
        return dataclasses.replace(self, images=images, labels=labels)

    def sample(self, count: int, seed: int) -> ImageSet:
        """`count` images drawn without replacement, the same for the same seed; at most all."""
        check_whole("count", count, 0, "sample(1000, seed=0)")
        generator = torch.Generator("cpu").manual_seed(seed)
        order = torch.randperm(len(self), generator=generator, device="cpu")
        return self.take(order[:count])

    def stratified(self, count: int, generator: torch.Generator) -> ImageSet:
        """The images at `stratified_indices`."""
        return self.take(self.stratified_indices(count, generator))

    def stratified_indices(self, count: int, generator: torch.Generator) -> Tensor:
        """(count,) int64: a random image of each of `count` equal stretches, sorted by label.

        Every image is drawn as often as any other, and every batch has the classes in their
        proportions: its gradient varies less than that of images drawn independently.
        """
        within = torch.rand(count, generator=generator, device="cpu")
        places = (torch.arange(count, dtype=torch.float64, device="cpu") + within) / count
        return self._by_label[(places * len(self)).long()]

    def normalize(self, images: Tensor) -> Tensor:
        """(n, C, H, W) uint8 to float32 of mean 0 and deviation 1 by channel, channels_last."""
        mean = torch.tensor(self.mean, device=images.device).mul_(255).view(1, -1, 1, 1)
        deviation = torch.tensor(self.std, device=images.device).mul_(255).view(1, -1, 1, 1)
        # Arithmetic before the change of layout: whole planes at a time are four times faster.
        floats = (images.float() - mean).div_(deviation)
        return floats.contiguous(memory_format=torch.channels_last)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalized images (n, C, H, W) and labels (n,), in order; the last may be fewer."""
        check_whole("size", size, 1, "batches(64)")
        for start in range(0, len(self), size):
            stretch = slice(start, start + size)
            yield self.normalize(self.images[stretch]), self.labels[stretch]

    def digest(self) -> str:
        """16 hexadecimal digits of all that is in here; computed once."""
        return self._digest

    @cached_property
    def _by_label(self) -> Tensor:
        return self.labels.argsort(stable=True)

    @cached_property
    def _digest(self) -> str:
        contents = files.digest({"images": self.images, "labels": self.labels})
        facts = [list(self.images.shape), contents, self.classes, self.mean, self.std]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


class DataConfig(Part):
    """How images are read and shown."""

    size: int = Field(default=32, ge=8)
    """Side in pixels; images of another size are resized."""
    padding: int = Field(default=4, ge=0)
    """Training images are shifted by up to as many pixels."""
    mean: tuple[float, float, float] = CIFAR10_MEAN
    std: tuple[_Positive, _Positive, _Positive] = CIFAR10_STD
    """Statistics that normalization takes out, where white is 1."""

    def load(self, root: str | Path, split: str) -> ImageSet:
        """As `load_images`, with this size and these statistics."""
        return load_images_like(self, root, split)


class Known(Protocol):
    """What images were like, such as `hypernetwork.config.images`."""

    @property
    def size(self) -> int: ...
    @property
    def mean(self) -> tuple[float, ...]: ...
    @property
    def std(self) -> tuple[float, ...]: ...


def load_images_like(
    known: Known, root: str | Path, split: str, size: int | None = None
) -> ImageSet:
    """As `load_images`, normalized as known ones were, and of their size unless another is given.

    Raises:
        DataError, ArgumentError: as `load_images`.
    """
    images = load_images(root, split, known.size if size is None else size)
    return dataclasses.replace(images, mean=known.mean, std=known.std)


def load_images(
    root: str | Path,
    split: str,
    size: int = 32,
    *,
    channels: int = 3,
    own_statistics: bool = False,
    white: float | None = None,
) -> ImageSet:
    """Load one split of a data folder into memory.

    Args:
        root: Either an image folder, `root/train/<class>/*.jpg` and `root/test/<class>/*.jpg`, or
            one with torchvision's CIFAR-10 files in it. Folders in a class's folder belong to the
            class. Every image is decoded once.
        split: "train", "val" (the last 500 training images of each class, at most a tenth of it,
            and at least one of two, not in "train"), "test".
        size: Images of another size are resized to size × size.
        channels: 1 for grey images, 3 for colours, 4 for colours and transparency.
        own_statistics: Normalize every split by the mean and deviation of the images in "train"
            instead of CIFAR-10's; images without three channels always are.
        white: The value of white in grey files of more than 8 bits, as 4095 of 12; by default as in
            `ImageSet.of`.

    Raises:
        DataError: nothing there, a broken image, fewer than two classes, or one without images.
        ArgumentError: an unknown split, another number of channels, or images of more than 8 bits,
            of which it is not known what is white.

    Warns:
        UnfamiliarDataWarning: files that are no images are left out.
    """
    if split not in ("train", "val", "test"):
        raise ArgumentError(f"split={split!r} is unknown. Write one of 'train', 'val', 'test'.")
    if channels not in MODES:
        raise ArgumentError(
            f"channels={channels!r} is none of {', '.join(map(str, MODES))}. Write "
            f"ImageSet.of(images, labels) for arrays of other channels."
        )
    check_whole("size", size, 1, "load_images(folder, 'train', size=32)")
    if not isinstance(root, (str, os.PathLike)):
        raise ArgumentError(f"root={root!r} is no folder. Write load_images('data', 'train').")
    images, labels, classes = _read(Path(root), split, size, channels, white)
    if split != "test":
        kept = _held_out(labels, split == "val")
        if not len(kept):
            raise DataError(f"{str(root)!r} has one image of each class, and none to hold out.")
        images, labels = images[kept], labels[kept]
    if not own_statistics and channels == len(CIFAR10_MEAN):
        return ImageSet(images, labels, classes)
    training = images
    if split != "train":
        training, targets, _ = _read(Path(root), "train", size, channels, white)
        training = training[_held_out(targets, validation=False)]
    return ImageSet(images, labels, classes, *statistics_of(training))


def _read(root: Path, split: str, size: int, channels: int, white: float | None) -> Labelled:
    folder = root / ("test" if split == "test" else "train")
    if folder.is_dir():
        return from_folder(folder, size, channels, white)
    if (root / "cifar-10-batches-py").is_dir() and channels == 3:
        return from_torchvision(root, split != "test", size)
    raise DataError(
        f"No images under {str(root)!r}: expected {folder.name}/<class>/*.jpg or torchvision's "
        f"cifar-10-batches-py. Download CIFAR-10 with: ghnqat-train download --data {root}"
    )


def _held_out(labels: Tensor, validation: bool) -> Tensor:
    """Indices of the last 500 images of each class, at most a tenth of it, or of all others."""
    chosen = []
    for label in labels.unique().tolist():
        of_class = (labels == label).nonzero().flatten()
        alone = len(of_class) == 1  # then it is for training
        held = 0 if alone else min(VALIDATION_PER_CLASS, max(1, len(of_class) // 10))
        cut = len(of_class) - held
        chosen.append(of_class[cut:] if validation else of_class[:cut])
    return torch.cat(chosen).sort().values
