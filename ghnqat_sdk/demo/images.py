"""400 images of CIFAR-10 (JPEG) that ship with the package: the first 20 training and test images
of each class.

`images.safetensors` holds the JPEG files one after the other, as `benchmarks/demo_images.py` writes
them: `bytes` (all,) uint8, `lengths` (400,) int32 of each file, by split, class and number, and the
    names of the classes.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from torch import Tensor

from ghnqat_sdk.data import ImageSet
from ghnqat_sdk.data.pictures import picture_tensor

IMAGES_FILE = Path(__file__).with_name("images.safetensors")
SPLITS = ("train", "test")


def demo_images(split: Literal["train", "test"]) -> ImageSet:
    """The 200 images of one split, sorted by class.

    Example:
        >>> demo_images("test").images.shape
        torch.Size([200, 3, 32, 32])
    """
    with safe_open(str(IMAGES_FILE), framework="pt") as file:
        contents, lengths = file.get_tensor("bytes"), file.get_tensor("lengths")
        classes = tuple(json.loads(file.metadata()["classes"]))
    files = contents.split(lengths.tolist())
    count = len(files) // len(SPLITS)
    first = count * SPLITS.index(split)
    images = torch.stack([_decode(one) for one in files[first : first + count]])
    labels = torch.arange(len(classes), device="cpu").repeat_interleave(count // len(classes))
    return ImageSet(images, labels, classes)


def _decode(content: Tensor) -> Tensor:
    """A JPEG file (bytes,) uint8 to (3, 32, 32) uint8."""
    from PIL import Image

    return picture_tensor(Image.open(io.BytesIO(bytes(content.tolist()))).convert("RGB"), None)
