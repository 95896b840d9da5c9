import json

import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import save_file

from ghnqat_sdk.cli.train import main as ghnqat_train
from ghnqat_sdk.data import DataConfig, ImageSet, load_images
from ghnqat_sdk.errors import ArgumentError, CheckpointError
from ghnqat_sdk.training.features import FeatureCache
from ghnqat_sdk.training.teacher import (
    Teacher,
    TeacherConfig,
    check_teacher_fits,
    load_teacher,
    round_to_half,
    save_teacher,
    teacher_accuracy,
    teacher_digest,
    train_teacher,
)

TINY = TeacherConfig(width=4, blocks=(1, 0, 1), epochs=2, batch=60)
STAGES = [(16, 8), (8, 16), (4, 24)]
"""Side and channels of the tiny teacher's stages."""


@pytest.fixture
def images(data) -> ImageSet:
    return load_images(data, "train")


@pytest.fixture
def teacher(images) -> Teacher:
    """Untrained, but for statistics that are not those of a new one."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher = Teacher(TINY, images.classes)
    with torch.no_grad():
        teacher(images.normalize(images.images[:60]))
    return teacher.eval()


@pytest.fixture
def saved(teacher, images, tmp_path):
    path = tmp_path / "teachers" / "teacher.safetensors"
    save_teacher(teacher, path, accuracy=12.5, data=images.digest())
    return path


def test_stages_halve_the_side_and_names_of_weights_stay(images):
    teacher = Teacher(TeacherConfig(), images.classes).eval()
    assert teacher.channels == (64, 128, 192)
    assert teacher.sides() == (16, 8, 4)
    x = torch.rand(2, 3, 32, 32)
    shapes = [tuple(stage.shape) for stage in teacher.stages_of(x)]
    assert shapes == [(2, 64, 16, 16), (2, 128, 8, 8), (2, 192, 4, 4)]
    assert teacher(x).shape == (2, 10)
    names = teacher.state_dict()
    assert {"stem.0.weight", "stages.1.0.1.running_var", "stages.2.2.b.0.weight"} <= names.keys()
    assert "classifier.bias" in names


@pytest.mark.parametrize("side", [24, 28, 33])
def test_sides_are_those_of_the_maps_for_images_of_any_side(teacher, side):
    maps = teacher.stages_of(torch.rand(1, 3, side, side))
    assert tuple(stage.shape[-1] for stage in maps) == teacher.sides(side)


@pytest.mark.parametrize("wrong", [{"width": 0}, {"blocks": (1, 2)}, {"rate": 1}, {"batch": 1}])
def test_config_refuses_what_cannot_be_meant(wrong):
    with pytest.raises(ValidationError):
        TeacherConfig(**wrong)


def test_training_reports_each_epoch_and_rounds_the_weights(images, data):
    validation = load_images(data, "val")
    reports = []
    teacher = train_teacher(TINY, images, validation, report=lambda *epoch: reports.append(epoch))
    assert [epoch for epoch, _ in reports] == [1, 2]
    assert reports[-1][1] == teacher_accuracy(teacher, validation)
    assert all(0 <= accuracy <= 100 for _, accuracy in reports)
    assert not teacher.training
    state = teacher.state_dict()
    floats = [tensor for tensor in state.values() if tensor.is_floating_point()]
    assert all(t.dtype == torch.float32 and torch.equal(t, t.half().float()) for t in floats)
    assert state["stem.1.num_batches_tracked"] == 6


def test_training_repeats_with_its_seed_and_leaves_the_global_random_state(images):
    before = torch.get_rng_state()
    short = TINY.model_copy(update={"epochs": 1})
    digests = []
    for config in (short, short, short.model_copy(update={"seed": 1})):
        teacher = train_teacher(config, images, images.sample(20, 0), report=lambda *_: None)
        digests.append(teacher_digest(teacher))
        torch.rand(1)
    assert digests[0] == digests[1] != digests[2]
    torch.set_rng_state(before)
    train_teacher(short, images, images.sample(20, 0), report=lambda *_: None)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_teacher_learns_two_classes(images):
    """Ships and frogs, 36 images: a recipe with a broken rate or wrong labels stays at half."""
    two = images.take(((images.labels == 6) | (images.labels == 8)).nonzero().flatten())
    config = TeacherConfig(width=4, blocks=(0, 0, 0), epochs=25, batch=18, padding=1)
    assert teacher_accuracy(train_teacher(config, two, two, report=lambda *_: None), two) > 80


def test_fewer_images_than_a_batch_are_one_batch(images):
    few = images.sample(10, 0)
    teacher = train_teacher(TINY, few, few, report=lambda *_: None)
    assert teacher.stem[1].num_batches_tracked == 2


def test_accuracy_leaves_the_mode_of_the_teacher(teacher, images):
    teacher.train()
    before = teacher_digest(teacher)
    teacher_accuracy(teacher, images.sample(10, 0))
    assert teacher.training
    assert teacher_digest(teacher) == before


def test_a_saved_teacher_comes_back_in_half_precision(teacher, saved, images):
    before = torch.get_rng_state()
    loaded = load_teacher(saved, images.classes)
    assert torch.equal(torch.get_rng_state(), before)
    assert (loaded.config, loaded.classes, loaded.training) == (TINY, images.classes, False)
    assert teacher_digest(loaded) == teacher_digest(teacher)
    round_to_half(teacher)
    assert loaded.state_dict().keys() == teacher.state_dict().keys()
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    x = images.normalize(images.images[:4])
    torch.testing.assert_close(loaded(x), teacher(x))
    assert saved.stat().st_size < 60_000
    assert [file.name for file in saved.parent.iterdir()] == [saved.name]


def test_the_file_says_what_the_teacher_is(saved, images):
    with safe_open(str(saved), framework="pt") as file:
        facts = json.loads(file.metadata()["teacher"])
        assert file.get_tensor("stem.0.weight").dtype == torch.float16
    assert facts == {
        "format": 1,
        "config": json.loads(TINY.model_dump_json()),
        "classes": list(images.classes),
        "accuracy": 12.5,
        "data": images.digest(),
    }


def test_a_teacher_of_other_classes_is_refused(saved):
    with pytest.raises(ArgumentError, match=r"knows airplane, .*images are of cat, dog\. Train"):
        load_teacher(saved, ["cat", "dog"])


def test_a_missing_teacher_says_what_to_name(tmp_path, images):
    with pytest.raises(CheckpointError, match=r"none\.safetensors.*make one: ghnqat-train teacher"):
        load_teacher(tmp_path / "none.safetensors", images.classes)


@pytest.mark.parametrize("damage", ["cut", "bit", "text", "empty"])
def test_a_damaged_file_is_refused(saved, images, damage):
    content = bytearray(saved.read_bytes())
    content[-20] ^= 4
    contents = {"cut": content[:-50], "bit": content, "text": b"not tensors", "empty": b""}
    saved.write_bytes(contents[damage])
    with pytest.raises(CheckpointError, match=r"no whole teacher.*Restore"):
        load_teacher(saved, images.classes)


@pytest.mark.parametrize(
    "change", [{"format": 2}, {"config": {"width": 5}}, {"config": {"depth": 5}}, {"classes": 7}]
)
def test_facts_that_do_not_fit_the_weights_are_refused(saved, images, change):
    with safe_open(str(saved), framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    facts = {**json.loads(metadata["teacher"]), **change}
    save_file(tensors, saved, {**metadata, "teacher": json.dumps(facts)})
    with pytest.raises(CheckpointError, match="no whole teacher"):
        load_teacher(saved, images.classes)


def test_weights_that_are_not_finite_are_not_saved(teacher, tmp_path):
    teacher.classifier.weight.data[0, 0] = 1e6
    reason = r'diverged.*{"learning_rate": 0\.125}: ghnqat-train teacher --config'
    with pytest.raises(ArgumentError, match=reason):
        save_teacher(teacher, tmp_path / "teacher.safetensors", accuracy=10.0, data="")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_named(teacher, images, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"Cannot write.*name another file"):
        save_teacher(teacher, tmp_path / "file" / "teacher", accuracy=10.0, data="")
    with pytest.raises(CheckpointError, match=r"cannot be written.*name another folder"):
        FeatureCache.open(tmp_path / "file" / "features", teacher, images)


def test_a_teacher_sees_images_as_its_config_says(images, data, tmp_path):
    tiny = {"width": 4, "blocks": [0, 0, 0], "epochs": 1, "size": 24, "mean": [0.5, 0.5, 0.5]}
    config, path = tmp_path / "teacher.json", tmp_path / "teacher.safetensors"
    config.write_text(json.dumps(tiny))
    words = ["teacher", "--data", str(data), "--config", str(config), "--output", str(path)]
    assert ghnqat_train(words) == 0
    alike = DataConfig(size=24, mean=(0.5, 0.5, 0.5)).load(data, "train")
    check_teacher_fits(load_teacher(path, images.classes), alike)
