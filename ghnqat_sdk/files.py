"""Writing files so that nobody ever meets half of one, checksums that reveal later damage, and text
for machines."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ghnqat_sdk.errors import ArgumentError

if TYPE_CHECKING:
    from torch import Tensor


def require_folder(folder: Any, call: str) -> Path:
    """`folder`, which is one or is not there yet.

    Raises:
        ArgumentError: it is no name, or a file's; the message says to write `call`.
    """
    if not isinstance(folder, (str, os.PathLike)) or (
        os.path.exists(folder) and not os.path.isdir(folder)
    ):
        raise ArgumentError(f"folder={folder!r} is not a folder. Write {call}.")
    return Path(folder)


def is_nameable(path: str | os.PathLike[str]) -> bool:
    """Whether a file may have this path: it has no null character and no half of a surrogate
    pair."""
    try:
        return b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        return False


def make_folder(folder: Path) -> None:
    """Make it, and those around it, where it is not there.

    Raises:
        OSError: it cannot be made, whatever the reason.
    """
    _require_nameable(folder)
    folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A path to write to, which replaces `path` when the block ends well and is gone when it does
    not: a reader, or a crash at any moment, meets the old file or the new one.

    The file has the mode that `open` would give it: that of the one before, else what the umask
    leaves, however the block writes it.

    Raises:
        OSError: it cannot be written, whatever the reason.
    """
    target = Path(path)
    _require_nameable(target)
    temporary = target.with_name(f".{os.getpid()}.{target.name}")
    try:
        temporary.touch()
        mode = (target if target.exists() else temporary).stat().st_mode
        yield temporary
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        temporary.chmod(stat.S_IMODE(mode))
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by `content`, as `replacing` does."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def _require_nameable(path: Path) -> None:
    """Python's own error for such a path is no OSError, as all others are."""
    if not is_nameable(path):
        raise OSError(errno.EINVAL, "a file's name cannot have such a character", str(path))


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the bytes of the tensors by name, so that it can stand in the same file."""
    import torch

    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(tensors[name].flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def as_json(facts: Any, indent: int | None = None) -> str:
    """Strict JSON, which knows no numbers that are not finite: they are null."""
    finite = json.loads(json.dumps(facts), parse_constant=lambda _: None)
    return json.dumps(finite, indent=indent)


def is_of_a_program(name: str) -> bool:
    """Whether a file or folder is one that other programs leave among a user's own."""
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini")
