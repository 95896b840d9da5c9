"""What the two console scripts share: errors without tracebacks, exit statuses."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ghnqat_sdk.errors import GhnqatError


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
