"""The console script `ghnqat`: demo, predict, inspect, evaluate, rank, run, version."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from ghnqat_sdk.cli.console import (
    Parser,
    add_command,
    add_json_flag,
    new_parser,
    nothing_to_check,
    run_command,
)
from ghnqat_sdk.cli.demo_command import add_demo
from ghnqat_sdk.cli.evaluate_command import add_evaluate
from ghnqat_sdk.cli.inspect_command import add_inspect
from ghnqat_sdk.cli.predict_command import add_predict
from ghnqat_sdk.cli.rank_command import add_rank
from ghnqat_sdk.cli.run_command import add_run
from ghnqat_sdk.files import as_json
from ghnqat_sdk.version import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `ghnqat`; returns the exit status."""
    return run_command(make_parser(), arguments)


def make_parser() -> Parser:
    """The parser of `ghnqat` with all its commands."""
    parser, commands = new_parser("ghnqat", "Predicted weights for quantized CNNs.")
    add_demo(commands)
    add_predict(commands)
    add_inspect(commands)
    add_evaluate(commands)
    add_rank(commands)
    add_run(commands)
    _add_version(commands)
    return parser


def _add_version(commands: Any) -> None:
    what = "print the versions of ghnqat-sdk and torch"
    parser = add_command(commands, "version", what, check=nothing_to_check, run=_version)
    add_json_flag(parser)


def _version(options: Namespace) -> None:
    from importlib.metadata import version

    torch = version("torch")  # from its metadata: importing it takes seconds
    if options.json:
        print(as_json({"ghnqat_sdk": __version__, "torch": torch}))
    else:
        print(f"ghnqat-sdk {__version__} (torch {torch})")


if __name__ == "__main__":
    sys.exit(main())
