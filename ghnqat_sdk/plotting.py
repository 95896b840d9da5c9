"""matplotlib, which the extra "plot" installs."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ghnqat_sdk.errors import ArgumentError

_INSTALL = 'pip install "ghnqat-sdk[plot]"'


def figure_class() -> Any:
    """`matplotlib.figure.Figure`.

    Raises:
        ArgumentError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ArgumentError(f"matplotlib is not installed. Write {_INSTALL}.") from error
    return Figure


def save_figure(figure: Any, path: str | Path, call: str) -> None:
    """Write a figure to a file.

    Raises:
        ArgumentError: it cannot be written; the message says to write `call`.
    """
    try:
        figure.savefig(str(path))
    except (OSError, ValueError) as error:
        raise ArgumentError(f"{str(path)!r} cannot be written: {error}. Write {call}.") from error


def require_matplotlib(what: str) -> None:
    """Look for it without importing it.

    Raises:
        ArgumentError: `what` needs it, and it is not installed.
    """
    if find_spec("matplotlib") is None:
        raise ArgumentError(f"{what} needs matplotlib, which is not installed. Write {_INSTALL}")
