"""CIFAR-10 as one uint8 tensor, from torchvision's files or from an image folder, and augmentation on tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ghnqat_sdk.errors import ArgumentError, DataError

CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)
VALIDATION_PER_CLASS = 500
"""The last images of each class in the training folder that are held out for choosing."""

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


@dataclass(frozen=True)
class ImageSet:
    """Images in memory.

    Attributes:
        images: (N, 3, H, W) uint8.
        labels: (N,) int64.
        classes: Class names in the order of their labels.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> ImageSet:
        """The images at `indices` (M,)."""
        return ImageSet(self.images[indices], self.labels[indices], self.classes)

    def sample(self, count: int, seed: int) -> ImageSet:
        """`count` images drawn without replacement, the same ones for the same seed; all of them if there are fewer."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self.take(order[:count])

    def stratified(self, count: int, generator: torch.Generator) -> ImageSet:
        """`count` random images, one from each of `count` equal stretches of the images in the order of their labels.

        Every image is drawn as often as any other, and every batch has the classes in their proportions: gradients of
        such batches vary less than those of images drawn independently.
        """
        places = (torch.arange(count, dtype=torch.float64) + torch.rand(count, generator=generator)) / count
        return self.take(self._by_label[(places * len(self)).long()])

    @cached_property
    def _by_label(self) -> Tensor:
        """(N,) indices of the images, sorted by label."""
        return self.labels.argsort(stable=True)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalized images (n, 3, H, W) float32 and labels (n,), in order; the last batch may be smaller."""
        for start in range(0, len(self), size):
            yield normalise_images(self.images[start : start + size]), self.labels[start : start + size]


def load_images(root: str | Path, split: str, size: int = 32) -> ImageSet:
    """Load one split of a data folder into memory.

    `root` is either an image folder, `root/train/<class>/*.jpg` and `root/test/<class>/*.jpg`, or a folder with
    torchvision's CIFAR-10 files in it. Every image is decoded once.

    Args:
        root: The folder.
        split: "train" (without the validation images), "val" (the last 500 training images of each class), "test".
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
        everything = _from_torchvision(root, train=split != "test")
    else:
        raise DataError(
            f"No images under {str(root)!r}: expected {folder.name}/<class>/*.jpg or torchvision's "
            f"cifar-10-batches-py. Download CIFAR-10 with: ghnqat-train download --data {root}"
        )
    return everything if split == "test" else everything.take(_held_out(everything.labels, split == "val"))


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
            f"CIFAR-10 could not be downloaded into {str(root)!r}: {error}. Check the connection and the folder, or "
            f"put images there as train/<class>/*.jpg and test/<class>/*.jpg."
        ) from error


def normalise_images(images: Tensor) -> Tensor:
    """(N, 3, H, W) uint8 to float32 with CIFAR-10's mean 0 and deviation 1 for each channel, channels_last."""
    mean = torch.tensor(CIFAR10_MEAN, device=images.device).mul_(255).view(1, 3, 1, 1)
    deviation = torch.tensor(CIFAR10_STD, device=images.device).mul_(255).view(1, 3, 1, 1)
    return images.to(torch.float32, memory_format=torch.channels_last).sub_(mean).div_(deviation)


def augment(images: Tensor, generator: torch.Generator, padding: int = 4, size: int | None = None) -> Tensor:
    """Random horizontal flip and random crop after zero padding, each image its own.

    Args:
        images: (N, C, H, H), normalized or raw.
        generator: Source of all randomness, on the CPU.
        padding: Zeros added on each side before the crop.
        size: Side of the crop, at most H + 2 · padding; H where nothing is said.

    Returns:
        (N, C, size, size)
    """
    count, side = len(images), images.shape[-1]
    size = size or side
    flip = torch.rand(count, generator=generator) < 0.5
    rows, columns = torch.randint(0, side + 2 * padding - size + 1, (2, count), generator=generator)
    padded = F.pad(images, (padding,) * 4)
    across = torch.arange(size)
    y = rows[:, None] + across  # (N, size)
    x = columns[:, None] + torch.where(flip[:, None], across.flip(0), across)  # (N, size)
    index = torch.arange(count)[:, None, None]
    y, x, index = (t.to(images.device) for t in (y[:, :, None], x[:, None, :], index))
    return padded.permute(0, 2, 3, 1)[index, y, x].permute(0, 3, 1, 2)


def _held_out(labels: Tensor, validation: bool) -> Tensor:
    """Indices of the last 500 images of each class, or of all the others; a tenth of a class with fewer than 5,000."""
    chosen = []
    for label in labels.unique().tolist():
        of_class = (labels == label).nonzero().flatten()
        cut = len(of_class) - min(VALIDATION_PER_CLASS, max(1, len(of_class) // 10))
        chosen.append(of_class[cut:] if validation else of_class[:cut])
    return torch.cat(chosen).sort().values


@lru_cache(maxsize=2)  # "train" and "val" are cut from the same images
def _from_folder(folder: Path, size: int) -> ImageSet:
    classes = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
    other = folder.parent / ("train" if folder.name == "test" else "test")
    if other.is_dir() and classes != tuple(sorted(entry.name for entry in other.iterdir() if entry.is_dir())):
        raise DataError(
            f"{str(folder)!r} and {str(other)!r} hold different classes; expected the same folders in both."
        )
    files = [(path, i) for i, name in enumerate(classes) for path in sorted((folder / name).iterdir())]
    files = [(path, label) for path, label in files if path.suffix.lower() in _SUFFIXES]
    if len({label for _, label in files}) < 2:
        raise DataError(f"{str(folder)!r} holds images of fewer than two classes; expected <class>/*.jpg for each.")
    images = torch.empty(len(files), 3, size, size, dtype=torch.uint8)
    for row, (path, _) in enumerate(files):
        images[row] = _decode(path, size)
    return ImageSet(images, torch.tensor([label for _, label in files]), classes)


def _decode(path: Path, size: int) -> Tensor:
    """(3, size, size) uint8."""
    from PIL import Image
    from torchvision.transforms.functional import pil_to_tensor

    try:
        with Image.open(path) as image:
            image = image.convert("RGB")
            return pil_to_tensor(image if image.size == (size, size) else image.resize((size, size)))
    except OSError as error:
        raise DataError(f"{str(path)!r} is not a readable image ({error}). Remove or replace the file.") from error


def _from_torchvision(root: Path, train: bool) -> ImageSet:
    from torchvision.datasets import CIFAR10

    try:
        data = CIFAR10(str(root), train=train)
    except (RuntimeError, OSError) as error:
        raise DataError(f"torchvision cannot read CIFAR-10 under {str(root)!r}: {error}") from error
    images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
    return ImageSet(images, torch.tensor(data.targets), tuple(data.classes))
