"""Settings of a whole process that make training faster.

They are for a program that trains, not for a library to change.
"""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch

# oneDNN compiles a convolution for every shape and keeps 1,024 of them, those of some twenty
# networks; each takes about a tenth of a megabyte. This many hold the networks that a process draws
# from at a time.
_COMPILED_CONVOLUTIONS = "12000"

# Before garbage is collected: preparing a network makes some ten thousand.
_NEW_OBJECTS = 50_000

# Of mallopt(3).
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def settle_process() -> None:
    """All of the settings below; once, before the first network."""
    keep_compiled_convolutions()
    take_huge_pages()
    keep_freed_memory()
    flush_denormals()


def keep_compiled_convolutions() -> None:
    """Let a CPU compile the convolutions of each shape once; call it before the first convolution.

    An ONEDNN_PRIMITIVE_CACHE_CAPACITY that is set in the environment stays as it is.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", _COMPILED_CONVOLUTIONS)


def keep_freed_memory() -> None:
    """Let the process keep up to 1 GiB of freed memory for the next tensors.

    The system clears every page that it hands out, which takes about as long as what a layer then
    does with it. This changes glibc's malloc; with another one it does nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**30)


def take_huge_pages() -> None:
    """Let tensors of over 2 MB lie on pages of that size; call it before the first tensor.

    Linux clears new pages one by one, and a page of 4 KB costs nearly as much as a large one. It
    changes only where tensors lie. A THP_MEM_ALLOC_ENABLE that is set in the environment stays.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def flush_denormals() -> None:
    """Let this thread take numbers below 1e-38, with which processors are slow, for zero.

    The optimizer's moments of weights that seldom have a gradient decay to such numbers.
    """
    torch.set_flush_denormal(True)


def _return_free_memory() -> None:
    """Give pages between tensors back to the system, which glibc does not do by itself."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def sparing_old_objects() -> Iterator[Callable[[], None]]:
    """Gives a function to call now and then: garbage collection passes over what survived it.

    Thousands of kept networks are millions of objects, and it walks all of them again and again.
    They are still freed when nothing refers to them; cycles are freed after the block. In the
    block it also waits for more new objects: Python's 700 are a few layers of a network.
    """
    thresholds = gc.get_threshold()
    gc.set_threshold(_NEW_OBJECTS, *thresholds[1:])

    def spare() -> None:
        gc.collect()
        gc.freeze()
        _return_free_memory()

    try:
        yield spare
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()
