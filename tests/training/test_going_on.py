"""Commands that go on with what a folder holds refuse to go on with something else."""

import dataclasses
import fcntl
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from ghnqat_sdk.cli.train import main
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.hypernetwork.ghn import GraphHypernetwork
from ghnqat_sdk.hypernetwork.pretrained import load_pretrained, save_pretrained
from ghnqat_sdk.training import adapt as adapting
from ghnqat_sdk.training.asynchronous.run import train_together
from ghnqat_sdk.training.branch import branch
from ghnqat_sdk.training.checkpoint import load_training_state, save_training_state
from ghnqat_sdk.training.config import load_config
from ghnqat_sdk.training.folder import LOCK_FILE, RUN_FILE
from ghnqat_sdk.training.optimizers import AdamWConfig
from ghnqat_sdk.training.run import Run
from ghnqat_sdk.training.teacher import load_teacher, save_teacher

# ---- other images


@pytest.fixture
def finished(make_run) -> Path:
    run = make_run()
    list(run.run(2))
    return run.folder


def forget(folder: Path, *names: str) -> None:
    """Make the state in a folder one that was saved before these facts were."""
    tensors, facts = load_training_state(folder)
    for name in names:
        del facts[name]
    save_training_state(folder, tensors, facts)


def test_a_run_does_not_go_on_with_other_images(finished, tiny, images, contents):
    train = images["train"]
    brighter = dataclasses.replace(train, images=train.images | 1)
    renamed = dataclasses.replace(train, classes=("yak", *train.classes[1:]))
    before = contents(finished)
    for other in (brighter, renamed, train.take(torch.arange(20))):
        with pytest.raises(ArgumentError, match=r"was begun with .*; what came are .* initial="):
            Run(tiny, finished, other, images["val"]).resume()
    assert contents(finished) == before


def test_other_classes_are_named(finished, tiny, images):
    renamed = dataclasses.replace(images["train"], classes=tuple("abcdefghij"))
    with pytest.raises(ArgumentError, match=r"airplane, .*; what came are .*\(a, b, c, d, e, f, "):
        Run(tiny, finished, renamed, images["val"]).resume()


def test_a_run_goes_on_with_the_same_images_in_another_size(finished, tiny, images):
    halved = dataclasses.replace(images["train"], images=images["train"].images[:, :, ::2, ::2])
    assert Run(tiny, finished, halved, images["val"]).resume()
    renamed = dataclasses.replace(halved, classes=("yak", *halved.classes[1:]))
    with pytest.raises(ArgumentError, match="yak"):
        Run(tiny, finished, renamed, images["val"]).resume()


def test_a_state_that_does_not_say_what_it_was_trained_on_goes_on(finished, tiny, images):
    forget(finished, "trained_on")
    renamed = dataclasses.replace(images["train"], classes=tuple("abcdefghij"))
    run = Run(tiny, finished, renamed, images["val"])
    assert run.resume()
    list(run.run(3))
    assert load_training_state(finished)[1]["trained_on"]["classes"] == list("abcdefghij")


@pytest.fixture
def other_data(data, tmp_path) -> Path:
    """The same folder with one image painted over."""
    copy = shutil.copytree(data, tmp_path / "other")
    first = min((copy / "train").rglob("*.*"))
    with Image.open(first) as image:
        Image.new("RGB", image.size, "red").save(first)
    return copy


@pytest.fixture
def command(data, tmp_path, tiny, capsys) -> Callable[..., str]:
    """Run a command of ghnqat-train with a status that is expected; gives what it complained of."""
    (tmp_path / "config.json").write_text(tiny.model_dump_json())

    def call(*words: object, status: int = 0, data: Path = data) -> str:
        assert main([*map(str, words), "--data", str(data)]) == status
        complaint = capsys.readouterr().err
        assert not status or complaint.count("\n") == 1
        return complaint

    return call


def test_a_resumed_command_refuses_other_data_before_it_computes_features(
    command, hinted, other_data, tmp_path, contents
):
    (tmp_path / "config.json").write_text(hinted.model_dump_json())
    run = ["run", "--output", tmp_path / "run"]
    command(*run, "--config", tmp_path / "config.json", "--steps", 1)
    before = contents(tmp_path)
    complaint = command(*run, "--resume", "--steps", 2, status=2, data=other_data)
    assert "was begun with" in complaint
    assert contents(tmp_path) == before
    command(*run, "--resume", "--steps", 2)


def test_torchrun_starts_a_run_of_given_weights_again_as_it_was_written(
    command, tiny, tmp_path, monkeypatch
):
    known = save_pretrained(GraphHypernetwork(tiny.hypernetwork), tmp_path / "known")
    where = ["--output", tmp_path / "run", "--config", tmp_path / "config.json"]
    words = ["run", *where, "--set", f"initial={known}"]
    command(*words, "--steps", 1)
    complaint = command(*words, "--steps", 2, "--resume", status=2)
    assert "--set initial is of a new run" in complaint
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    command(*words, "--steps", 2)
    assert load_training_state(tmp_path / "run")[1]["step"] == 2


def test_another_teacher_is_refused_before_its_features_take_the_place_of_others(
    command, hinted, images, tmp_path, contents
):
    (tmp_path / "config.json").write_text(hinted.model_dump_json())
    run = ["run", "--output", tmp_path / "run"]
    command(*run, "--config", tmp_path / "config.json", "--steps", 1)
    teacher = tmp_path / "teacher.safetensors"
    other = load_teacher(hinted.hints.teacher, images["train"].classes)
    with torch.no_grad():
        next(other.parameters()).add_(1)
    save_teacher(other, teacher, accuracy=10.0, data="")
    before = contents(tmp_path)
    change = f"hints.teacher={teacher}"
    complaint = command(*run, "--resume", "--steps", 2, "--set", change, status=1)
    assert "its hints are of the teacher" in complaint
    assert contents(tmp_path) == before


