"""Labelled images in memory: where they come from, their statistics, draws of them, and moves."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ghnqat_sdk import files
from ghnqat_sdk.errors import ArgumentError, DataError

CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)
VALIDATION_PER_CLASS = 500
"""The last images of each class in the training folder that are held out for choosing."""

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
_Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images in memory.

    Attributes:
        images: (N, C, H, W) uint8.
        labels: (N,) int64.
        classes: Class names in the order of their labels.
        mean, std: Of each of the C channels, where white is 1; what `normalise` takes out.

    Raises:
        ArgumentError: shapes that do not fit together.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...] = CIFAR10_MEAN
    std: tuple[float, ...] = CIFAR10_STD

    def __post_init__(self) -> None:
        shape = tuple(self.images.shape)
        counts = (len(self.labels), len(self.mean), len(self.std))
        if counts != (*shape[:2], shape[1]):
            raise ArgumentError(
                f"Images {shape} do not fit {counts[0]} labels, {counts[1]} means and {counts[2]} "
                f"deviations. Write ImageSet(images, labels, classes, mean=…, std=…)."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> ImageSet:
        """The images at `indices` (M,)."""
        images, labels = self.images[indices], self.labels[indices]
        return dataclasses.replace(self, images=images, labels=labels)

    def sample(self, count: int, seed: int) -> ImageSet:
        """`count` images drawn without replacement, the same for the same seed; at most all."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self.take(order[:count])

    def stratified(self, count: int, generator: torch.Generator) -> ImageSet:
        """The images at `stratified_indices`."""
        return self.take(self.stratified_indices(count, generator))

    def stratified_indices(self, count: int, generator: torch.Generator) -> Tensor:
        """(count,) int64: a random image of each of `count` equal stretches, sorted by label.

        Every image is drawn as often as any other, and every batch has the classes in their
        proportions: its gradient varies less than that of images drawn independently.
        """
        within = torch.rand(count, generator=generator)
        places = (torch.arange(count, dtype=torch.float64) + within) / count
        return self._by_label[(places * len(self)).long()]

    def normalise(self, images: Tensor) -> Tensor:
        """(n, C, H, W) uint8 to float32 of mean 0 and deviation 1 by channel, channels_last."""
        mean = torch.tensor(self.mean, device=images.device).mul_(255).view(1, -1, 1, 1)
        deviation = torch.tensor(self.std, device=images.device).mul_(255).view(1, -1, 1, 1)
        # Arithmetic before the change of layout: whole planes at a time are four times faster.
        floats = (images.float() - mean).div_(deviation)
        return floats.contiguous(memory_format=torch.channels_last)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalized images (n, C, H, W) and labels (n,), in order; the last may be fewer."""
        for start in range(0, len(self), size):
            stretch = slice(start, start + size)
            yield self.normalise(self.images[stretch]), self.labels[stretch]

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


class DataConfig(BaseModel):
    """How images are read and shown."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    size: int = Field(32, ge=8)
    """Side in pixels; images of another size are resized."""
    padding: int = Field(4, ge=0)
    """Training images are shifted by up to as many pixels."""
    mean: tuple[float, float, float] = CIFAR10_MEAN
    std: tuple[_Positive, _Positive, _Positive] = CIFAR10_STD
    """Statistics that normalization takes out, where white is 1."""

    def load(self, root: str | Path, split: str) -> ImageSet:
        """As `load_images`, with this size and these statistics."""
        images = load_images(root, split, self.size)
        return dataclasses.replace(images, mean=self.mean, std=self.std)


@dataclass(frozen=True, eq=False)
class Moves:
    """How n images are moved: first flipped left to right, then shifted."""

    flip: Tensor
    """(n,) bool."""
    rows: Tensor
    """(n,) int64, pixels that the contents move down."""
    columns: Tensor
    """(n,) int64, pixels that they move to the right."""

    def sources(self, height: int, width: int, stride: float = 1) -> tuple[Tensor, Tensor]:
        """Which row (n, height) and column (n, width) of the unmoved map each moved cell shows.

        Cells of `stride` pixels move by the nearest whole number of cells; they may show what lies
        outside the map.
        """
        down = torch.round(self.rows / stride).long()
        right = torch.round(self.columns / stride).long()
        rows = torch.arange(height) - down[:, None]
        columns = torch.arange(width) - right[:, None]
        return rows, torch.where(self.flip[:, None], width - 1 - columns, columns)


def draw_moves(count: int, padding: int, generator: torch.Generator) -> Moves:
    """Flips half of the images and shifts each by -padding … padding pixels in both directions."""
    flip = torch.rand(count, generator=generator) < 0.5
    rows, columns = torch.randint(-padding, padding + 1, (2, count), generator=generator)
    return Moves(flip, rows, columns)


def move_images(images: Tensor, moves: Moves) -> Tensor:
    """(n, C, H, W), normalized or raw, moved with zeros where a shift uncovers; channels_last."""
    height, width = images.shape[2:]
    rows, columns = moves.sources(height, width)
    # One cell of zeros all around stands for everything outside.
    padded = F.pad(images, (1, 1, 1, 1)).permute(0, 2, 3, 1)
    rows = rows.add_(1).clamp_(0, height + 1).to(images.device)
    columns = columns.add_(1).clamp_(0, width + 1).to(images.device)
    indices = torch.arange(len(images), device=images.device)
    return take_cells(padded, indices, rows, columns).permute(0, 3, 1, 2)


