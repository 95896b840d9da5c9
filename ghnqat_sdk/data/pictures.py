"""Pillow's pictures, in memory or in files, as uint8 tensors, turned as their cameras were held."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ghnqat_sdk.data.brightness import all_as_bytes
from ghnqat_sdk.devices import on_cpu_by_default
from ghnqat_sdk.errors import DataError

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's name for images of so many channels."""

_ALIKE = {"1": "L", "La": "LA", "RGBa": "RGBA"}
_ALIKE |= dict.fromkeys(("RGBX", "YCbCr", "CMYK", "HSV", "LAB"), "RGB")
"""Pillow's modes whose numbers are no brightness of up to 255, and those that say the same."""


def picture_tensor(picture: Any, size: int | None) -> Tensor:
    """(C, H, W) uint8, or of whole numbers with more bits, resized to size × size."""
    picture = _upright(picture)
    if picture.mode in ("P", "PA"):  # numbers of colours
        picture = picture.convert("RGBA" if "transparency" in picture.info else "RGB")
    picture = picture.convert(_ALIKE.get(picture.mode, picture.mode))
    if size is not None and picture.size != (size, size):
        picture = picture.resize((size, size))
    return _tensor_of(picture)


def decode_image(path: Path, size: tuple[int, int], mode: str) -> Tensor:
    """(C, H, W) uint8, resized to the height and width of `size`; `mode` is Pillow's. Of whole
    numbers with more bits (1, H, W) int32, as they are.

    Raises:
        DataError: it is no image, a broken one, or one of numbers without a largest one.
    """
    from PIL import Image

    width_height = size[::-1]
    try:
        with Image.open(path) as file:
            image = _upright(file)
            image = image.convert("I" if _is_deep(image) else mode)
            return _tensor_of(image if image.size == width_height else image.resize(width_height))
    except Exception as error:  # Pillow has many for broken files
        raise DataError(
            f"{str(path)!r} is not a readable image ({error}). Remove or replace the file."
        ) from error


def decode_images(
    paths: Sequence[Path], size: tuple[int, int], channels: int, white: float | None, call: str
) -> Tensor:
    """(N, C, H, W) uint8 of image files, resized to the height and width of `size`.

    Args:
        paths: Of the files.
        size: Height and width.
        channels: Of each image.
        white: The value of white in grey files of more than 8 bits, if it is given.
        call: What takes another one.

    Raises:
        DataError: one is no image.
        ArgumentError: it is not known what is white.
    """
    images = torch.full((len(paths), channels, *size), 255, dtype=torch.uint8, device="cpu")
    deep: dict[int, Tensor] = {}
    for row, path in enumerate(paths):
        pixels = decode_image(path, size, MODES[channels])
        if pixels.dtype == torch.uint8:
            images[row] = pixels
        else:
            deep[row] = pixels
    colours = images[:, :3]  # not how opaque they are
    for row, levels in zip(deep, all_as_bytes([*deep.values()], white, call), strict=True):
        colours[row] = levels
    return images


def image_suffixes() -> set[str]:
    """Of the files that Pillow reads, in small letters: ".jpg" among them."""
    from PIL import Image

    known = Image.registered_extensions()
    return {suffix for suffix, kind in known.items() if kind in Image.OPEN}


def _tensor_of(image: Any) -> Tensor:
    """(C, H, W) of a Pillow image."""
    from torchvision.transforms.functional import pil_to_tensor

    with on_cpu_by_default():
        return pil_to_tensor(image)


def _upright(image: Any) -> Any:
    """A Pillow image turned as its camera was held, which the file says beside the pixels."""
    from PIL import ImageOps

    return ImageOps.exif_transpose(image)


def _is_deep(image: Any) -> bool:
    """Whether a Pillow image is of up to 16 bits, of which it would keep values up to 255 alone."""
    if image.mode == "F":
        raise ValueError("its pixels are floats, of which none is known to be white")
    deep = bool(image.mode.startswith("I"))
    if deep and image.convert("I").getextrema()[1] > 65535:
        raise ValueError("its pixels have more than 16 bits, of which none is known to be white")
    return deep
