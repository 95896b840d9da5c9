import dataclasses
import resource
import signal

import pytest
import torch

from ghnqat_sdk.data import ImageSet, Moves, draw_moves, load_images, move_images
from ghnqat_sdk.errors import CheckpointError
from ghnqat_sdk.training.features import FEATURES_FILE, FeatureCache
from ghnqat_sdk.training.teacher import (
    Teacher,
    TeacherConfig,
    load_teacher,
    save_teacher,
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
        computed = teacher.stages_of(images.normalize(images.images[indices]))
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
    x = images.normalize(images.images[indices])
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
