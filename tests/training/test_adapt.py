"""A hypernetwork for a user's own classes, from weights that exist."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from ghnqat_sdk import load_pretrained, predict_quantized_params, save_pretrained
from ghnqat_sdk.choices import FEWEST_OF_A_CLASS
from ghnqat_sdk.cli.train import main
from ghnqat_sdk.cli.train_adapt import _drawn as drawn_of
from ghnqat_sdk.data import ImageSet, load_images
from ghnqat_sdk.errors import ArgumentError, CheckpointError
from ghnqat_sdk.hypernetwork.ghn import GraphHypernetwork, TrainingImages
from ghnqat_sdk.training import adapt as adapting
from ghnqat_sdk.training.adapt import Adaptation, AdaptConfig, check_images
from ghnqat_sdk.training.checkpoint import load_training_state
from ghnqat_sdk.training.config import load_config, load_recipe
from ghnqat_sdk.training.distributed import Processes
from ghnqat_sdk.training.hints import HintConfig
from ghnqat_sdk.training.new_classes import with_new_classes
from ghnqat_sdk.training.projections import fit_projections
from ghnqat_sdk.training.run import open_features
from ghnqat_sdk.training.teacher import TeacherConfig
from ghnqat_sdk.training.trainer import Trainer

PAIRS = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
NAMES = ("a", "b", "c", "d", "e")


@pytest.fixture(scope="module")
def five() -> tuple[ImageSet, ImageSet]:
    """Training and validation images of five classes, with statistics of their own."""
    data = Path(__file__).parents[1] / "data" / "cifar10"
    return tuple(
        dataclasses.replace(images, labels=PAIRS[images.labels], classes=NAMES)
        for images in (load_images(data, s, own_statistics=True) for s in ("train", "val"))
    )


@pytest.fixture
def known(tiny, tmp_path) -> Path:
    """A hypernetwork for ten classes in a folder."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return save_pretrained(GraphHypernetwork(tiny.hypernetwork), tmp_path / "known")


@pytest.fixture
def config(tiny, known) -> AdaptConfig:
    return AdaptConfig(
        initial=str(known),
        minutes=0.02,
        teacher=TeacherConfig(width=4, blocks=(0, 0, 0), batch=32),
        run=tiny.model_copy(update={"hints": HintConfig(channels=8)}),
    )


def bad(images: ImageSet, indices: torch.Tensor) -> str:
    with pytest.raises(ArgumentError) as caught:
        check_images(images.take(indices))
    return str(caught.value)


# ---- the class table


def test_only_the_class_table_is_new(small):
    images = TrainingImages(size=64)
    before = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    adapted = with_new_classes(small, 3, images)
    assert (adapted.config.num_classes, adapted.config.images.size) == (3, 64)
    changed = {"decoder.classes.weight", "decoder.classes.bias"}
    for name, tensor in adapted.state_dict().items():
        if name in changed:
            assert not tensor.any()
        else:
            assert torch.equal(tensor, before[name])
    assert all(torch.equal(tensor, before[name]) for name, tensor in small.state_dict().items())


def test_a_table_of_as_many_classes_is_new_too(small):
    adapted = with_new_classes(small, small.config.num_classes, small.config.images)
    assert not adapted.state_dict()["decoder.classes.weight"].any()


# ---- projections


def test_fitted_projections_show_the_teacher_better_than_random_ones(hinted, images):
    features = open_features(hinted, images["train"], Processes())
    fitted, plain = (Trainer(hinted, images["train"], features=features) for _ in range(2))
    fit_projections(fitted)
    losses = [
        sum(report.networks[0].hint or 0.0 for report in trainer.steps(2))
        for trainer in (fitted, plain)
    ]
    assert losses[0] < losses[1] - 0.1


def test_without_hints_nothing_is_fitted(tiny, images):
    trainer = Trainer(tiny, images["train"])
    before = {name: t.clone() for name, t in trainer.model.state_dict().items()}
    fit_projections(trainer)
    assert all(torch.equal(t, before[n]) for n, t in trainer.model.state_dict().items())


# ---- the whole


def test_an_adapted_hypernetwork_predicts_the_users_classes(config, five, tmp_path):
    stages = []
    out = tmp_path / "out"
    Adaptation(config, out, *five, report=lambda s: stages.append(s.stage)).run()
    assert list(dict.fromkeys(stages)) == ["teacher", "features", "training", "decay"]
    adapted = load_pretrained(out)
    assert adapted.config.num_classes == 5
    assert adapted.config.images == TrainingImages(
        mean=five[0].mean, std=five[0].std, classes=five[0].classes
    )
    assert adapted.state_dict()["decoder.classes.weight"].any()
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    before = net[3].weight.clone()
    qmodel = predict_quantized_params(net, hypernetwork=out, calibration=five[0].batches(50))
    assert not torch.equal(qmodel[3].weight, before)
    assert not (out / "features").exists()


def test_the_rate_ends_at_zero(config, five, tmp_path):
    run = Adaptation(config, tmp_path / "out", *five).run()
    decay = load_config(tmp_path / "out" / "decayed" / "run.json").decay
    assert run.progress.step == decay.start + decay.steps
    assert run.config.learning_rate_at(run.progress.step) == 0


def test_without_hints_there_is_no_teacher(config, tiny, five, tmp_path):
    plain = config.model_copy(update={"run": tiny})
    Adaptation(plain, tmp_path / "out", *five).run()
    assert load_pretrained(tmp_path / "out").config.num_classes == 5
    assert not (tmp_path / "out" / "teacher.safetensors").exists()


