"""What can go wrong around a run: a process killed, a disk full, images or features that are not
what they should be."""

import resource
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ghnqat_sdk import data as data_module
from ghnqat_sdk.cli.train import main as ghnqat_train
from ghnqat_sdk.data import DataConfig, ImageSet, load_images
from ghnqat_sdk.errors import ArgumentError, CheckpointError, DataError
from ghnqat_sdk.training.branch import branch
from ghnqat_sdk.training.checkpoint import CHECKPOINT_FILE
from ghnqat_sdk.training.config import BitsConfig, BitsShare, ValidationConfig
from ghnqat_sdk.training.distributed import Processes
from ghnqat_sdk.training.run import Run, open_features
from ghnqat_sdk.training.teacher import Teacher, TeacherConfig, save_teacher

HERE = Path(__file__).parent


def test_thirty_kills_at_random_moments_leave_the_newest_checkpoint_whole(
    data, tmp_path, tiny, same
):
    once = {"checkpoint_every": 1, "validation": ValidationConfig(every=5, networks=1, images=10)}
    short = {"bits": BitsConfig(settings=(BitsShare(bits=(4, 4)),))}
    config = tmp_path / "config.json"
    config.write_text(tiny.model_copy(update=once | short).model_dump_json())
    arguments = [str(data), str(config), str(tmp_path / "runs"), "30", "30"]
    program = [sys.executable, str(HERE / "killed_runs.py"), *arguments]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    states = {
        path.parent.name: load_file(path) for path in tmp_path.glob(f"runs/*/{CHECKPOINT_FILE}")
    }
    whole = states.pop("whole")
    assert states
    assert all(same(whole, killed) for killed in states.values())


@pytest.fixture
def full_disk():
    """A context in which no file of the process grows beyond some kilobytes, as on a full disk."""

    @contextmanager
    def filled():
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)

    return filled


def test_a_full_disk_ends_the_run_and_keeps_what_was_there(make_run, contents, full_disk):
    run = make_run()
    list(run.run(2))
    before = contents(run.folder)
    with full_disk():
        for attempt in (run.save, lambda: list(run.run(3))):
            with pytest.raises(
                CheckpointError, match=r"(cannot be written|Cannot write).*File too large"
            ):
                attempt()
    after = contents(run.folder)
    assert after.pop("log.jsonl").startswith(before.pop("log.jsonl"))
    assert after == before
    assert make_run().resume()


def test_a_full_disk_leaves_nothing_of_a_branch(make_run, contents, full_disk, tmp_path):
    run = make_run()
    list(run.run(2))
    before = contents(run.folder)
    with full_disk(), pytest.raises(CheckpointError, match=r"cannot be written.*File too large"):
        branch(run.folder, tmp_path / "branch", 2)
    assert contents(tmp_path / "branch") == {}
    assert contents(run.folder) == before