def test_a_state_whose_config_is_lost_says_so(command, tmp_path):
    run = tmp_path / "run"
    command("run", "--output", run, "--config", tmp_path / "config.json", "--steps", 1)
    (run / RUN_FILE).unlink()
    for words in (
        ("run", "--output", run, "--resume", "--steps", 2),
        ("decay", run, "--output", tmp_path / "branch", "--steps", 2),
        ("async", run, "--minutes", 1),
    ):
        assert "the run.json that belongs beside it is missing" in command(*words, status=2)


def test_two_processes_do_not_train_one_run_at_once(finished, make_run):
    run = make_run(finished.name)
    assert run.resume()
    with (finished / LOCK_FILE).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as another process holds it
        for training in (run.run(3), train_together(run, 1, 1)):
            with pytest.raises(ArgumentError, match="Another process is training the run"):
                next(training)
    assert [report.step for report in run.run(3)] == [3]


# ---- adaptations


@pytest.fixture
def adapt(command, tiny, tmp_path, monkeypatch) -> list[object]:
    """The words of an adaptation without a teacher, interrupted when it was prepared."""
    monkeypatch.setattr(adapting, "load_recipe", lambda _: tiny)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        known = save_pretrained(GraphHypernetwork(tiny.hypernetwork), tmp_path / "known")
    where = ["--output", tmp_path / "out", "--from", known, "--threads", 1]
    words = ["adapt", *where, "--minutes", 0.02, "--size", 24, "--images", 120]
    with monkeypatch.context() as patch:
        patch.setattr(adapting.Adaptation, "_train_stably", interrupt)
        with pytest.raises(Interrupted):
            command(*words)
    return words


class Interrupted(Exception):  # noqa: N818
    pass


def interrupt(*_: object) -> None:
    raise Interrupted


def test_an_adaptation_does_not_go_on_with_other_images(
    command, adapt, other_data, tmp_path, contents
):
    before = contents(tmp_path / "out")
    for words in (["--size", 32], ["--images", 110], ["--images", 1000]):
        complaint = command(*adapt, *words, status=2)
        assert "was begun with 120 images of 24 × 24 pixels and 10 classes (airplane, " in complaint
        assert "Give the same --data, --size and --images, or choose another" in complaint
    assert "was begun with" in command(*adapt, data=other_data, status=2)
    assert contents(tmp_path / "out") == before
    command(*adapt)
    assert load_pretrained(tmp_path / "out").config.images.size == 24


def test_an_adaptation_that_does_not_say_of_which_images_it_is_goes_on(command, adapt, tmp_path):
    path = tmp_path / "out" / "adapt.json"
    facts = json.loads(path.read_text())
    del facts["images"]
    path.write_text(json.dumps(facts))
    command(*adapt, "--images", 110)
    assert load_pretrained(tmp_path / "out").config.num_classes == 10


# ---- branches


@pytest.fixture
def decay(command, make_run, tmp_path) -> Callable[..., str]:
    """Go on with the branch of 4 steps that was made of one of two runs of the same config."""
    for name in ("run", "other"):
        list(make_run(name).run(2))
    branch(tmp_path / "run", tmp_path / "branch", 4)

    def call(run: str = "run", steps: int = 4, *words: object, status: int = 0) -> str:
        where = [tmp_path / run, "--output", tmp_path / "branch", "--steps", steps]
        return command("decay", *where, *words, status=status)

    return call


def test_a_branch_does_not_go_on_as_another_one(decay, tmp_path, contents):
    before = contents(tmp_path / "branch")
    assert "holds a branch of another run than the one in " in decay("other", status=2)
    complaint = decay("run", 3, status=2)
    assert "holds a branch of --steps 4 --hints 0.5; what came are --steps 3 --hints" in complaint
    assert "--steps 4 --hints 0.25. Write" in decay("run", 4, "--hints", 0.25, status=2)
    assert contents(tmp_path / "branch") == before


def test_a_branch_keeps_which_run_it_is_of_when_it_goes_on(decay, images, tmp_path):
    config = load_config(tmp_path / "branch" / "run.json")
    going = Run(config, tmp_path / "branch", images["train"], images["val"])
    assert going.resume()
    list(going.run(3))
    assert "another run" in decay("other", status=2)
    decay()


def test_a_branch_goes_on_when_its_run_went_on_or_has_moved(decay, make_run, tmp_path):
    stable = make_run("run", optimizer=AdamWConfig(learning_rate=1e-4))
    assert stable.resume()
    list(stable.run(3))
    (tmp_path / "run").rename(tmp_path / "moved")
    decay("moved")


@pytest.mark.parametrize("older", ["other", "branch"])
def test_where_one_does_not_say_which_run_it_is_of_a_branch_goes_on(decay, tmp_path, older):
    forget(tmp_path / older, "run")
    decay("other")


def test_a_run_that_did_not_say_which_it_is_never_does(make_run, finished):
    """Its branches do not say it either, and would be taken for another's."""
    forget(finished, "run")
    stable = make_run("run")
    assert stable.resume()
    list(stable.run(3))
    assert load_training_state(finished)[1]["run"] is None
