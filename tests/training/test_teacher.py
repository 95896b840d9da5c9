import dataclasses
import json
import resource
import signal

import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import save_file

from ghnqat_sdk.data import ImageSet, Moves, draw_moves, load_images, move_images
from ghnqat_sdk.errors import ArgumentError, CheckpointError
from ghnqat_sdk.training.features import FEATURES_FILE, FeatureCache
from ghnqat_sdk.training.teacher import (
    Teacher,
    TeacherConfig,
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
        teacher(images.normalise(images.images[:60]))
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
    x = images.normalise(images.images[:4])
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
    with pytest.raises(CheckpointError, match=r"none\.safetensors.*save_teacher"):
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
    with pytest.raises(ArgumentError, match=r"diverged.*learning_rate=0\.125"):
        save_teacher(teacher, tmp_path / "teacher.safetensors", accuracy=10.0, data="")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_named(teacher, images, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"Cannot write.*name another file"):
        save_teacher(teacher, tmp_path / "file" / "teacher", accuracy=10.0, data="")
    with pytest.raises(CheckpointError, match=r"cannot be written.*name another folder"):
        FeatureCache.open(tmp_path / "file" / "features", teacher, images)


def still(count: int) -> Moves:
    zeros = torch.zeros(count, dtype=torch.int64)
    return Moves(zeros.bool(), zeros, zeros)


def test_cache_holds_the_features_of_every_image(teacher, images, tmp_path):
    before, reports = torch.get_rng_state(), []
    cache = FeatureCache.open(
        tmp_path / "new" / "features", teacher.train(), images, report=lambda *n: reports.append(n)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert reports == [(180, 180)]
    assert teacher.training
    shapes = [(180, side, side, channels) for side, channels in STAGES]
    assert [tuple(stage.shape) for stage in cache.stages] == shapes
    indices = torch.tensor([179, 3, 3, 60])
    gathered = cache.gather(indices, still(4))
    teacher.eval()
    with torch.no_grad():
        computed = teacher.stages_of(images.normalise(images.images[indices]))
    for found, expected in zip(gathered, computed, strict=True):
        assert found.dtype == torch.float32
        expected = expected.permute(0, 2, 3, 1)
        assert (found - expected).norm() < 0.02 * expected.norm()  # bfloat16


def test_features_are_flipped_and_shifted_with_their_images(teacher, images, tmp_path):
    cache = FeatureCache.open(tmp_path, teacher, images)
    indices = torch.tensor([5, 9, 100])
    moves = Moves(
        torch.tensor([True, False, True]), torch.tensor([0, 8, 0]), torch.tensor([0, -16, 8])
    )
    plain, moved = cache.gather(indices, still(3)), cache.gather(indices, moves)
    for old, new, stride in zip(plain, moved, (2, 4, 8), strict=True):
        side = old.shape[1]
        assert torch.equal(new[0], old[0].flip(1))
        down, left, right = 8 // stride, 16 // stride, 8 // stride
        assert torch.equal(new[1, down:, : side - left], old[1, : side - down, left:])
        # Where nothing is known, the border's cells repeat.
        assert torch.equal(new[1, :down, 0], old[1, :1, left].expand(down, -1))
        assert torch.equal(new[1, down, side - left :], old[1, 0, -1:].expand(left, -1))
        assert torch.equal(new[2, :, right:], old[2].flip(1)[:, : side - right])


def test_moved_features_are_those_of_moved_images_away_from_borders(teacher, images, tmp_path):
    cache = FeatureCache.open(tmp_path, teacher, images)
    indices = torch.arange(0, 180, 20)
    shift = torch.full((9,), 8)
    moves = Moves(torch.zeros(9, dtype=torch.bool), shift, -shift)
    x = images.normalise(images.images[indices])
    with torch.no_grad():
        computed = teacher.stages_of(move_images(x, moves))[0].permute(0, 2, 3, 1)
    found = cache.gather(indices, moves)[0]
    inner = (slice(None), slice(8, 12), slice(4, 8))
    assert (found - computed)[inner].norm() < 0.02 * computed[inner].norm()  # bfloat16


def test_features_move_by_the_nearest_whole_cell(teacher, images, tmp_path):
    cache = FeatureCache.open(tmp_path, teacher, images)
    shifts = torch.tensor([3, 5, -5])
    zeros = torch.zeros_like(shifts)
    indices = torch.zeros_like(shifts)
    moved = cache.gather(indices, Moves(zeros.bool(), shifts, zeros))
    plain = cache.gather(indices, still(3))
    for old, new, cells in zip(plain, moved, ((2, 2, -2), (1, 1, -1), (0, 1, -1)), strict=True):
        for row, cell in enumerate(cells):
            inner = slice(max(cell, 0), old.shape[1] + min(cell, 0))
            source = slice(max(-cell, 0), old.shape[1] + min(-cell, 0))
            assert torch.equal(new[row, inner], old[row, source])


def test_images_of_another_side_have_features_of_theirs(teacher, data, tmp_path):
    images = load_images(data, "val", size=28)
    cache = FeatureCache.open(tmp_path, teacher, images)
    generator = torch.Generator().manual_seed(0)
    gathered = cache.gather(torch.arange(20), draw_moves(20, 4, generator))
    assert [tuple(stage.shape[1:3]) for stage in gathered] == [(14, 14), (7, 7), (4, 4)]


def refuse(*_: int) -> None:
    raise AssertionError("computed again")


def test_a_cache_is_computed_once(teacher, images, tmp_path):
    first = FeatureCache.open(tmp_path, teacher, images)
    second = FeatureCache.open(str(tmp_path), teacher, images, report=refuse)
    assert all(map(torch.equal, first.stages, second.stages))


def test_a_cache_of_a_reloaded_teacher_is_current(teacher, saved, images, tmp_path):
    FeatureCache.build(tmp_path / "features", teacher, images)
    loaded = load_teacher(saved, images.classes)
    assert FeatureCache.is_current(tmp_path / "features", loaded, images)


def test_a_cache_of_other_weights_is_stale(teacher, images, tmp_path):
    old = FeatureCache.open(tmp_path, teacher, images)
    kept = old.stages[0].clone()
    teacher.stem[0].weight.data.neg_()
    assert not FeatureCache.is_current(tmp_path, teacher, images)
    new = FeatureCache.open(tmp_path, teacher, images)
    assert not torch.equal(new.stages[0], kept)
    assert torch.equal(old.stages[0], kept)  # files that are open elsewhere stay whole
    assert FeatureCache.is_current(tmp_path, teacher, images)


def test_a_cache_of_other_images_or_statistics_is_stale(teacher, images, tmp_path):
    FeatureCache.build(tmp_path, teacher, images)
    mirrored = dataclasses.replace(images, images=images.images.flip(3))
    grayer = dataclasses.replace(images, std=(0.3, 0.3, 0.3))
    for other in (mirrored, grayer, images.take(torch.arange(179))):
        assert not FeatureCache.is_current(tmp_path, teacher, other)
    assert FeatureCache.is_current(tmp_path, teacher, images)


@pytest.mark.parametrize("name", ["stage0.float16", "stage2.float16", FEATURES_FILE])
@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_damaged_cache_is_built_again(teacher, images, tmp_path, name, damage):
    whole = [stage.clone() for stage in FeatureCache.open(tmp_path, teacher, images).stages]
    path = tmp_path / name
    content = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(content[:-8])
    assert not FeatureCache.is_current(tmp_path, teacher, images)
    again = FeatureCache.open(tmp_path, teacher, images)
    assert all(map(torch.equal, again.stages, whole))


def test_an_interrupted_build_is_never_taken_for_a_whole_one(teacher, images, tmp_path):
    def interrupt(done: int, count: int) -> None:
        raise KeyboardInterrupt

    FeatureCache.build(tmp_path, teacher, images)
    teacher.stem[0].weight.data.neg_()
    with pytest.raises(KeyboardInterrupt):
        FeatureCache.open(tmp_path, teacher, images, report=interrupt)
    assert not FeatureCache.is_current(tmp_path, teacher, images)
    FeatureCache.open(tmp_path, teacher, images)
    assert FeatureCache.is_current(tmp_path, teacher, images)


def test_a_full_disk_leaves_no_half_cache(teacher, images, tmp_path):
    """No file may grow beyond 100 kB: writing fails as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(CheckpointError, match=r"1\.2 MB .*File too large.*Make room"):
            FeatureCache.open(tmp_path, teacher, images)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.iterdir())