def test_a_folder_that_cannot_be_made_is_refused(make_run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        next(make_run("file/run").run(1))


# ---- a teacher and its features


@pytest.fixture
def features_folder(hinted, images) -> Path:
    """Whole features of the teacher."""
    open_features(hinted, images["train"], Processes())
    return Path(hinted.hints.features)


def whole(hinted, images: ImageSet) -> bool:
    """Whether the features on disk, opened as a run does, are those of a fresh folder."""
    fresh = hinted.hints.model_copy(update={"features": f"{hinted.hints.features} anew"})
    configs = (hinted, hinted.model_copy(update={"hints": fresh}))
    ours, theirs = (open_features(config, images, Processes()).stages for config in configs)
    return all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_features_are_computed_once(hinted, images, features_folder, monkeypatch):
    monkeypatch.setattr(Teacher, "stages_of", lambda *_: pytest.fail("computed again"))
    open_features(hinted, images["train"], Processes())


@pytest.mark.parametrize("name", ["stage0.float16", "stage2.float16", "features.json"])
def test_a_truncated_feature_cache_is_made_anew(hinted, images, features_folder, name):
    path = features_folder / name
    path.write_bytes(path.read_bytes()[:-7])
    assert whole(hinted, images["train"])


def test_features_of_other_images_are_made_anew(hinted, images, features_folder):
    assert whole(hinted, images["val"])


def test_features_of_another_teacher_are_made_anew(hinted, images, features_folder, teacher_file):
    torch.manual_seed(1)
    other = Teacher(TeacherConfig(width=4, blocks=(0, 0, 0)), images["train"].classes)
    save_teacher(other, teacher_file, accuracy=0.0, data="")
    assert whole(hinted, images["train"])


def refused(error: type[Exception], reason: str, hinted, images: ImageSet) -> None:
    with pytest.raises(error, match=reason):
        open_features(hinted, images, Processes())


@pytest.mark.parametrize("images_of", [{"size": 24}, {"std": (1.0, 1.0, 1.0)}])
def test_a_teacher_of_other_images_is_refused_and_its_features_kept(
    hinted, data, features_folder, contents, images_of
):
    before = contents(features_folder)
    others = DataConfig(**images_of).load(data, "train")
    refused(ArgumentError, r"teacher knows images of 32 pixels.*--config", hinted, others)
    assert contents(features_folder) == before


def test_a_teacher_of_other_classes_is_refused_and_its_features_kept(
    hinted, images, features_folder, contents
):
    before = contents(features_folder)
    few = ImageSet(images["train"].images, images["train"].labels % 2, ("cat", "dog"))
    refused(
        ArgumentError,
        r"teacher.* knows airplane, .*the images are of cat, dog.*ghnqat-train teacher",
        hinted,
        few,
    )
    assert contents(features_folder) == before


def test_a_missing_or_damaged_teacher_is_refused(hinted, images, teacher_file):
    teacher_file.write_bytes(teacher_file.read_bytes()[:-10])
    anew = f"is no whole teacher.*make one: ghnqat-train teacher --output {teacher_file}"
    refused(CheckpointError, anew, hinted, images["train"])
    teacher_file.unlink()
    refused(CheckpointError, "is no whole teacher", hinted, images["train"])


def test_without_hints_no_teacher_is_looked_for(tiny, images):
    assert open_features(tiny, images["train"], Processes()) is None


# ---- images


def test_classes_of_one_split_alone_are_refused_and_named(data, tmp_path):
    folder = shutil.copytree(data, tmp_path / "data") / "test"
    shutil.rmtree(folder / "cat")
    with pytest.raises(DataError, match=r"the same\. Only 'train' has 'cat'\. Rename"):
        load_images(tmp_path / "data", "test")
    (folder / "dog").rename(folder / "dogs")
    for name in ("a", "b", "c", "d"):
        (folder / name).mkdir()
    reason = r"Only 'test' has 'a', 'b', 'c' and 2 more\. Only 'train' has 'cat', 'dog'\. Rename"
    with pytest.raises(DataError, match=reason):
        load_images(tmp_path / "data", "test")
    with pytest.raises(DataError, match=r"Only 'train' has .*Only 'test' has"):
        load_images(tmp_path / "data", "train")


def test_images_of_another_number_of_classes_are_refused(data, tmp_path, tiny):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            shutil.copytree(data / split / name, tmp_path / "data" / split / name)
    images = load_images(tmp_path / "data", "train")
    with pytest.raises(ArgumentError, match=r"of 2 classes.*num_classes is 10"):
        Run(tiny, tmp_path / "run", images, images)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff\xe0 cut short", b"GIF89a"])
def test_a_broken_image_is_named_on_the_command_line(capsys, data, tmp_path, content):
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data" / "train" / "cat" / "0003.jpg").write_bytes(content)
    run = [
        "run",
        "--data",
        str(tmp_path / "data"),
        "--output",
        str(tmp_path / "run"),
        "--steps",
        "1",
        "--set",
        "hints=null",
    ]
    assert ghnqat_train(run) == 1
    error = capsys.readouterr().err
    assert "0003.jpg" in error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_an_empty_folder_of_images_is_refused(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).mkdir(parents=True)
    with pytest.raises(DataError, match="fewer than two classes"):
        load_images(tmp_path, "train")


def test_a_failed_download_says_what_to_do(monkeypatch, capsys, tmp_path):
    import torchvision

    def unreachable(*_, **__):
        raise OSError("Name or service not known")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", unreachable)
    with pytest.raises(DataError, match=r"could not be downloaded.*train/<class>"):
        data_module.download_cifar10(tmp_path)
    assert ghnqat_train(["download", "--data", str(tmp_path)]) == 1
    assert "Traceback" not in capsys.readouterr().err
