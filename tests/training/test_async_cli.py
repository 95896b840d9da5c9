"""`ghnqat-train async`."""

import json
import re

import pytest

from ghnqat_sdk import load_pretrained
from ghnqat_sdk.cli.train import main
from ghnqat_sdk.training.checkpoint import load_training_state
from ghnqat_sdk.training.config import load_config


@pytest.fixture
def run(make_run):
    """The folder of a stable run of two steps."""
    run = make_run("stable")
    list(run.run(2))
    return run.folder


@pytest.fixture
def train(run, data, capsys):
    """Go on with it; returns the exit status, and what was printed."""

    def call(*arguments: str, folder=run):
        status = main(["async", str(folder), "--data", str(data), *arguments])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return call


def test_a_run_goes_on_for_a_moment_and_is_validated(train, run):
    status, out, _ = train("--minutes", "0.05", "--processes", "1", "--set", "average=0.5")
    assert status == 0
    first, second = out.splitlines()
    step = load_training_state(run)[1]["step"]
    assert step > 2
    assert first == f"{run}: {step} steps, 0.00 M images"
    assert re.fullmatch(rf"{run / 'last'}: {step} steps, 0.00 M images, validation .+ %", second)
    assert load_config(run / "run.json").average == 0.5
    assert load_training_state(run)[1]["best"] >= 0


def test_decayed_weights_go_to_a_folder_of_their_own(train, run, tmp_path):
    given = ["--decay", "0.5", "--output", str(tmp_path / "w"), "--json"]
    status, out, _ = train("--minutes", "0.05", "--processes", "1", *given)
    assert status == 0
    printed = json.loads(out)
    assert printed["step"] == load_training_state(run)[1]["step"]
    branch = printed["branch"]
    assert branch["step"] > printed["step"]
    assert branch["images"] > printed["images"]
    assert all(0 <= figure <= 100 for figure in branch["validation"].values())
    assert len(branch["validation"]) == 3  # bit-widths of one space
    load_pretrained(tmp_path / "w")


def test_mistakes_are_one_line_and_leave_nothing(train, run, tmp_path, contents):
    before = contents(tmp_path)
    for arguments, reason in {
        ("--decay", "0.5"): "belong together",
        ("--output", str(tmp_path / "w")): "belong together",
        ("--decay", "0.5", "--output", str(run)): "the folder of the run",
        ("--set", "nosuch=1"): "nosuch: there is no field",
        ("--set", 'optimizer={"type": "soap"}'): "leave out",
    }.items():
        status, out, err = train("--minutes", "1", *arguments)
        assert status != 0
        assert out == ""
        assert err.count("\n") == 1
        assert reason in err
    status, _, err = train("--minutes", "1", folder=tmp_path / "none")
    assert status == 2
    assert "ghnqat-train run --output" in err
    assert contents(tmp_path) == before
