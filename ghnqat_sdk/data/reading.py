"""Images from folders, from torchvision's files, and from whatever else holds them, as uint8
tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ghnqat_sdk.data.checks import as_tensor
from ghnqat_sdk.data.pictures import MODES, decode_image, picture_tensor
from ghnqat_sdk.errors import ArgumentError, DataError

Labelled = tuple[Tensor, Tensor, tuple[str, ...]]
"""Images (N, C, H, W) uint8, labels (N,) int64, and the classes' names."""

_File = tuple[Path, int, int]
"""Path, time of its last change, and size."""

_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
_OVERSHOOT = 1.01
"""Resized images may be a little brighter than white."""

_MOST_NAMED = 3
_MOST_CHANNELS = 4  # of an array that may have its channels first or last


def from_folder(folder: Path, size: int, channels: int) -> Labelled:
    """Every image of `folder/<class>/` and of folders in it, decoded once as long as the files stay
    as they are.

    Raises:
        DataError: a broken image, fewer than two classes, or other ones than the folder beside it
            has.
    """
    classes = _classes(folder)
    other = folder.parent / ("train" if folder.name == "test" else "test")
    if other.is_dir() and classes != _classes(other):
        raise DataError(
            f"{str(folder)!r} and {str(other)!r} hold different classes; expected the same. "
            f"{_only_in(folder, other)}{_only_in(other, folder)}Rename, add or remove folders."
        )
    files = [_image_files(folder / name) for name in classes]
    if sum(map(bool, files)) < 2:
        raise DataError(f"{str(folder)!r} holds fewer than two classes; expected <class>/*.jpg.")
    counts = torch.tensor([len(f) for f in files], device="cpu")
    labels = torch.arange(len(classes), device="cpu").repeat_interleave(counts)
    return _decoded(tuple(chain(*files)), size, channels).clone(), labels, classes


@lru_cache(maxsize=2)  # "train" and "val" are cut from the same images
def _decoded(files: tuple[_File, ...], size: int, channels: int) -> Tensor:
    """(N, C, H, W) uint8"""
    images = torch.empty(len(files), channels, size, size, dtype=torch.uint8, device="cpu")
    for row, (path, *_) in enumerate(files):
        images[row] = decode_image(path, (size, size), MODES[channels])
    return images


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
    return _resized(_as_bytes(torch.stack(images), white), size), labels


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
    return _resized(_as_bytes(_channels_first(images).contiguous(), white), size)


def _channels_first(images: Tensor) -> Tensor:
    """(…, C, H, W) of that or of (…, H, W, C)."""
    last = images.shape[-1] <= _MOST_CHANNELS < images.shape[-3]
    return images.movedim(-1, -3) if last else images


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


def _as_bytes(images: Tensor, white: float | None) -> Tensor:
    """uint8 as it is unless something else is white; other values from 0 to 255."""
    if images.dtype == torch.uint8 and white is None:
        return images
    values = images.double()
    if not values.isfinite().all() or values.min() < 0:
        raise ArgumentError(
            "Images hold negative values, NaN or infinity; expected brightness from 0. Pass them "
            "before they are normalized."
        )
    largest = values.max().item()
    white = _white(largest) if white is None else white
    if not 0 < white < math.inf or largest > white * _OVERSHOOT:
        raise ArgumentError(
            f"white={white!r} is less than the largest value of the images, {largest:g}, or no "
            f"positive number. Write the value of white, such as white={_least_power(largest)}."
        )
    return (values * (255 / white)).round().clamp_(max=255).to(torch.uint8)


def _white(largest: float) -> float:
    """What is white where the largest value is as given. It must not depend on the images: those
    for training and those for testing have to be read alike."""
    for white in (1, 255, 65535):
        if white / 2 < largest <= white * _OVERSHOOT or largest <= white == 1:
            return white
    raise ArgumentError(
        f"The largest value of the images is {largest:g}, and white may be 1, 255, 65535 or "
        f"something else. Write ImageSet.of(…, white={_least_power(largest)}), or another number."
    )


def _least_power(largest: float) -> int:
    """1, 2, 4, …"""
    return 2 ** math.ceil(math.log2(max(1.0, largest)))


def _resized(images: Tensor, size: int | None) -> Tensor:
    if size is None or images.shape[2:] == (size, size):
        return images
    from torchvision.transforms.functional import InterpolationMode, resize

    return resize(images, [size, size], InterpolationMode.BICUBIC)


def _classes(folder: Path) -> tuple[str, ...]:
    """Names of its folders; hidden ones are of other programs."""
    entries = (entry for entry in folder.iterdir() if not entry.name.startswith("."))
    return tuple(sorted(entry.name for entry in entries if entry.is_dir()))


def _only_in(folder: Path, other: Path) -> str:
    """A sentence about classes that `other` lacks, the first few; nothing where it lacks none."""
    alone = sorted(set(_classes(folder)) - set(_classes(other)))
    more = f" and {len(alone) - _MOST_NAMED} more" if len(alone) > _MOST_NAMED else ""
    names = ", ".join(map(repr, alone[:_MOST_NAMED]))
    return f"Only {folder.name!r} has {names}{more}. " if alone else ""


def _image_files(folder: Path) -> tuple[_File, ...]:
    """Those of the folder and of folders in it, hidden ones left out."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
    seen = [path for path in paths if not _is_hidden(path.relative_to(folder))]
    facts = [(path, path.stat()) for path in seen]
    return tuple((path, each.st_mtime_ns, each.st_size) for path, each in facts)


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
