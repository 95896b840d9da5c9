"""benchmarks/gpu_run.py and its parts, with networks on the CPU in place of a GPU."""

from argparse import Namespace
from threading import Lock

import pytest
import torch

from ghnqat_sdk import load_pretrained
from ghnqat_sdk.data import load_images
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.hypernetwork.decoder import DecoderConfig
from ghnqat_sdk.hypernetwork.encoders import TransformerConfig
from ghnqat_sdk.hypernetwork.ghn import HypernetworkConfig
from ghnqat_sdk.training.checkpoint import load_training_state
from ghnqat_sdk.training.compute import ComputeConfig
from ghnqat_sdk.training.config import RunConfig, ValidationConfig
from ghnqat_sdk.training.distributed import Processes
from ghnqat_sdk.training.hints import HintConfig
from ghnqat_sdk.training.optimizers import SoapConfig
from ghnqat_sdk.training.run import Run, open_features
from ghnqat_sdk.training.sampler import SamplingConfig
from ghnqat_sdk.training.schedules import StableSchedule
from ghnqat_sdk.training.shares import FamiliesShare
from ghnqat_sdk.training.teacher import Teacher, TeacherConfig, save_teacher
from ghnqat_sdk.training.trainer import Trainer

LOCK = Lock()


@pytest.fixture
def parts(benchmark_module):
    """The modules, so that the script finds the others."""
    return {name: benchmark_module(name) for name in ("gpu_pool", "gpu_losses", "gpu_run")}


@pytest.fixture
def config(data, tmp_path):
    with torch.random.fork_rng():
        teacher = Teacher(
            TeacherConfig(width=4, blocks=(0, 0, 0)), load_images(data, "val").classes
        )
    save_teacher(teacher, tmp_path / "teacher", accuracy=10.0, data="none")
    places = {"teacher": str(tmp_path / "teacher"), "features": str(tmp_path / "features")}
    return RunConfig(
        hypernetwork=HypernetworkConfig(
            encoder=TransformerConfig(width=16, layers=1, heads=2),
            decoder=DecoderConfig(hidden=16, tile=8, kernel=3),
        ),
        networks=(FamiliesShare(max_macs=5e6),),
        sampling=SamplingConfig(meta_batch=2, image_batch=8, window=2),
        hints=HintConfig(**places, soft_labels=0.5),
        schedule=StableSchedule(warmup=0),
        validation=ValidationConfig(networks=1, images=20),
    )


@pytest.fixture
def trainer(config, data):
    train = load_images(data, "train")
    return Trainer(config, train, features=open_features(config, train, Processes()))


def a_plan(parts, **changes):
    plan = {"began": 0.0, "stable": 1e12, "total": 2e12, "rate": 1e-3, "gather": 4}
    return parts["gpu_pool"].Plan(**plan | changes)


def test_what_a_device_gives_is_what_the_run_gives(parts, trainer):
    drawn = trainer.sampler.step(0)
    networks = [trainer.networks.prepared(draw.architecture) for draw in drawn]
    predicted = trainer._predict(networks, drawn)
    losses = parts["gpu_losses"].DeviceLosses(trainer.losses, ComputeConfig(), 1)
    ours = losses.of_step(0, 0, networks, drawn, predicted)
    again = losses.of_step(0, 0, networks, drawn, predicted)
    for one, two in zip(ours, again, strict=True):
        assert one.loss == two.loss
        assert one.hint is not None
        assert len(one.of_projections) == 3
        assert one.gradients.keys() == two.gradients.keys()
    for found, tensors in zip(ours, predicted, strict=True):
        for name, gradient in found.gradients.items():
            assert gradient.shape == tensors[name].shape
            assert gradient.stride() == tensors[name].stride()


def test_copies_keep_numbers_and_their_order_in_memory(parts):
    tensors = {
        "conv": torch.randn(4, 3, 5, 5).contiguous(memory_format=torch.channels_last),
        "bias": torch.randn(4),
    }
    copies = parts["gpu_losses"].moved(tensors, tensors, "cpu")
    for name, tensor in tensors.items():
        assert copies[name].equal(tensor)
        assert copies[name].stride() == tensor.stride()


def test_an_update_is_a_step_of_the_runs_optimizer(parts, trainer, monkeypatch):
    monkeypatch.setattr(parts["gpu_pool"], "WARMUP", 1)
    pool = parts["gpu_pool"].Pool(trainer)
    gradients = [torch.randn_like(pool.weights) for _ in range(4)]
    plan = a_plan(parts, gather=1)
    for gradient in gradients:
        pool.add(gradient, 1, plan, kept=0.9, limit=1e9)
    for group in trainer.optimizer.param_groups:
        group["lr"] = 1e-3
    for gradient in gradients:
        trainer.gradients.flat.copy_(gradient)
        trainer.optimizer.step()
    theirs = parts["gpu_pool"].flat_of(trainer.parameters)
    torch.testing.assert_close(pool.weights, theirs)


