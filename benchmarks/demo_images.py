"""Write the images of `ghnqat demo` into the package: the first 20 of each split and class of the
tests' images.

    python benchmarks/demo_images.py

They are JPEG files and stay as they are, byte by byte; a test compares them with the tests' images.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from ghnqat_sdk.demo.images import IMAGES_FILE, SPLITS
from ghnqat_sdk.files import replacing

DATA = Path(__file__).resolve().parents[1] / "tests" / "data" / "cifar10"
OF_EACH_CLASS = 20


def image_files() -> list[Path]:
    """By split, class and number."""
    folders = [folder for split in SPLITS for folder in sorted((DATA / split).iterdir())]
    return [file for folder in folders for file in sorted(folder.glob("*.jpg"))[:OF_EACH_CLASS]]


def main() -> None:
    contents = [file.read_bytes() for file in image_files()]
    tensors = {
        "bytes": torch.frombuffer(bytearray(b"".join(contents)), dtype=torch.uint8),
        "lengths": torch.tensor([len(content) for content in contents], dtype=torch.int32),
    }
    classes = sorted(folder.name for folder in (DATA / "train").iterdir())
    with replacing(IMAGES_FILE) as temporary:
        save_file(tensors, temporary, {"classes": json.dumps(classes)})
    print(f"{IMAGES_FILE}: {len(contents)} images, {IMAGES_FILE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