def take_cells(maps: Tensor, indices: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(n, h, w, C) of maps (N, H, W, C): maps[indices[i], rows[i, y], columns[i, x]]."""
    _, height, width, channels = maps.shape
    lines = indices[:, None] * height + rows
    cells = lines[:, :, None] * width + columns[:, None, :]
    # Several times faster than indexing with three tensors.
    taken = maps.reshape(-1, channels).index_select(0, cells.flatten())
    return taken.view(*cells.shape, channels)


def load_images(root: str | Path, split: str, size: int = 32) -> ImageSet:
    """Load one split of a data folder into memory.

    Args:
        root: Either an image folder, `root/train/<class>/*.jpg` and `root/test/<class>/*.jpg`, or
            one with torchvision's CIFAR-10 files in it. Every image is decoded once.
        split: "train", "val" (the last 500 training images of each class, not in "train"), "test".
        size: Images of another size are resized to size × size.

    Raises:
        DataError: nothing there, a broken image, or fewer than two classes.
        ArgumentError: an unknown split.
    """
    if split not in ("train", "val", "test"):
        raise ArgumentError(f"split={split!r} is unknown. Write one of 'train', 'val', 'test'.")
    root = Path(root)
    folder = root / ("test" if split == "test" else "train")
    if folder.is_dir():
        everything = _from_folder(folder, size)
    elif (root / "cifar-10-batches-py").is_dir():
        everything = _from_torchvision(root, split != "test", size)
    else:
        raise DataError(
            f"No images under {str(root)!r}: expected {folder.name}/<class>/*.jpg or torchvision's "
            f"cifar-10-batches-py. Download CIFAR-10 with: ghnqat-train download --data {root}"
        )
    if split == "test":
        return everything
    return everything.take(_held_out(everything.labels, split == "val"))


def download_cifar10(root: str | Path) -> None:
    """Download CIFAR-10 (170 MB) into `root` with torchvision, which checks its checksum.

    Raises:
        DataError: it cannot be downloaded, or arrives damaged.
    """
    from torchvision.datasets import CIFAR10

    try:
        CIFAR10(str(root), train=True, download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"CIFAR-10 could not be downloaded into {str(root)!r}: {error}. Check the connection "
            f"and the folder, or put images there: train/<class>/*.jpg and test/<class>/*.jpg."
        ) from error


def _held_out(labels: Tensor, validation: bool) -> Tensor:
    """Indices of the last 500 images of each class, at most a tenth of it, or of all others."""
    chosen = []
    for label in labels.unique().tolist():
        of_class = (labels == label).nonzero().flatten()
        held = min(VALIDATION_PER_CLASS, max(1, len(of_class) // 10))
        cut = len(of_class) - held
        chosen.append(of_class[cut:] if validation else of_class[:cut])
    return torch.cat(chosen).sort().values


def _classes(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))


def _image_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)


@lru_cache(maxsize=2)  # "train" and "val" are cut from the same images
def _from_folder(folder: Path, size: int) -> ImageSet:
    classes = _classes(folder)
    other = folder.parent / ("train" if folder.name == "test" else "test")
    if other.is_dir() and classes != _classes(other):
        raise DataError(
            f"{str(folder)!r} and {str(other)!r} hold different classes; expected the same."
        )
    paths = [_image_files(folder / name) for name in classes]
    if sum(map(bool, paths)) < 2:
        raise DataError(f"{str(folder)!r} holds fewer than two classes; expected <class>/*.jpg.")
    labels = torch.arange(len(classes)).repeat_interleave(torch.tensor([len(p) for p in paths]))
    images = torch.empty(len(labels), 3, size, size, dtype=torch.uint8)
    for row, path in enumerate(path for of_class in paths for path in of_class):
        images[row] = _decode(path, size)
    return ImageSet(images, labels, classes)


def _decode(path: Path, size: int) -> Tensor:
    """(3, size, size) uint8."""
    from PIL import Image
    from torchvision.transforms.functional import pil_to_tensor

    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except OSError as error:
        raise DataError(
            f"{str(path)!r} is not a readable image ({error}). Remove or replace the file."
        ) from error
    return pil_to_tensor(image if image.size == (size, size) else image.resize((size, size)))


def _from_torchvision(root: Path, train: bool, size: int) -> ImageSet:
    from torchvision.datasets import CIFAR10
    from torchvision.transforms.functional import InterpolationMode, resize

    try:
        data = CIFAR10(str(root), train=train)
    except (RuntimeError, OSError) as error:
        raise DataError(f"torchvision cannot read CIFAR-10 under {str(root)!r}: {error}") from error
    images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
    if size != images.shape[-1]:
        images = resize(images, [size, size], InterpolationMode.BICUBIC)
    return ImageSet(images, torch.tensor(data.targets), tuple(data.classes))
