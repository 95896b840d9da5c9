"""What can go wrong around a run: a process killed, a disk full, images that are not what they should be."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from ghnqat_sdk.cli import main as ghnqat
from ghnqat_sdk.errors import ArgumentError, CheckpointError, DataError
from ghnqat_sdk.hypernetwork.decoder import DecoderConfig
from ghnqat_sdk.hypernetwork.encoders import TransformerConfig
from ghnqat_sdk.hypernetwork.ghn import HypernetworkConfig
from ghnqat_sdk.hypernetwork.pretrained import load_pretrained, save_pretrained
from ghnqat_sdk.training import datasets
from ghnqat_sdk.training.checkpoint import CHECKPOINT_FILE
from ghnqat_sdk.training.cli import main as ghnqat_train
from ghnqat_sdk.training.config import BitsShare, RunConfig
from ghnqat_sdk.training.datasets import load_images
from ghnqat_sdk.training.trainer import Trainer

TINY = RunConfig(
    hypernetwork=HypernetworkConfig(
        encoder=TransformerConfig(width=16, layers=1, heads=2), decoder=DecoderConfig(hidden=16, tile=16, kernel=3)
    ),
    steps=40,
    meta_batch=1,
    image_batch=4,
    max_macs=1.2e6,
    pool=100,
    bits=(BitsShare(bits=(4, 4)),),
    checkpoint_every=1,
    validate_every=5,
    validation_graphs=1,
    validation_images=10,
)
KILLS = 30

# Children are forked from a process that has imported everything, so that they spend their short lives in training.
KILLER = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from ghnqat_sdk.hypernetwork.pretrained import load_pretrained
from ghnqat_sdk.training.checkpoint import load_training_state
from ghnqat_sdk.training.config import RunConfig
from ghnqat_sdk.training.datasets import load_images
from ghnqat_sdk.training.trainer import Trainer

torch.set_num_threads(1)
data, parent, kills = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
config = RunConfig.model_validate_json(Path(sys.argv[4]).read_text())
train, validation = load_images(data, "train"), load_images(data, "val")
draw, before, finished = random.Random(0), 0, 0
while before < config.steps:
    folder = parent / str(finished)
    pid = os.fork()
    if pid == 0:
        trainer = Trainer(config, folder, train, validation)
        trainer.resume()
        for _ in trainer.run():
            pass
        os._exit(0)
    if kills:
        time.sleep(draw.uniform(0.0, 0.3))
        os.kill(pid, signal.SIGKILL)
        kills -= 1
    os.waitpid(pid, 0)
    state = load_training_state(folder)  # raises if it is damaged
    step = state[1]["step"] if state else 0
    assert step >= before, (step, before)
    before = step
    for name in ("best", "last"):
        if (folder / name / "config.json").exists():
            load_pretrained(folder / name)
    if kills and before == config.steps:  # a fast machine: more kills in another run
        finished, before = finished + 1, 0
"""


def test_thirty_kills_at_random_moments_leave_the_newest_checkpoint_whole(data, tmp_path):
    config = tmp_path / "config.json"
    config.write_text(TINY.model_dump_json())

    def run(name: str, kills: int) -> list[dict[str, torch.Tensor]]:
        arguments = [str(data), str(tmp_path / name), str(kills), str(config)]
        subprocess.run([sys.executable, "-c", KILLER, *arguments], check=True)
        return [load_file(path) for path in (tmp_path / name).glob(f"*/{CHECKPOINT_FILE}")]

    (whole,) = run("whole", 0)
    for killed in run("killed", KILLS):
        assert whole.keys() == killed.keys()
        assert all(torch.equal(tensor, killed[name]) for name, tensor in whole.items())


@pytest.fixture
def make(data, tmp_path):
    train, validation = load_images(data, "train"), load_images(data, "val")
    return lambda **changes: Trainer(TINY.model_copy(update=changes), tmp_path / "run", train, validation)


# No file of the process may grow beyond a few kilobytes: writing fails as it does on a full disk.
FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from ghnqat_sdk.errors import CheckpointError
from ghnqat_sdk.training.checkpoint import load_training_state, save_training_state
from ghnqat_sdk.training.config import RunConfig
from ghnqat_sdk.training.datasets import load_images
from ghnqat_sdk.training.trainer import Trainer

