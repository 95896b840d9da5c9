"""What the two console scripts share: errors without tracebacks, exit statuses, progress bars."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from typing import TypeVar

from ghnqat_sdk.errors import GhnqatError

T = TypeVar("T")


def run_command(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> int:
    """Run the handler that `arguments` choose: 0, 1 with one line on stderr for mistakes, 130 on Ctrl-C."""
    options = parser.parse_args(arguments)
    try:
        options.handler(options)
    except (GhnqatError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return 130
    return 0


def add_json_flag(parser: argparse.ArgumentParser) -> None:
    """`--json`: print what a machine would read."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def progress_bar(items: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
    """A tqdm bar on stderr, only where stderr is a terminal."""
    from tqdm import tqdm

    return tqdm(items, desc=description, total=total, disable=None, leave=False)
