"""What the two console scripts share: one line for every mistake and every warning, and exit
statuses that scripts can rely on."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from ghnqat_sdk.errors import ArgumentError, GhnqatError, GhnqatWarning
from ghnqat_sdk.version import __version__

FAILED = 1
"""The work failed: a full disk, no network, a damaged file."""

MISUSED = 2
"""What the user wrote cannot be meant; nothing has been written."""

INTERRUPTED = 130
CLOSED_PIPE = 141

Step = Callable[[argparse.Namespace], None]


class Parser(argparse.ArgumentParser):
    """An argument parser whose mistakes are errors of the package: one line, and no usage around
    it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False} | options)

    def error(self, message: str) -> NoReturn:
        raise ArgumentError(f"{message.rstrip('.')}. See: {self.prog} --help")


def new_parser(program: str, description: str) -> tuple[Parser, Any]:
    """The parser of a console script and the place for its commands."""
    parser = Parser(prog=program, description=description)
    parser.add_argument("--version", action="version", version=f"{program} {__version__}")
    return parser, parser.add_subparsers(dest="command", required=True, metavar="COMMAND")


def add_command(
    commands: Any, name: str, help: str, *, check: Step, run: Step, description: str | None = None
) -> Parser:
    """A command: `check` reads its options before anything slow, and `run` does what they say."""
    command: Parser = commands.add_parser(name, help=help, description=description or help)
    command.set_defaults(check=check, handler=run)
    return command


def add_json_flag(parser: argparse.ArgumentParser) -> None:
    """`--json`: print what a machine would read."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def nothing_to_check(options: argparse.Namespace) -> None:
    """For commands whose options the parser checks completely."""


def run_command(parser: Parser, arguments: Sequence[str] | None) -> int:
    """Run the command that `arguments` choose, and return the exit status.

    0 where all went well, 1 where the work failed, 2 for what the user wrote, 130 for Ctrl-C, 141
    where the reader of the output went away; the first two of these leave one line on stderr.
    """
    _print_any_character()
    try:
        try:
            with _warning_in_one_line(parser):
                return _status(parser, arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()
        return CLOSED_PIPE
    except OSError as error:  # the output's disk is full
        _discard_output()
        return _complain(parser, error, FAILED)
    except KeyboardInterrupt:
        return _complain(parser, "interrupted", INTERRUPTED)


def _status(parser: Parser, arguments: Sequence[str] | None) -> int:
    try:
        options = parser.parse_args(arguments)
        options.check(options)
    except (GhnqatError, OSError) as error:
        return _complain(parser, error, MISUSED)
    try:
        options.handler(options)
    except BrokenPipeError:
        raise
    except ArgumentError as error:
        return _complain(parser, error, MISUSED)
    except (GhnqatError, OSError) as error:
        return _complain(parser, error, FAILED)
    return 0


def _complain(parser: Parser, problem: object, status: int) -> int:
    _tell(parser, problem)
    return status


def _tell(parser: Parser, what: object) -> None:
    print(f"{parser.prog}: {' '.join(str(what).split())}", file=sys.stderr)


@contextmanager
def _warning_in_one_line(parser: Parser) -> Iterator[None]:
    """Warnings of the package's family look like its errors; others as they always do."""
    usual = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, GhnqatWarning):
            _tell(parser, message)
        else:
            usual(message, category, *where, **more)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = usual


def _print_any_character() -> None:
    """What a terminal cannot show becomes a question mark instead of an error."""
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="replace")


def _discard_output() -> None:
    """Let Python's last flush, at its exit, find a place to write to."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
