"""The console script ghnqat-train."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ghnqat_sdk.cli.train import main
from ghnqat_sdk.cli.train_run import standing
from ghnqat_sdk.hypernetwork.pretrained import load_pretrained
from ghnqat_sdk.training.checkpoint import load_training_state
from ghnqat_sdk.training.config import RunConfig, load_config
from ghnqat_sdk.training.folder import recipe_names
from ghnqat_sdk.training.sampler import Draw
from ghnqat_sdk.training.teacher import load_teacher
from ghnqat_sdk.training.trainer import NetworkReport, Progress, StepReport

Train = Callable[..., int]


@pytest.fixture
def config(tiny, tmp_path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(tiny.model_dump_json())
    return path


@pytest.fixture
def train(data, tmp_path, config) -> Train:
    """Run a command on the test's data, in `tmp_path / "run"`."""

    def call(*arguments: object, command: str = "run", output: str = "run") -> int:
        where = ["--data", str(data), "--output", str(tmp_path / output)]
        chosen = (
            ["--config", str(config)] if command == "run" and "--resume" not in arguments else []
        )
        return main([command, *where, *chosen, *map(str, arguments)])

    return call


@pytest.fixture
def refused(train, capsys) -> Callable[..., str]:
    """The one line on stderr of a command that fails."""

    def call(*arguments: object, status: int = 2, **options: str) -> str:
        capsys.readouterr()
        assert train(*arguments, **options) == status
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("ghnqat-train: ")
        assert captured.err.count("\n") == 1
        return captured.err

    return call


# ---- recipes


