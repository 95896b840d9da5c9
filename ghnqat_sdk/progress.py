"""What slow work shows meanwhile: on stderr, and on terminals only."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


def progress_bar(items: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
    """A tqdm bar on stderr, only where stderr is a terminal."""
    from tqdm import tqdm

    return tqdm(items, desc=description, total=total, disable=None, leave=False)


@contextmanager
def working(what: str) -> Iterator[None]:
    """`what` stands on stderr while the block runs, only where stderr is a terminal, and is wiped
    afterwards."""
    shown = sys.stderr is not None and sys.stderr.isatty()
    if shown:
        print(f"{what} ...", end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
