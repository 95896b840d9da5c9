"""The kernels of `kernels.py` and depthwise convolutions on a GPU, in Triton.

A fake-quantized network is some thousand small kernels for torch, and a GPU waits for the processor
that launches them. These are three launches each way for a norm with what follows it.

    numbers.py         what kernels share: rounding, ranges, how a matrix is cut into tiles
    norms.py           batch norm, activation, clip and round
    norm_gradients.py  their gradients
    rounding.py        fake quantization alone
    depthwise.py       depthwise convolutions

Letters: P positions, C channels, G groups of rows whose sums are added up later, R × B rows and
channels of a tile.
"""

from __future__ import annotations

import functools
from importlib.util import find_spec

from torch import Tensor


def runs_on(*tensors: Tensor) -> bool:
    """Whether the kernels take these tensors on this machine."""
    return all(tensor.is_cuda for tensor in tensors) and has_triton()


@functools.cache
def has_triton() -> bool:
    """Whether Triton is installed: torch brings it along on Linux."""
    return find_spec("triton") is not None
