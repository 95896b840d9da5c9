"""Commands of `ghnqat-train` that are refused leave nothing, and so nothing stale to go on with."""

import shutil
from pathlib import Path

import pytest

from ghnqat_sdk.cli.train import main


@pytest.fixture
def run(make_run, tmp_path) -> Path:
    """The folder of a stable run of two steps."""
    run = make_run("stable")
    list(run.run(2))
    return run.folder


@pytest.fixture
def renamed(data, tmp_path) -> Path:
    """The same images in classes of other names."""
    for split in ("train", "test"):
        for folder in (data / split).iterdir():
            shutil.copytree(folder, tmp_path / "renamed" / split / f"a {folder.name}")
    return tmp_path / "renamed"


def test_a_refused_decay_leaves_no_branch(run, renamed, tmp_path, capsys):
    output = tmp_path / "branch"
    words = ["decay", str(run), "--data", str(renamed), "--output", str(output), "--steps", "2"]
    assert main(words) == 2
    assert "a airplane" in capsys.readouterr().err
    assert not output.exists()


def test_a_resumed_run_has_no_other_weights_to_start_from(run, data, capsys, contents):
    before = contents(run)
    words = ["run", "--data", str(data), "--output", str(run), "--steps", "4", "--resume"]
    assert main([*words, "--set", f"initial={run / 'last'}"]) == 2
    assert "--set initial is of a new run" in capsys.readouterr().err
    assert contents(run) == before


def test_a_branch_that_has_decayed_is_not_trained_at_a_rate_of_zero(run, data, tmp_path, capsys):
    output = str(tmp_path / "branch")
    words = ["--data", str(data), "--output", output]
    assert main(["decay", str(run), *words, "--steps", "2"]) == 0
    assert main(["run", *words, "--steps", "6", "--resume"]) == 2
    assert "has decayed after step 4" in capsys.readouterr().err
