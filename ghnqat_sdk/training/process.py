"""Settings of a whole process that make training faster: for a program that trains, not for a library to change."""

from __future__ import annotations

import gc
import os

# oneDNN compiles a convolution for every shape and keeps 1,024 of them, those of some twenty networks. To find the
# oldest one it looks at all, so that a full cache is slow, however large it is: this one is never full.
_COMPILED_CONVOLUTIONS = "1000000"


def keep_compiled_convolutions() -> None:
    """Let a CPU compile the convolutions of each shape once; call it before the first convolution.

    An ONEDNN_PRIMITIVE_CACHE_CAPACITY that is set in the environment stays as it is.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", _COMPILED_CONVOLUTIONS)


def forget_old_objects() -> None:
    """Spare Python's garbage collection what has survived so far: thousands of kept networks are millions of objects.

    They are still freed when nothing refers to them, but for cycles.
    """
    gc.collect()
    gc.freeze()
