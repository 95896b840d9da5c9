"""What both scripts share: versions, exit statuses, closed pipes, and what is imported when."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from ghnqat_sdk.cli import main as program
from ghnqat_sdk.cli import train as training_program
from ghnqat_sdk.cli.arguments import SPACES
from ghnqat_sdk.cli.console import CLOSED_PIPE, INTERRUPTED, run_command
from ghnqat_sdk.errors import RandomHeadWarning
from ghnqat_sdk.progress import working
from ghnqat_sdk.training import config
from ghnqat_sdk.training.spaces import deepnets, families
from ghnqat_sdk.version import __version__

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
SCRIPTS = {"ghnqat": program, "ghnqat-train": training_program}


@pytest.mark.parametrize("name", SCRIPTS)
def test_both_scripts_tell_their_version(capsys, name):
    with pytest.raises(SystemExit, match="0"):
        SCRIPTS[name].main(["--version"])
    assert capsys.readouterr().out == f"{name} {__version__}\n"


@pytest.mark.parametrize("module", ["main", "train"])
@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["version"], [], ["nothing"], ["evaluate"], ["run"]]
)
def test_torch_is_not_imported_for_help_or_for_what_cannot_be_meant(module, arguments):
    code = (
        f"import sys\nfrom ghnqat_sdk.cli.{module} import main\ntry: main({arguments})\nexcept "
        "SystemExit: pass\nheavy = [n for n in ('torch', 'numpy', 'pydantic', 'huggingface_hub', "
        "'tqdm') if n in sys.modules]\nprint(heavy, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert done.stderr.splitlines()[-1] == "[]"


def test_importing_the_package_leaves_torch_for_later():
    code = "import sys, ghnqat_sdk; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


def test_a_reader_that_goes_away_ends_the_command_quietly():
    code = (
        "import sys\nfrom ghnqat_sdk.cli.console import *\nparser, commands = new_parser('p', '')\n"
        "def talk(options):\n    for _ in range(10**6): print('a line')\n"
        "add_command(commands, 'talk', 'talks', check=nothing_to_check, run=talk)\n"
        "sys.exit(run_command(parser, ['talk']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as talker:
        assert talker.stdout.readline() == b"a line\n"
        talker.stdout.close()
        assert talker.stderr.read() == b""
    assert talker.returncode == CLOSED_PIPE


def test_output_in_a_narrow_encoding_does_not_fail():
    code = "from ghnqat_sdk.cli.console import *\nrun_command(new_parser('p', '')[0], ['×'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**ENVIRONMENT, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr.count("\n") == 1
    assert "'?'" in done.stderr


def run_with(handler: object) -> int:
    parser = program.make_parser()
    parser.set_defaults(handler=None)
    (commands,) = (action for action in parser._actions if action.dest == "command")
    commands.choices["version"].set_defaults(handler=handler)
    return run_command(parser, ["version"])


def raising(error: BaseException) -> object:
    def handler(options: object) -> None:
        raise error

    return handler


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (KeyboardInterrupt(), INTERRUPTED, "ghnqat: interrupted\n"),
        (OSError(28, "No space left"), 1, "ghnqat: [Errno 28] No space left\n"),
        (config.ArgumentError("two\n  lines"), 2, "ghnqat: two lines\n"),
    ],
)
def test_each_kind_of_end_has_its_status_and_one_line(capsys, error, status, line):
    assert run_with(raising(error)) == status
    assert capsys.readouterr().err == line


def test_warnings_of_the_package_are_one_line(capsys):
    def warn(options: object) -> None:
        warnings.warn("two\n  lines", RandomHeadWarning, stacklevel=1)
        warnings.warn("of torch", UserWarning, stacklevel=1)

    before = warnings.showwarning
    with warnings.catch_warnings(record=True) as others:
        warnings.simplefilter("always")
        assert run_with(warn) == 0
    assert capsys.readouterr().err == "ghnqat: two lines\n"
    assert [str(other.message) for other in others] == ["of torch"]
    assert warnings.showwarning is before


def test_spaces_are_those_of_training():
    splits = {"deepnets": deepnets.SPLITS, "families": families.SPLITS}
    assert {name: set(of_space) for name, of_space in SPACES.items()} == {
        name: set(of_space) for name, of_space in splits.items()
    }


@pytest.mark.parametrize(("terminal", "shown"), [(True, "loading ...\r\x1b[K"), (False, "")])
def test_work_is_shown_on_terminals_only(capsys, monkeypatch, terminal, shown):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with working("loading"):
        assert capsys.readouterr().err == shown.split("\r")[0]
    assert capsys.readouterr().err == shown[len(shown.split("\r")[0]) :]