class Killed(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize("stage", ["teacher", "features", "training", "decay"])
def test_an_interrupted_adaptation_goes_on(config, five, tmp_path, stage, monkeypatch):
    def kill(standing):
        if standing.stage == stage and standing.detail:
            raise Killed

    with pytest.raises(Killed):
        Adaptation(config, tmp_path / "out", *five, report=kill).run()
    prepared = stage in ("training", "decay")
    if prepared:
        monkeypatch.setattr(adapting, "train_teacher", None)
    seen = []
    again = Adaptation(config, tmp_path / "out", *five, report=lambda s: seen.append(s.stage))
    again.run()
    assert ("teacher" in seen) is not prepared
    assert ("training" in seen) is (stage != "decay")
    assert load_pretrained(tmp_path / "out").config.num_classes == 5


def test_a_finished_or_different_adaptation_is_refused_and_kept(config, five, tmp_path, contents):
    adaptation = Adaptation(config, tmp_path / "out", *five)
    adaptation._prepare()
    other = config.model_copy(update={"minutes": 3.0})
    before = contents(tmp_path / "out")
    with pytest.raises(ArgumentError, match=r"of 0.02 minutes from .* Ask for the same"):
        Adaptation(other, tmp_path / "out", *five)
    (tmp_path / "out" / "adapt.json").write_text("{")
    with pytest.raises(CheckpointError, match="is damaged"):
        Adaptation(config, tmp_path / "out", *five)
    (tmp_path / "out" / "adapt.json").write_bytes(before["adapt.json"])
    assert contents(tmp_path / "out") == before
    save_pretrained(load_pretrained(config.initial), tmp_path / "out")
    with pytest.raises(ArgumentError, match="holds a hypernetwork already"):
        Adaptation(config, tmp_path / "out", *five)


def test_images_that_cannot_be_adapted_to_are_refused(five):
    train = five[0]
    everything = torch.arange(len(train))
    check_images(train)
    assert "36 training images" in bad(train, everything[train.labels == 1])
    assert "0 of 'c', are too few" in bad(train, everything[train.labels != 2])
    assert "50 training images of 5 classes" in bad(train, everything[:50])
    grey = ImageSet.of(torch.rand(120, 8, 8), torch.arange(120) % 2)
    assert "of shape (1, 8, 8)" in bad(grey, torch.arange(120))
    wide = ImageSet.of(torch.rand(120, 3, 8, 9), torch.arange(120) % 2)
    assert "of shape (3, 8, 9)" in bad(wide, torch.arange(120))


# ---- the command


def test_images_that_are_drawn_have_enough_of_each_class(images):
    of_all = images["train"]
    few = (of_all.labels != 3) | ((of_all.labels == 3).cumsum(0) <= FEWEST_OF_A_CLASS)
    unbalanced = of_all.take(few.nonzero().flatten())
    drawn = drawn_of(unbalanced, 60)
    assert len(drawn) == 60
    assert drawn.labels.bincount().min() == FEWEST_OF_A_CLASS


@pytest.fixture
def adapt(data, tmp_path, config, monkeypatch):
    """Run the command with the tests' networks and teacher."""
    monkeypatch.setattr("ghnqat_sdk.training.adapt.load_recipe", lambda _: config.run)

    def call(*arguments: object) -> int:
        where = ["--data", str(data), "--output", str(tmp_path / "out"), "--threads", "1"]
        return main(["adapt", *where, "--from", config.initial, *map(str, arguments)])

    return call


def test_the_command_writes_a_hypernetwork(adapt, tmp_path, capsys):
    assert adapt("--minutes", 0.02, "--size", 24, "--images", 120, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["classes"], facts["training_images"], facts["output"]) == (
        10,
        120,
        str(tmp_path / "out"),
    )
    assert load_pretrained(tmp_path / "out").config.images.size == 24
    assert adapt("--minutes", 0.02) == 2
    assert "holds a hypernetwork already" in capsys.readouterr().err


def test_its_stable_run_is_one_that_goes_on(adapt, data, tmp_path, capsys):
    assert adapt("--minutes", 0.02, "--json") == 0
    stable = tmp_path / "out" / "stable"
    steps = load_training_state(stable)[1]["step"] + 2
    run = ["run", "--data", str(data), "--output", str(stable), "--resume", "--threads", "1"]
    assert main([*run, "--steps", str(steps)]) == 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--data", "/no/such/folder"], "--data '/no/such/folder' is not a folder"),
        (["--from", "/no/such/folder"], "--from '/no/such/folder' is not a folder"),
        (["--minutes", 0], "'0' is wrong here. Write a number from 0.01"),
        (["--size", 65], "'65' is wrong here. Write a whole number from 16 to 64"),
        (["--images", 99], "'99' is wrong here. Write a whole number from 100 to"),
    ],
)
def test_mistakes_about_an_adaptation_are_one_line(adapt, tmp_path, capsys, arguments, reason):
    assert adapt(*arguments) == 2
    captured = capsys.readouterr()
    assert reason in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_of_one_class_is_refused(adapt, data, tmp_path, capsys):
    (tmp_path / "one" / "train").mkdir(parents=True)
    (tmp_path / "one" / "train" / "cat").symlink_to(data / "train" / "cat")
    assert adapt("--data", tmp_path / "one") == 2
    assert "fewer than two classes" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_recipe_is_for_weights_that_exist():
    recipe = load_recipe("adapt")
    assert recipe.initial == "default"
    assert recipe.hints is not None
    assert recipe.decay is None