data, folder, config = sys.argv[1], Path(sys.argv[2]), RunConfig.model_validate_json(sys.argv[3])
trainer = Trainer(config, folder, load_images(data, "train"), load_images(data, "val"))
tensors, facts = load_training_state(folder)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, resource.RLIM_INFINITY))
for attempt in (lambda: save_training_state(folder, tensors, facts), lambda: list(trainer.run())):
    try:
        attempt()
    except CheckpointError as error:
        print(error)
"""


def test_a_full_disk_ends_the_run_and_keeps_the_last_checkpoint(make, data, tmp_path):
    list(make(steps=2).run())
    before = (tmp_path / "run" / CHECKPOINT_FILE).read_bytes()
    config = TINY.model_copy(update={"steps": 3}).model_dump_json()
    run = [sys.executable, "-c", FULL_DISK, str(data), str(tmp_path / "run"), config]
    lines = subprocess.run(run, check=True, capture_output=True, text=True).stdout.splitlines()
    assert len(lines) == 2
    assert re.search(r"cannot be written.*File too large.*Make room", lines[0])
    assert re.search(r"(cannot be written|Cannot write).*File too large", lines[1])
    assert (tmp_path / "run" / CHECKPOINT_FILE).read_bytes() == before
    assert not list((tmp_path / "run").glob(".*.tmp"))


def test_a_folder_that_cannot_be_made_is_one_line(capsys, data, tmp_path):
    (tmp_path / "file").write_text("")
    assert ghnqat_train(["run", "--data", str(data), "--output", str(tmp_path / "file" / "run")]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_a_flipped_bit_in_the_state_is_found(make, tmp_path):
    list(make(steps=1).run())
    path = tmp_path / "run" / CHECKPOINT_FILE
    raw = bytearray(path.read_bytes())
    raw[-1000] ^= 1
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match="checksum"):
        make(steps=1).resume()


def test_state_without_its_facts_is_refused(make, tmp_path):
    list(make(steps=1).run())
    path = tmp_path / "run" / CHECKPOINT_FILE
    from safetensors.torch import save_file

    save_file(load_file(path), path)
    with pytest.raises(CheckpointError, match="damaged"):
        make(steps=1).resume()


# Images


def test_images_of_other_classes_in_test_than_in_train_are_refused(data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "test" / "cat")
    with pytest.raises(DataError, match="different classes"):
        load_images(tmp_path / "data", "test")


def test_images_of_another_number_of_classes_are_refused(capsys, data, small, tmp_path):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            shutil.copytree(data / split / name, tmp_path / "data" / split / name)
    images = load_images(tmp_path / "data", "train")
    with pytest.raises(ArgumentError, match=r"of 2 classes.*num_classes is 10"):
        Trainer(TINY, tmp_path / "run", images, images)
    checkpoint = str(save_pretrained(small, tmp_path / "small"))
    assert ghnqat(["evaluate", "--checkpoint", checkpoint, "--data", str(tmp_path / "data"), "--graphs", "1"]) == 1
    assert "of 2 classes" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff\xe0 cut short", b"GIF89a"])
def test_a_broken_image_is_named_on_the_command_line(capsys, data, tmp_path, content):
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data" / "train" / "cat" / "0003.jpg").write_bytes(content)
    assert ghnqat_train(["run", "--data", str(tmp_path / "data"), "--output", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert "0003.jpg" in error
    assert "Traceback" not in error


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
        datasets.download_cifar10(tmp_path)
    assert ghnqat_train(["download", "--data", str(tmp_path)]) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_a_run_whose_config_was_edited_or_damaged_is_refused(make, tmp_path):
    list(make(steps=1).run())
    path = tmp_path / "run" / "run.json"
    for damaged in (json.dumps(json.loads(path.read_text()) | {"seed": 5}).encode(), b"{", b"\xff\xfe"):
        path.write_bytes(damaged)
        with pytest.raises(ArgumentError, match="holds another run"):
            make(steps=1).resume()
    assert load_pretrained(tmp_path / "run" / "last")
