"""Images from torchvision's files, and from whatever else holds them, as uint8 tensors."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ghnqat_sdk.data.brightness import all_as_bytes, as_bytes
from ghnqat_sdk.data.checks import as_tensor
from ghnqat_sdk.data.pictures import picture_tensor
from ghnqat_sdk.errors import ArgumentError, DataError

Labelled = tuple[Tensor, Tensor, tuple[str, ...]]
"""Images (N, C, H, W) uint8, labels (N,) int64, and the classes' names."""

_MOST_CLASSES_EACH = 20  # numbers of classes for each class that has images
_MOST_CHANNELS = 4  # of an array that may have its channels first or last


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
    labels = torch.tensor(data.targets, device="cpu")
    return _resized(images, size), labels, tuple(data.classes)


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


def from_pairs(pairs: Any, size: int | None, white: float | None) -> tuple[Tensor, list[Any]]:
    """Images (N, C, H, W) uint8 and their labels, from a sequence of (image, label).

    Raises:
        ArgumentError: no pairs, images of different sizes and no `size`, or values of which it is
            not known what is white.
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
    if size is not None and {image.ndim for image in images} == {3}:
        images = [_resized(x[None], size)[0] for x in all_as_bytes(images, white)]
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) != 1:
        raise ArgumentError(
            f"The images have the shapes {sorted(shapes)}; expected one. Write ImageSet.of(…, "
            f"size=32), and convert images of other channels before."
        )
    if len(kinds := {str(image.dtype) for image in images}) > 1:
        raise ArgumentError(
            f"The images are of the types {', '.join(sorted(kinds))}, whose white differs; "
            "expected one. Convert them before."
        )
    if not images[0].ndim == 3:
        raise ArgumentError(f"An image has shape {tuple(images[0].shape)}; expected (C, H, W).")
    return as_bytes(torch.stack(images), white if size is None else None), labels


def from_array(array: Any, size: int | None, white: float | None) -> Tensor:
    """(N, C, H, W) uint8 of an array (N, H, W), (N, H, W, C) or (N, C, H, W).

    Raises:
        ArgumentError: an array of another shape, values that are negative or not finite, or of
            which it is not known what is white.
    """
    images = as_tensor("Images", array)
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim != 4 or not images.numel():
        raise ArgumentError(
            f"Images are of shape {tuple(images.shape)}; expected (N, H, W), (N, H, W, C) or "
            f"(N, C, H, W). Write images.reshape(-1, height, width) for rows of pixels."
        )
    return _resized(as_bytes(_channels_first(images).contiguous(), white), size)


def _channels_first(images: Tensor) -> Tensor:
    """(…, C, H, W) of that or of (…, H, W, C): channels are few, or images are square."""
    first, middle, last = images.shape[-3:]
    few = last <= _MOST_CHANNELS < first
    square = _MOST_CHANNELS < first == middle != last
    return images.movedim(-1, -3) if few or square else images


def as_labels(labels: Any, count: int) -> Tensor:
    """(N,) int64 from 0.

    Raises:
        ArgumentError: anything else.
    """
    numbers = as_tensor("Labels", labels)
    whole = not numbers.is_floating_point()
    if not whole or numbers.shape != (count,) or numbers.long().min() < 0:
        raise ArgumentError(
            f"Labels are {numbers.dtype} of shape {tuple(numbers.shape)}; expected a whole number "
            f"from 0 for each of {count} images."
        )
    return numbers.long()


def class_numbers(labels: Tensor) -> list[str]:
    """Names of classes that have none: their numbers.

    Raises:
        ArgumentError: labels that are far above their count, as ids are.
    """
    count, found = int(labels.max()) + 1, len(labels.unique())
    if count > _MOST_CLASSES_EACH * found:
        raise ArgumentError(
            f"Labels go up to {count - 1:,}, and {found} of these classes have images. Number them "
            f"from 0: ids, labels = torch.unique(labels, return_inverse=True)."
        )
    return [str(number) for number in range(count)]


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
        array = as_tensor("An image", image)
        if array.ndim != 3:
            return array[None] if array.ndim == 2 else array
        return _channels_first(array)
    return picture_tensor(image, size)


def _resized(images: Tensor, size: int | None) -> Tensor:
    if size is None or images.shape[2:] == (size, size):
        return images
    from torchvision.transforms.functional import InterpolationMode, resize

    return resize(images, [size, size], InterpolationMode.BICUBIC)
