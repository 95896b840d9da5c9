"""The C++ sources, compiled once for the processor they run on, and loaded where there is a
compiler."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

_FOLDER = Path(__file__).parent
_SOURCES = tuple(_FOLDER / name for name in ("kernels.cpp", "depthwise.cpp"))
_HEADERS = (_FOLDER / "numbers.h",)
# Not -ffast-math: it loses NaN, and a library linked with it makes the whole process flush denormal
# numbers to zero.
_FLAGS = (
    "-O3",
    "-march=native",
    "-std=c++17",
    "-shared",
    "-fPIC",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-signed-zeros",
    "-freciprocal-math",
    "-ffp-contract=fast",
)
_SUFFIXES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where they cannot be compiled."""
    compiler = _compiler()
    if compiler is None:
        return None
    try:
        return ctypes.CDLL(str(_compiled(compiler)))
    except (OSError, RuntimeError, subprocess.SubprocessError):
        return None  # no folder to write to, or a compiler that cannot


def call(function: str, dtype: torch.dtype, *arguments: Tensor | int | float) -> None:
    """Call one kernel for a dtype, on contiguous tensors, those that it writes among them."""
    loaded = library()
    assert loaded is not None
    getattr(loaded, f"{function}_{_SUFFIXES[dtype]}")(*map(_converted, arguments))


def runs_on(*tensors: Tensor) -> bool:
    """Whether the kernels take these tensors on this machine."""
    usable = all(t.device.type == "cpu" and t.dtype in _SUFFIXES for t in tensors)
    return usable and library() is not None


def _converted(argument: Tensor | int | float) -> ctypes.c_void_p | ctypes.c_int64 | ctypes.c_float:
    if isinstance(argument, Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    return ctypes.c_int64(argument) if isinstance(argument, int) else ctypes.c_float(argument)


def _compiler() -> str | None:
    named = os.environ.get("CXX")
    return named or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")


def _compiled(compiler: str) -> Path:
    """The shared library for these sources, compiler and processor, compiled if it is not there."""
    source = b"".join(path.read_bytes() for path in (*_SOURCES, *_HEADERS))
    key = hashlib.sha256(source + repr((compiler, _FLAGS, _processor())).encode()).hexdigest()[:16]
    path = _folder() / f"kernels-{key}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / path.name
            command = [compiler, *_FLAGS, "-o", str(made), *map(str, _SOURCES)]
            subprocess.run(command, check=True, capture_output=True, timeout=300)
            made.replace(path)  # at once: several processes may compile at the same time
    return path


def _folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "ghnqat-sdk"


def _processor() -> str:
    """What tells processors with other instructions apart."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    features = [line for line in lines if line.startswith(("flags", "Features"))]
    return features[0] if features else platform.machine()
