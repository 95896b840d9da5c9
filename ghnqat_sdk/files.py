"""Writing files so that nobody ever meets half of one, and checksums that reveal later damage."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by `content`: a reader, or a crash at any moment, meets the old file or the
    new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the bytes of the tensors by name, so that it can stand in the same file."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(tensors[name].flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()