def test_moments_of_a_run_are_taken_on(parts, trainer, monkeypatch):
    monkeypatch.setattr(parts["gpu_pool"], "WARMUP", 1)
    trainer.optimizer.param_groups[0]["lr"] = 1e-3
    trainer.gradients.flat.normal_(generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        trainer.optimizer.step()
    pool = parts["gpu_pool"].Pool(trainer)
    assert pool.steps == 3
    pool.add(trainer.gradients.flat, 1, a_plan(parts, gather=1), kept=0.9, limit=1e9)
    trainer.optimizer.step()
    torch.testing.assert_close(pool.weights, parts["gpu_pool"].flat_of(trainer.parameters))
    theirs = [trainer.optimizer.state[p]["exp_avg_sq"] for p in trainer.parameters]
    torch.testing.assert_close(pool.second, parts["gpu_pool"].flat_of(theirs))
    pool.give(trainer)
    assert {int(state["step"]) for state in trainer.optimizer.state.values()} == {4}


def test_gradients_are_averaged_over_networks_and_clipped(parts, trainer):
    pool = parts["gpu_pool"].Pool(trainer)
    before = pool.weights.clone()
    ones = torch.ones_like(pool.weights)
    pool.add(ones, 1, a_plan(parts), kept=0.9, limit=1.0)
    assert pool.weights.equal(before)
    pool.add(5 * ones, 3, a_plan(parts), kept=0.9, limit=1.0)
    assert not pool.weights.equal(before)
    assert pool.facts[parts["gpu_pool"].Fact.NORM].item() == pytest.approx(4 * len(ones) ** 0.5)
    assert not pool.gathered.any()


def test_the_rate_falls_and_hints_fade(parts):
    plan = a_plan(parts, began=torch.inf, stable=0.0)  # not begun yet
    assert (plan.decayed(), plan.hint()) == (0, 1)
    assert plan.rate_at(50) == pytest.approx(plan.rate / 2)
    over = a_plan(parts, stable=1.0, total=2.0)
    assert (over.decayed(), over.rate_at(1e3), over.hint()) == (1, 0, 0)


def test_another_optimizer_is_refused(parts, trainer):
    trainer.config = trainer.config.model_copy(update={"optimizer": SoapConfig()})
    with pytest.raises(ArgumentError, match="soap"):
        parts["gpu_pool"].Pool(trainer)


def test_a_run_goes_on_with_what_the_pool_gave(parts, config, data, tmp_path):
    train, validation = (load_images(data, split) for split in ("train", "val"))
    features = open_features(config, train, Processes())
    run = Run(config, tmp_path / "run", train, validation, features=features)
    pool = parts["gpu_pool"].Pool(run.trainer)
    run.trainer.losses = parts["gpu_losses"].DeviceLosses(run.trainer.losses, ComputeConfig(), 1)
    plan = a_plan(parts, gather=2)
    for step in range(2):
        parts["gpu_run"].learn(run.trainer, step, pool, LOCK, plan)
    parts["gpu_run"].write(run, pool, LOCK)
    assert run.progress.step == 2
    assert run.progress.images == 2 * 2 * 8
    resumed = Run(config, tmp_path / "run", train, validation, features=features)
    assert resumed.resume()
    assert parts["gpu_pool"].flat_of(resumed.trainer.parameters).equal(pool.weights)
    list(resumed.run(3))
    assert load_training_state(tmp_path / "run")[1]["step"] == 3


def test_workers_train_a_run_and_let_its_weights_decay(parts, config, data, tmp_path):
    images = [load_images(data, split) for split in ("train", "val")]
    features = open_features(config, images[0], Processes())
    run = Run(config, tmp_path / "run", *images, features=features)
    list(run.run(1))
    options = Namespace(
        run=tmp_path / "run",
        data=str(data),
        minutes=0.2,
        decay=0.3,
        output=tmp_path / "decayed",
        workers=1,
        images=8,
        macs=30e6,
        gather=3,
        rate=1e-3,
        seed=7,
        device="cpu",
        every=2.0,
    )
    trained = parts["gpu_run"].train_run(options)
    assert trained.progress.step > 1
    assert trained.progress.skipped_networks == 0
    _, facts = load_training_state(tmp_path / "run")
    assert facts["step"] == trained.progress.step
    load_pretrained(tmp_path / "decayed")
