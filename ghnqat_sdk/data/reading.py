"""Images from folders, from torchvision's files, and from whatever else holds them, as uint8
tensors."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ghnqat_sdk.errors import ArgumentError, DataError

Labelled = tuple[Tensor, Tensor, tuple[str, ...]]
"""Images (N, C, H, W) uint8, labels (N,) int64, and the classes' names."""

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's name for images of so many channels."""

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
_MOST_CHANNELS = 4  # of an array that may have its channels first or last


@lru_cache(maxsize=2)  # "train" and "val" are cut from the same images
def from_folder(folder: Path, size: int, channels: int) -> Labelled:
    """Every image of `folder/<class>/`, decoded once.

    Raises:
        DataError: a broken image, fewer than two classes, or other ones than the folder beside it
            has.
    """
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
    images = torch.empty(len(labels), channels, size, size, dtype=torch.uint8)
    for row, path in enumerate(path for of_class in paths for path in of_class):
        images[row] = decode_image(path, (size, size), MODES[channels])
    return images, labels, classes


def from_torchvision(root: Path, train: bool, size: int) -> Labelled:
    """CIFAR-10 as torchvision stores it.

    Raises:
        DataError: torchvision cannot read it.
    """
    from torchvision.datasets import CIFAR10

    try:
        data = CIFAR10(str(root), train=train)
    except (RuntimeError, OSError) as error:
        raise DataError(f"torchvision cannot read CIFAR-10 under {str(root)!r}: {error}") from error
    images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
    return _resized(images, size), torch.tensor(data.targets), tuple(data.classes)


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


def from_pairs(pairs: Any, size: int | None) -> tuple[Tensor, list[Any]]:
    """Images (N, C, H, W) uint8 and their labels, from a sequence of (image, label).

    Raises:
        ArgumentError: no pairs, or images of different sizes and no `size`.
    """
    images, labels = [], []
    for pair in _entries(pairs):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise ArgumentError(
                f"An entry of the data is a {type(pair).__name__}; expected (image, label). "
                f"Write ImageSet.of(dataset), or ImageSet.of(images, labels) for arrays."
            )
        images.append(_single(pair[0], size))
        labels.append(pair[1])
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) != 1:
        raise ArgumentError(
            f"The images have the shapes {sorted(shapes)}; expected one. Write ImageSet.of(…, "
            f"size=32), and convert images of other channels before."
        )
    if not images[0].ndim == 3:
        raise ArgumentError(f"An image has shape {tuple(images[0].shape)}; expected (C, H, W).")
    return _resized(_as_bytes(torch.stack(images)), size), labels


def from_array(array: Any, size: int | None) -> Tensor:
    """(N, C, H, W) uint8 of an array (N, H, W), (N, H, W, C) or (N, C, H, W).

    Raises:
        ArgumentError: an array of another shape, or values that are negative or not finite.
    """
    images = torch.as_tensor(array)
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim != 4 or not images.numel():
        raise ArgumentError(
            f"Images are of shape {tuple(images.shape)}; expected (N, H, W), (N, H, W, C) or "
            f"(N, C, H, W). Write images.reshape(-1, height, width) for rows of pixels."
        )
    if images.shape[3] <= _MOST_CHANNELS < images.shape[1]:
        images = images.permute(0, 3, 1, 2)
    return _resized(_as_bytes(images.contiguous()), size)


def as_labels(labels: Any, count: int) -> Tensor:
    """(N,) int64 from 0.

    Raises:
        ArgumentError: anything else.
    """
    numbers = torch.as_tensor(labels)
    whole = not numbers.is_floating_point() and not numbers.is_complex()
    if not whole or numbers.shape != (count,) or numbers.min() < 0:
        raise ArgumentError(
            f"Labels are {numbers.dtype} of shape {tuple(numbers.shape)}; expected a whole number "
            f"from 0 for each of {count} images."
        )
    return numbers.long()


def _entries(pairs: Any) -> Iterable[Any]:
    """Of anything with a length and items by number, such as a data set, or that is iterable."""
    if hasattr(pairs, "__getitem__") and hasattr(pairs, "__len__"):
        return (pairs[index] for index in range(len(pairs)))
    if isinstance(pairs, Iterable):
        return pairs
    raise ArgumentError(
        f"The data is a {type(pairs).__name__}; expected a sequence of (image, label). "
        f"Write ImageSet.of(dataset)."
    )


def _single(image: Any, size: int | None) -> Tensor:
    """(C, H, W) of a PIL image or an array, of a whole number or a floating-point type."""
    if not hasattr(image, "getbands"):
        array = torch.as_tensor(image)
        return array[None] if array.ndim == 2 else array
    from torchvision.transforms.functional import pil_to_tensor

    if size is not None and image.size != (size, size):
        image = image.resize((size, size))
    return pil_to_tensor(image)


def _as_bytes(images: Tensor) -> Tensor:
    """uint8 as it is; other values from 0 to 255, where the largest one, at least 1, is white."""
    if images.dtype == torch.uint8:
        return images
    values = images.double()
    if not values.isfinite().all() or values.min() < 0:
        raise ArgumentError(
            "Images hold negative values, NaN or infinity; expected brightness from 0. Pass them "
            "before they are normalized."
        )
    white = max(1.0, values.max().item())
    return (values * (255 / white)).round().to(torch.uint8)


def _resized(images: Tensor, size: int | None) -> Tensor:
    if size is None or images.shape[2:] == (size, size):
        return images
    from torchvision.transforms.functional import InterpolationMode, resize

    return resize(images, [size, size], InterpolationMode.BICUBIC)


def _classes(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))


def _image_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)


def decode_image(path: Path, size: tuple[int, int], mode: str) -> Tensor:
    """(C, H, W) uint8, resized to the height and width of `size`; `mode` is Pillow's.

    Raises:
        DataError: it is no image, or a broken one.
    """
    from PIL import Image
    from torchvision.transforms.functional import pil_to_tensor

    try:
        with Image.open(path) as file:
            image = file.convert(mode)
    except OSError as error:
        raise DataError(
            f"{str(path)!r} is not a readable image ({error}). Remove or replace the file."
        ) from error
    width_height = size[::-1]
    return pil_to_tensor(image if image.size == width_height else image.resize(width_height))