def test_recipes_are_listed_and_printed(capsys):
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == recipe_names()
    assert main(["recipes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out).keys() == set(recipe_names())
    assert main(["recipes", "ghn-q"]) == 0
    printed = RunConfig.model_validate_json(capsys.readouterr().out)
    assert printed.bits.settings[0].bits == (32, 32)


def test_an_unknown_recipe_is_one_line(capsys):
    assert main(["recipes", "nope"]) == 2
    assert "'nope' is unknown. Write one of adapt, all-bits" in capsys.readouterr().err


# ---- run


def test_a_run_is_trained_and_continued(train, refused, tmp_path, capsys, contents, tiny):
    assert train("--steps", 2, "--json") == 0
    progress = json.loads(capsys.readouterr().out)
    assert (progress["step"], progress["networks"]) == (2, 4)
    before = contents(tmp_path / "run")
    assert "holds a run already. Add --resume" in refused("--steps", 2)
    for steps in (1, 2):
        line = refused("--steps", steps, "--resume")
        assert f"has done 2 steps, and --steps is {steps}. Write a larger number" in line
    assert contents(tmp_path / "run") == before
    assert train("--steps", 3, "--resume") == 0
    assert load_training_state(tmp_path / "run")[1]["step"] == 3
    assert load_config(tmp_path / "run" / "run.json") == tiny
    assert load_pretrained(tmp_path / "run" / "last").config == tiny.hypernetwork


def test_fields_are_changed_where_the_run_begins_and_where_it_goes_on(train, tmp_path):
    changes = ["sampling.meta_batch=1", "networks.0.share=0.5", 'bits.settings=[{"bits": [8, 8]}]']
    assert train("--steps", 1, *(word for change in changes for word in ("--set", change))) == 0
    saved = load_config(tmp_path / "run" / "run.json")
    assert (saved.sampling.meta_batch, saved.networks[0].share) == (1, 0.5)
    assert [setting.bits for setting in saved.bits.settings] == [(8, 8)]
    assert train("--steps", 2, "--resume", "--set", "sampling.image_batch=4") == 0
    changed = load_config(tmp_path / "run" / "run.json")
    assert (changed.sampling.meta_batch, changed.sampling.image_batch) == (1, 4)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--set", "seed"], "'seed' is not FIELD=VALUE"),
        (["--set", "sead=1"], "sead: there is no field of this name. See"),
        (["--set", "sampling.windows=1"], "sampling.windows: there is no field"),
        (["--set", "sampling.window.size=1"], "no field 'sampling.window.size'"),
        (["--set", "hints.weight=1"], "no field 'hints.weight'"),
        (["--set", "networks.7.share=1"], "no field 'networks.7.share'"),
        (["--set", "networks.-1.share=0"], "no field 'networks.-1.share'"),
        (["--set", 'bits.settings=[{"bits": [2, 9]}]'], "settings.0.bits: bits=(2, 9) is not"),
        (["--set", 'bits.settings=[{"bits": [2, 9]}]'], "or bits=(2, 32). See: "),
        (["--set", "sampling.window=-1"], "sampling.window: "),
        (["--set", "networks.0.share=0"], "networks needs a share above 0"),
        (["--set", 'networks=[{"space": "nets"}]'], "networks.0: "),
        (["--set", "networks.0.factory=no_such.Space"], "networks.0.custom.factory"),
        (["--set", "networks.0.max_macs=10"], "No network of the space 'toys.Toys'"),
        (["--set", "validation.max_macs=10"], "No validation network of the space 'toys.Toys'"),
        (["--set", "initial=/no/such/folder"], "/no/such/folder"),
        (["--set", 'hints={"teacher": "/no/such.file"}'], "Train one, ghnqat-train teacher"),
        (["--set", "hypernetwork.num_classes=5"], "of 10 classes"),
        (["--set", "hypernetwork.images.size=48"], "write data.size alone"),
        (["--steps", 0], "'0' is wrong here. Write a whole number from 1"),
        (["--threads", 0], "'0' is wrong here. Write a whole number from 1"),
        (["--data", "/no/such/folder"], "--data '/no/such/folder' is not a folder"),
        (["--config", "/no/such/file"], "is no file"),
        (["--resume"], "holds no run to resume. Leave out --resume"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(refused, tmp_path, arguments, reason):
    steps = [] if "--steps" in arguments else ["--steps", 1]
    assert reason in refused(*steps, *arguments)
    assert not (tmp_path / "run").exists()


def test_the_recipe_that_ships_is_what_runs_where_none_is_chosen(
    data, tmp_path, monkeypatch, capsys
):
    """It needs a teacher, which is said before anything is trained."""
    monkeypatch.chdir(tmp_path)
    assert main(["run", "--data", str(data), "--output", "run", "--steps", "1"]) == 2
    assert "hints.teacher = 'teacher.safetensors' is no file" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_must_be_there(refused, tmp_path):
    for folder in ("nothing", "no/such"):
        assert "holds no run to resume" in refused("--steps", 1, "--resume", output=folder)
    (tmp_path / "empty").mkdir()
    assert "holds no run to resume" in refused("--steps", 1, "--resume", output="empty")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "empty"]


def test_a_finished_run_goes_on_to_more_steps_as_if_it_had_never_stopped(train, tmp_path, capsys):
    assert train("--steps", 3, output="whole") == 0
    assert train("--steps", 1, output="parts") == 0
    capsys.readouterr()
    assert train("--steps", 3, "--resume", output="parts") == 0
    summary = capsys.readouterr().out
    assert summary.startswith(f"{tmp_path / 'parts'}: 3 steps, best validation ")
    whole, parts = (load_training_state(tmp_path / name)[0] for name in ("whole", "parts"))
    names = [name for name in whole if name.startswith("model.")]
    assert names
    assert all(torch.equal(whole[name], parts[name]) for name in names)


def test_what_stands_beside_the_bar_has_few_digits_and_no_validation_before_the_first():
    draw = Draw(None, (4, 4), 8)
    losses = (2.345678, math.inf, 1637105.25, 0.5)
    report = StepReport(1, tuple(NetworkReport(draw, loss, None, 0.1) for loss in losses))
    progress = Progress(step=1, images=123_456)
    assert standing(progress, report) == {"loss": "2.35", "images": "0.12M"}
    exploded = StepReport(1, report.networks[2:3])
    progress.best = 12.345
    shown = {"loss": "1.64e+06", "images": "0.12M", "best": "12.3"}
    assert standing(progress, exploded) == shown
    assert standing(Progress(), StepReport(1, ())) == {"images": "0.00M"}


def test_a_config_of_an_older_layout_is_refused_and_kept(train, refused, tmp_path, contents):
    train("--steps", 1)
    older = {"recipe": "all-bits", "seed": 0, "steps": 10_000, "meta_batch": 4}
    (tmp_path / "run" / "run.json").write_text(json.dumps(older))
    before = contents(tmp_path / "run")
    assert "is no config of layout 2" in refused("--steps", 2, "--resume")
    assert contents(tmp_path / "run") == before


def test_a_state_of_other_sizes_is_refused_and_kept(train, refused, tmp_path, contents):
    train("--steps", 1)
    before = contents(tmp_path / "run")
    change = ["--set", "hypernetwork.decoder.hidden=24"]
    assert "does not fit its config" in refused("--steps", 2, "--resume", *change, status=1)
    assert contents(tmp_path / "run") == before


def test_a_damaged_state_is_refused_and_kept(train, refused, tmp_path, contents):
    train("--steps", 1)
    state = tmp_path / "run" / "checkpoint.safetensors"
    state.write_bytes(state.read_bytes()[:-10])
    before = contents(tmp_path / "run")
    assert "is damaged" in refused("--steps", 2, "--resume", status=1)
    assert contents(tmp_path / "run") == before


def test_what_torchrun_restarts_goes_on_from_the_last_checkpoint(train, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert train("--steps", 1) == 0  # killed before the first checkpoint
    assert train("--steps", 3) == 0
    assert load_training_state(tmp_path / "run")[1]["step"] == 3


# ---- decay


@pytest.fixture
def decay(train, tmp_path) -> Callable[..., list[object]]:
    """Arguments that branch off the run."""
    assert train("--steps", 2) == 0
    return lambda *more: [tmp_path / "run", "--steps", 3, *more]


def test_a_decay_branches_off_and_leaves_the_run(train, decay, tmp_path, contents, capsys):
    before = contents(tmp_path / "run")
    assert train(*decay("--hints", 0.25, "--json"), command="decay", output="branch") == 0
    assert json.loads(capsys.readouterr().out)["step"] == 5
    assert contents(tmp_path / "run") == before
    saved = load_config(tmp_path / "branch" / "run.json").decay
    assert (saved.start, saved.steps, saved.hints) == (2, 3, 0.25)


def test_an_interrupted_decay_goes_on(train, decay, refused, tmp_path):
    from ghnqat_sdk.training.branch import branch

    branch(tmp_path / "run", tmp_path / "branch", 3)
    assert train(*decay(), command="decay", output="branch") == 0
    assert load_training_state(tmp_path / "branch")[1]["step"] == 5
    assert "has done 5 steps" in refused(*decay(), command="decay", output="branch")


def test_decays_that_cannot_be_are_one_line(train, decay, refused, tmp_path):
    assert "'2' is wrong here. Write a number from 0 to 1" in refused(
        *decay("--hints", 2), command="decay", output="no"
    )
    no_steps = [tmp_path / "run", "--steps", 0]
    assert "'0' is wrong here" in refused(*no_steps, command="decay", output="no")
    assert "holds a stable run" in refused(*decay(), command="decay", output="run")
    assert train(*decay(), command="decay", output="branch") == 0
    again = [tmp_path / "branch", "--steps", 2]
    assert "decays already" in refused(*again, command="decay", output="no")
    nothing = [tmp_path / "nothing", "--steps", 2]
    assert "holds no run to branch off" in refused(*nothing, command="decay", output="no")
    assert not (tmp_path / "no").exists()


# ---- teacher


def test_a_teacher_is_trained_and_gives_hints(train, images, tmp_path, capsys):
    (tmp_path / "teacher.json").write_text('{"width": 4, "blocks": [0, 0, 0], "epochs": 1}')
    made = ["--config", tmp_path / "teacher.json"]
    assert train(*made, "--threads", 1, command="teacher", output="teacher.safetensors") == 0
    captured = capsys.readouterr()
    assert "epoch 1 of 1" in captured.err
    assert "of validation images" in captured.out
    path = tmp_path / "teacher.safetensors"
    assert load_teacher(path, images["train"].classes).config.width == 4
    hints = {"teacher": str(path), "features": str(tmp_path / "features"), "channels": 8}
    assert train("--steps", 3, "--set", f"hints={json.dumps(hints)}") == 0
    (logged,) = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert 0 < json.loads(logged)["hint"] < 2


@pytest.mark.parametrize(
    ("content", "arguments", "reason"),
    [
        ('{"width": 0}', [], "is no TeacherConfig: width: "),
        ('{"blocks": [-1, 0, 0]}', [], "is no TeacherConfig: blocks.0: "),
        ('{"seed": 99999999999999999999}', [], "is no TeacherConfig: seed: "),
        ("{", [], "is no TeacherConfig: "),
        ("{}", ["--threads", -1], "'-1' is wrong here. Write a whole number from 0"),
        ("{}", ["--data", "/no/such/folder"], "is not a folder"),
        ("{}", ["--config", "/no/such/file"], "/no/such/file"),
    ],
)
def test_mistakes_about_a_teacher_are_one_line(refused, tmp_path, content, arguments, reason):
    path = tmp_path / "teacher.json"
    path.write_text(content)
    given = ["--config", path, *arguments]
    assert reason in refused(*given, command="teacher", output="teacher.safetensors")
    assert not (tmp_path / "teacher.safetensors").exists()
