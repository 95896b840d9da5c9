"""Image folders: which files are images of which class."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from functools import lru_cache
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from ghnqat_sdk.data.pictures import decode_images, image_suffixes
from ghnqat_sdk.data.reading import Labelled
from ghnqat_sdk.errors import DataError, UnfamiliarDataWarning
from ghnqat_sdk.files import is_of_a_program

_File = tuple[Path, int, int]
"""Path, time of its last change, and size."""

_MOST_NAMED = 3


def from_folder(folder: Path, size: int, channels: int, white: float | None = None) -> Labelled:
    """Every image of `folder/<class>/` and of folders in it, decoded once as long as the files stay
    as they are.

    Raises:
        DataError: a broken image, fewer than two classes, a class of "train" without an image, or
            other ones than the folder beside it has.
        ArgumentError: images of more than 8 bits, of which it is not known what is white.
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
    empty = [name for name, found in zip(classes, files, strict=True) if not found]
    if empty and folder.name == "train":
        raise DataError(
            f"{str(folder / empty[0])!r} holds no image, and would be a class. Put images there, "
            f"or remove the folder."
        )
    counts = torch.tensor([len(f) for f in files], device="cpu")
    labels = torch.arange(len(classes), device="cpu").repeat_interleave(counts)
    return _decoded(tuple(chain(*files)), size, channels, white).clone(), labels, classes


@lru_cache(maxsize=2)  # "train" and "val" are cut from the same images
def _decoded(files: tuple[_File, ...], size: int, channels: int, white: float | None) -> Tensor:
    """(N, C, H, W) uint8"""
    paths = [path for path, *_ in files]
    return decode_images(paths, (size, size), channels, white, "load_images")


def _classes(folder: Path) -> tuple[str, ...]:
    """Names of its folders."""
    entries = (entry for entry in folder.iterdir() if not is_of_a_program(entry.name))
    return tuple(sorted(entry.name for entry in entries if entry.is_dir()))


def _only_in(folder: Path, other: Path) -> str:
    """A sentence about classes that `other` lacks, the first few; nothing where it lacks none."""
    alone = sorted(set(_classes(folder)) - set(_classes(other)))
    more = f" and {len(alone) - _MOST_NAMED} more" if len(alone) > _MOST_NAMED else ""
    names = ", ".join(map(repr, alone[:_MOST_NAMED]))
    return f"Only {folder.name!r} has {names}{more}. " if alone else ""


def _image_files(folder: Path) -> tuple[_File, ...]:
    """Those of the folder and of folders in it, linked ones too.

    Raises:
        DataError: a link to nothing, or no file that Pillow reads among others.
    """
    known = image_suffixes()
    every = sorted(_files(folder))
    paths = [path for path in every if path.suffix.lower() in known]
    left = [path for path in every if path.suffix.lower() not in known]
    if left and not paths:
        raise DataError(
            f"None of the {len(left)} files in {str(folder)!r} has the name of an image that "
            f"Pillow reads: {left[0].name!r} is one. Convert them, to .png for example, or remove "
            f"the folder."
        )
    if left:
        warnings.warn(
            f"{len(left)} files in {str(folder)!r} are left out, {left[0].name!r} the first: they "
            f"do not have the name of an image that Pillow reads.",
            UnfamiliarDataWarning,
            stacklevel=2,
        )
    try:
        facts = [(path, path.stat()) for path in paths]
    except OSError as error:
        raise DataError(f"{error}. Remove the link, or restore what it points to.") from error
    return tuple((path, each.st_mtime_ns, each.st_size) for path, each in facts)


def _files(folder: Path) -> Iterator[Path]:
    """All but those of other programs; a folder that is linked twice, or to itself, counts once."""
    seen: set[str] = set()
    for where, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(where)
        folders[:] = [name for name in folders if not is_of_a_program(name)]
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(where, name) for name in names if not is_of_a_program(name))
