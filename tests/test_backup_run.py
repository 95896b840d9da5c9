"""benchmarks/backup_run.py and ship_weights.py: what comes back of what they write."""

import copy
import hashlib
from pathlib import Path

import pytest
import torch

from ghnqat_sdk import (
    CheckpointError,
    GraphHypernetwork,
    HypernetworkConfig,
    load_pretrained,
    save_pretrained,
)
from ghnqat_sdk.data import load_images
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.hypernetwork.decoder import DecoderConfig
from ghnqat_sdk.hypernetwork.encoders import TransformerConfig
from ghnqat_sdk.training.compute import ComputeConfig
from ghnqat_sdk.training.config import RunConfig, ValidationConfig, load_config
from ghnqat_sdk.training.distributed import Processes
from ghnqat_sdk.training.hints import HintConfig
from ghnqat_sdk.training.run import Run, open_features
from ghnqat_sdk.training.sampler import SamplingConfig
from ghnqat_sdk.training.shares import FamiliesShare
from ghnqat_sdk.training.teacher import Teacher, TeacherConfig, save_teacher


@pytest.fixture
def backup_run(benchmark_module):
    return benchmark_module("backup_run")


@pytest.fixture
def images(data):
    return [load_images(data, split) for split in ("train", "val")]


@pytest.fixture
def config(images, tmp_path, small):
    """A tiny run with hints and initial weights."""
    with torch.random.fork_rng():
        teacher = Teacher(TeacherConfig(width=4, blocks=(0, 0, 0)), images[0].classes)
    save_teacher(teacher, tmp_path / "its teacher", accuracy=10.0, data=images[0].digest())
    places = {"teacher": str(tmp_path / "its teacher"), "features": str(tmp_path / "its features")}
    encoder = TransformerConfig(width=16, layers=1, heads=2)
    return RunConfig(
        initial=str(save_pretrained(small, tmp_path / "initial")),
        hypernetwork=HypernetworkConfig(
            encoder=encoder, decoder=DecoderConfig(hidden=16, tile=8, kernel=3)
        ),
        networks=(FamiliesShare(max_macs=5e6),),
        sampling=SamplingConfig(meta_batch=1, image_batch=8, simple_until=10),
        hints=HintConfig(**places),
        compute=ComputeConfig(compile=False),
        validation=ValidationConfig(networks=1, images=20),
    )


def run_in(folder: Path, config: RunConfig, images) -> Run:
    features = open_features(config, images[0], Processes())
    return Run(config, folder, *images, features=features)


def test_a_restored_run_is_what_was_backed_up_and_goes_on(backup_run, config, images, tmp_path):
    run = run_in(tmp_path / "run", config, images)
    list(run.run(2))
    path = tmp_path / "backups" / "run.safetensors"
    assert backup_run.backup(tmp_path / "run", path) == path.stat().st_size
    assert str(tmp_path).encode() not in path.read_bytes()

    folder = tmp_path / "restored"
    restored = backup_run.restore(path, folder)
    assert restored == load_config(folder / "run.json")
    assert (folder / "teacher.safetensors").read_bytes() == (tmp_path / "its teacher").read_bytes()
    assert restored.initial is None
    other = run_in(folder, restored, images)
    assert other.resume()
    assert vars(other.progress) == vars(run.progress)
    before, after = run.trainer, other.trainer
    averages = before.average.module.state_dict()
    for name, exact in (averages | before.hints.state_dict()).items():
        parts = [after.hints] if name not in averages else [after.model, after.average.module]
        for part in parts:
            assert torch.equal(part.state_dict()[name], exact.half().float()), name
    assert int(after.average.n_averaged) == int(before.average.n_averaged)
    assert [report.step for report in other.run(3)] == [3]


def test_a_second_backup_replaces_the_first(backup_run, config, images, tmp_path):
    run, path = run_in(tmp_path / "run", config, images), tmp_path / "backup.safetensors"
    for steps in (1, 2):
        list(run.run(steps))
        backup_run.backup(tmp_path / "run", path)
    backup_run.restore(path, tmp_path / "restored")
    other = Run(config.model_copy(update={"hints": None}), tmp_path / "restored", *images)
    other.resume()
    assert other.progress.step == 2


def test_what_cannot_be_backed_up_or_restored_is_said(
    backup_run, config, images, tmp_path, monkeypatch
):
    path = tmp_path / "backup.safetensors"
    with pytest.raises(ArgumentError, match="cannot be read"):
        backup_run.backup(tmp_path / "nothing", path)
    list(run_in(tmp_path / "run", config, images).run(1))
    with monkeypatch.context() as patch:
        patch.setattr(backup_run, "MOST_BYTES", 1000)
        with pytest.raises(ArgumentError, match="takes"):
            backup_run.backup(tmp_path / "run", path)
    assert not path.exists()
    backup_run.backup(tmp_path / "run", path)
    with pytest.raises(ArgumentError, match="holds a run"):
        backup_run.restore(path, tmp_path / "run")
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="no whole backup"):
        backup_run.restore(path, tmp_path / "restored")
    assert not (tmp_path / "restored").exists()


def test_the_default_hypernetwork_and_teacher_fit(backup_run):
    hypernetwork = HypernetworkConfig()
    with torch.device("meta"):
        numbers = sum(p.numel() for p in GraphHypernetwork(hypernetwork).parameters())
        teacher = Teacher(TeacherConfig(), [str(i) for i in range(10)])
        of_teacher = sum(t.numel() for t in teacher.state_dict().values())
    projections = sum(teacher.channels) * HintConfig().channels
    assert 2 * (numbers + projections + of_teacher) + 100_000 < backup_run.MOST_BYTES


def test_shipped_weights_are_halves_with_their_checksum(benchmark_module, small, tmp_path):
    source, target = save_pretrained(small, tmp_path / "last"), tmp_path / "weights"
    checksum = benchmark_module("ship_weights").ship([source], target)
    assert checksum == hashlib.sha256((target / "model.safetensors").read_bytes()).hexdigest()
    assert checksum in (target / "model.safetensors.sha256").read_text()
    shipped = load_pretrained(target)
    assert shipped.config == small.config
    for name, tensor in shipped.state_dict().items():
        assert torch.equal(tensor, small.state_dict()[name].half().float())


def test_the_mean_of_two_branches_ships(benchmark_module, small, tmp_path):
    one, two = small, copy.deepcopy(small)
    with torch.no_grad():
        for parameter in two.parameters():
            parameter += 1
    folders = [save_pretrained(model, tmp_path / name) for model, name in ((one, "a"), (two, "b"))]
    benchmark_module("ship_weights").ship(folders, tmp_path / "weights")
    shipped = load_pretrained(tmp_path / "weights").state_dict()
    for name, tensor in one.state_dict().items():
        assert torch.allclose(shipped[name], tensor + 0.5, atol=1e-3), name


def test_the_mean_of_different_hypernetworks_is_refused(benchmark_module, small, tmp_path):
    config = small.config.model_copy(update={"s_max": 3})
    folders = [
        save_pretrained(small, tmp_path / "a"),
        save_pretrained(GraphHypernetwork(config), tmp_path / "b"),
    ]
    with pytest.raises(ArgumentError, match="another hypernetwork"):
        benchmark_module("ship_weights").ship(folders, tmp_path / "weights")
