"""Files and folders that a command line names: checked before the work."""

from __future__ import annotations

import os
import tempfile
from argparse import ArgumentTypeError
from dataclasses import dataclass
from pathlib import Path

from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.files import is_nameable, is_of_a_program
from ghnqat_sdk.hypernetwork.names import CONFIG_FILE, DEFAULT, HUB, REPO_ID, WEIGHTS_FILE


@dataclass(frozen=True)
class Named:
    """A path of this kind, as `FILE` or `image folder`."""

    kind: str
    suffixes: tuple[str, ...] = ()

    def __call__(self, text: str) -> str:
        if not text.strip() or not is_nameable(text):
            raise ArgumentTypeError(f"{text!r} names no {self.kind}. Write a path")
        if self.suffixes and Path(text).suffix.lower() not in self.suffixes:
            raise ArgumentTypeError(
                f"{text!r} does not end in {' or '.join(self.suffixes)}. Write, for example, "
                f"{Path(text).stem or 'result'}{self.suffixes[0]}"
            )
        return text


IMAGES = Named("image folder")
FOLDER = Named("folder")
FILE = Named("file")
PICTURE = Named("picture", (".png", ".svg", ".pdf"))
EXPORTED = Named("exported model", (".onnx",))
TENSORS = Named("file", (".safetensors",))
_CIFAR10 = "cifar-10-batches-py"


def check_image_folder(root: str, *splits: str) -> None:
    """Refuse a data folder without images for these splits ("train", "val", "test").

    Raises:
        ArgumentError: it is missing, or laid out in another way.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise ArgumentError(
            f"--data {root!r} is not a folder. Name one with train/<class>/*.jpg and "
            "test/<class>/*.jpg, or download CIFAR-10: ghnqat-train download --data data/cifar10"
        )
    if (folder / _CIFAR10).is_dir():
        return
    for part in sorted({"test" if split == "test" else "train" for split in splits}):
        if not (folder / part).is_dir():
            raise ArgumentError(
                f"--data {root!r} has no images: expected {part}/<class>/*.jpg or torchvision's "
                f"{_CIFAR10} in it. Name the folder above {part}/"
            )
        if _folders(folder / part) < 2:
            raise ArgumentError(
                f"--data {root!r} holds fewer than two classes: expected {part}/<class>/*.jpg. "
                "Make a folder for the images of each class"
            )


def count_classes(root: str) -> int:
    """Of the training images in a folder that `check_image_folder` lets pass."""
    folder = Path(root)
    return 10 if (folder / _CIFAR10).is_dir() else _folders(folder / "train")


def _folders(folder: Path) -> int:
    """How many there are, those of other programs left out."""
    return sum(path.is_dir() and not is_of_a_program(path.name) for path in folder.iterdir())


def check_input_file(option: str, path: str) -> None:
    """Refuse a file that cannot be read.

    Raises:
        ArgumentError: it is missing or a folder.
    """
    if not Path(path).is_file():
        raise ArgumentError(f"{option} {path!r} is no file. Write the path of one")
    with Path(path).open("rb"):
        pass


def check_hypernetwork(option: str, name: str, revision: str | None = None) -> None:
    """Refuse what is neither the default, nor the published one, nor a folder with a hypernetwork,
    nor named as a Hub repo.

    Raises:
        ArgumentError: so it is.
    """
    local = name == DEFAULT or os.path.isdir(name)
    if local and revision is not None:
        raise ArgumentError(
            f"--revision {revision!r} is for Hub repos, and {option} {name!r} is local. Leave it "
            "out"
        )
    if name in (DEFAULT, HUB):
        return
    if not local:
        if os.path.exists(name) or not REPO_ID.fullmatch(name) or ".." in name:
            raise ArgumentError(
                f"{option} {name!r} is not a folder. Write default, hub, a Hub repo as owner/name, "
                "or a folder that save_pretrained or a training run wrote (runs/mine/last)"
            )
        return
    if missing := [f for f in (CONFIG_FILE, WEIGHTS_FILE) if not Path(name, f).is_file()]:
        inside = [path.parent.name for path in sorted(Path(name).glob(f"*/{CONFIG_FILE}"))]
        nearby = f"; there is one in {', '.join(inside)}" if inside else ""
        raise ArgumentError(
            f"{option} {name!r} holds no hypernetwork: it lacks {' and '.join(missing)}{nearby}. "
            "Name a folder that save_pretrained or a training run wrote"
        )


def check_output_file(option: str, path: str) -> None:
    """Refuse a file that could not be written when the work is done; nothing is left behind.

    Raises:
        ArgumentError: its folder is missing or cannot be written to, or the path is something other
            than a file.
    """
    target = Path(path)
    if target.exists() and not target.is_file():
        raise ArgumentError(f"{option} {path!r} is not a file. Write another name")
    _check_writable(option, path, target.parent)


def check_output_folder(option: str, path: str) -> None:
    """Refuse a folder that could not be made or written to; nothing is left behind.

    Raises:
        ArgumentError: so it is.
    """
    folder = Path(path)
    existing = next((each for each in (folder, *folder.parents) if each.exists()), folder)
    _check_writable(option, path, existing)


def _check_writable(option: str, path: str, folder: Path) -> None:
    file = next((each for each in (folder, *folder.parents) if each.is_file()), None)
    if file is not None:
        raise ArgumentError(
            f"{option} {path!r} cannot be written: {str(file)!r} is a file. Name another place"
        )
    if not folder.is_dir():
        raise ArgumentError(
            f"{option} {path!r} cannot be written: there is no folder {str(folder)!r}. Make it, or "
            "name another"
        )
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ArgumentError(
            f"{option} {path!r} cannot be written: {error.strerror}. Name another place"
        ) from error
