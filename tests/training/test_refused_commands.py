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


def test_images_of_fewer_classes_are_for_an_adaptation(run, data, tmp_path, capsys, contents):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            shutil.copytree(data / split / name, tmp_path / "few" / split / name)
    before = contents(run)
    words = ["run", "--data", str(tmp_path / "few"), "--output", str(run), "--steps", "4"]
    assert main([*words, "--resume"]) == 2
    assert f"ghnqat-train adapt --from {run / 'last'}\n" in capsys.readouterr().err
    assert contents(run) == before


@pytest.mark.parametrize("change", ["hypernetwork.encoder.width=32", 'optimizer={"type": "soap"}'])
def test_a_change_that_the_state_does_not_fit_is_to_be_left_out(
    run, data, capsys, contents, change
):
    before = contents(run)
    words = ["run", "--data", str(data), "--output", str(run), "--steps", "4", "--resume"]
    assert main([*words, "--set", change]) == 1
    assert "leave out --config or the --set that changes it" in capsys.readouterr().err
    assert contents(run) == before


def test_an_adaptation_does_not_go_into_the_folder_of_a_run(
    run, data, capsys, contents, monkeypatch
):
    monkeypatch.setattr("ghnqat_sdk.data.load_images", lambda *_, **__: pytest.fail("loaded"))
    before = contents(run)
    assert main(["adapt", "--data", str(data), "--output", str(run)]) == 2
    assert "holds a run already. Choose another --output" in capsys.readouterr().err
    assert contents(run) == before


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
