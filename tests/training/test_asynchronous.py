"""Processes that train a run together, without waiting for each other."""

import json
import os
import signal
from multiprocessing import SimpleQueue
from threading import Lock

import pytest
import torch

from ghnqat_sdk.errors import ArgumentError, CheckpointError
from ghnqat_sdk.training.asynchronous import pool as pools
from ghnqat_sdk.training.asynchronous.losses import DeviceLosses, moved
from ghnqat_sdk.training.asynchronous.plan import Plan
from ghnqat_sdk.training.asynchronous.pool import Pool, flat_of
from ghnqat_sdk.training.asynchronous.run import _other_draws, train_together
from ghnqat_sdk.training.asynchronous.team import Team
from ghnqat_sdk.training.asynchronous.worker import Work, learn, trainer_of
from ghnqat_sdk.training.checkpoint import load_training_state
from ghnqat_sdk.training.compute import ComputeConfig
from ghnqat_sdk.training.distributed import Processes
from ghnqat_sdk.training.folder import CHECKPOINT_FILE, LOG_FILE, RUN_FILE
from ghnqat_sdk.training.optimizers import SoapConfig
from ghnqat_sdk.training.run import open_features
from ghnqat_sdk.training.shares import CustomShare

STABLE = Plan(began=0.0, stable=1e12, total=2e12)


@pytest.fixture
def hinted_run(make_run, hinted, images):
    """Makes a run with hints, in one folder."""
    features = open_features(hinted, images["train"], Processes())
    return lambda: make_run("stable", hinted, features=features)


@pytest.fixture
def run(hinted_run):
    """Two steps of it."""
    run = hinted_run()
    list(run.run(2))
    return run


@pytest.fixture
def trainer(run):
    return run.trainer


@pytest.fixture
def moments_as_they_are(monkeypatch):
    """The rate does not rise at the beginning."""
    monkeypatch.setattr(pools, "WARMUP", 1)


def test_what_a_device_gives_is_what_the_run_gives(trainer):
    drawn = trainer.sampler.step(0)
    networks = [trainer.networks.prepared(draw.architecture) for draw in drawn]
    predicted = trainer._predict(networks, drawn)
    losses = DeviceLosses(trainer.losses, ComputeConfig(), 1)
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


def test_copies_keep_numbers_and_their_order_in_memory():
    tensors = {
        "conv": torch.randn(4, 3, 5, 5).contiguous(memory_format=torch.channels_last),
        "bias": torch.randn(4),
    }
    copies = moved(tensors, tensors, "cpu")
    for name, tensor in tensors.items():
        assert copies[name].equal(tensor)
        assert copies[name].stride() == tensor.stride()


def test_an_update_is_a_step_of_the_runs_optimizer(trainer, moments_as_they_are):
    pool = Pool(trainer, gather=1)
    pool.config = pool.config.model_copy(update={"clip_norm": 1e9})
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(pool.weights.shape, generator=generator) for _ in range(4)]
    for gradient in gradients:
        pool.add(gradient.clone(), 1, STABLE)
    for step, gradient in enumerate(gradients, 2):
        trainer._set_learning_rate(step)
        trainer.gradients.flat.copy_(gradient)
        trainer.optimizer.step()
    torch.testing.assert_close(pool.weights, flat_of(trainer.parameters))


def test_moments_of_a_run_are_taken_on(trainer, moments_as_they_are):
    pool = Pool(trainer, gather=1)
    pool.config = pool.config.model_copy(update={"clip_norm": 1e9})
    assert pool.moments == 2
    gradient = torch.randn(pool.weights.shape, generator=torch.Generator().manual_seed(0))
    pool.add(gradient.clone(), 1, STABLE)
    trainer._set_learning_rate(2)
    trainer.gradients.flat.copy_(gradient)
    trainer.optimizer.step()
    torch.testing.assert_close(pool.weights, flat_of(trainer.parameters))
    theirs = [trainer.optimizer.state[p]["exp_avg_sq"] for p in trainer.parameters]
    torch.testing.assert_close(pool.second, flat_of(theirs))
    pool.give(trainer)
    assert {int(state["step"]) for state in trainer.optimizer.state.values()} == {3}


def test_gradients_are_averaged_over_networks_and_clipped(trainer):
    pool = Pool(trainer, gather=4)
    before = pool.weights.clone()
    ones = torch.ones_like(pool.weights)
    pool.add(ones.clone(), 1, STABLE)
    assert pool.weights.equal(before)
    pool.add(5 * ones, 3, STABLE)
    assert not pool.weights.equal(before)
    limit = pool.config.clip_norm * pool.config.gradient_scale_at(3)
    beta = pool.betas[0]
    own = [trainer.optimizer.state[p]["exp_avg"] for p in trainer.parameters]
    share = limit / len(ones) ** 0.5  # of each entry, where all are alike
    torch.testing.assert_close(pool.first, beta * flat_of(own) + (1 - beta) * share * ones)
    assert not pool.gathered.any()


def test_a_gradient_far_above_its_usual_norm_is_clipped(trainer):
    pool = Pool(trainer, gather=1_000_000)
    ones = torch.ones_like(pool.weights)
    for _ in range(20):
        pool.add(ones.clone(), 1, STABLE)
    pool.gathered.zero_()
    pool.add(1000 * ones, 1, STABLE)
    torch.testing.assert_close(pool.gathered, pools.UNUSUAL * ones, rtol=1e-3, atol=0)


def test_the_rate_falls_and_hints_fade():
    later = Plan(began=torch.inf, stable=0.0, total=1.0)
    assert (later.decayed(), later.rate(), later.hint()) == (0, 1, 1)
    over = Plan(began=0.0, stable=1.0, total=2.0)
    assert (over.decayed(), over.rate(), over.hint()) == (1, 0, 0)
    plan = Plan.of(10, 0.25)
    assert (plan.stable, plan.total) == (450, 600)
    assert (plan.seconds(), plan.over(), plan.rate()) == (0, False, 1)
    assert plan.begun(0.0).over()


def test_a_run_goes_on_with_what_the_pool_gave(run, hinted_run):
    pool = Pool(run.trainer, gather=2)
    work = Work(run.config.model_dump_json(), run.train, pool, Lock(), STABLE, 1, SimpleQueue())
    own = trainer_of(0, work)
    images = run.progress.images
    for step in range(2):
        learn(own, step, pool, work.lock, work.plan)
    for _ in range(2):  # what is given twice counts once
        pool.give(run.trainer)
    run.save()
    assert run.progress.step == 4
    assert run.progress.images > images
    resumed = hinted_run()
    assert resumed.resume()
    assert flat_of(resumed.trainer.parameters).equal(pool.weights)
    list(resumed.run(5))
    assert load_training_state(run.folder)[1]["step"] == 5


def test_what_cannot_be_continued_is_refused(run, make_run):
    with pytest.raises(ArgumentError, match=r"write run.resume\(\)"):
        next(train_together(make_run("new"), 1, 1))
    run.trainer.config = run.config.model_copy(update={"optimizer": SoapConfig()})
    with pytest.raises(ArgumentError, match="soap"):
        next(train_together(run, 1, 1))


def test_other_networks_are_drawn_each_time(run):
    first = _other_draws(run)
    assert first.seed != run.config.seed
    run.progress.step += 1
    assert _other_draws(run).seed != first.seed


def test_processes_train_a_run(run):
    before = flat_of(run.trainer.parameters)
    together = train_together(run, 60, 2)
    standing = next(standing for standing in together if standing.step > 6)
    together.close()
    assert not flat_of(run.trainer.parameters).equal(before)
    _, facts = load_training_state(run.folder)
    assert 2 < facts["step"] == run.progress.step <= standing.step
    assert facts["images"] > facts["step"]
    assert facts["cpu_seconds"] > 0
    lines = [json.loads(line) for line in (run.folder / LOG_FILE).read_text().splitlines()]
    logged = [line for line in lines if "loss" in line and "validation" not in line]
    assert logged[0]["step"] > 2
    assert logged[0]["networks"] > 6
    assert 0 < logged[0]["loss"] <= 5


def test_a_decay_leaves_the_run_as_it_was_before_and_gives_the_average(run):
    average = flat_of(list(run.trainer.averaged().parameters()))
    config = (run.folder / RUN_FILE).read_bytes()
    run.config = run.config.model_copy(update={"average": 0.5})
    standings = list(train_together(run, 0.1, 1, decay=1.0))
    assert standings[-1].step > 2
    assert load_training_state(run.folder)[1]["step"] == 2
    assert (run.folder / RUN_FILE).read_bytes() == config
    assert not flat_of(list(run.trainer.averaged().parameters())).equal(average)


def test_a_process_that_is_killed_ends_the_others(run, monkeypatch):
    started = []

    def kill_one(team):
        started.extend(team.workers)
        os.kill(team.workers[0].pid, signal.SIGKILL)
        team.workers[0].join()
        team.lock.acquire()  # as if it had been killed while it held it
        check(team)

    check = Team.check
    monkeypatch.setattr(Team, "check", kill_one)
    with pytest.raises(CheckpointError, match=r"exit code -9\. The checkpoint of step 2 is kept"):
        list(train_together(run, 5, 2))
    assert not any(worker.is_alive() for worker in started)
    assert load_training_state(run.folder)[1]["step"] == 2


def test_an_error_of_a_process_is_that_of_the_training(run):
    run.config = run.config.model_copy(
        update={"networks": (CustomShare(factory="toys.Unbuildable"),)}
    )
    with pytest.raises(ArgumentError, match=r"toys\.Unbuildable.+build\(10\) fails"):
        list(train_together(run, 5, 1))


def test_the_average_goes_on_as_that_of_a_longer_run(run):
    pool = Pool(run.trainer, gather=1)
    run.trainer.average.n_averaged.fill_(10_000)
    later = Pool(run.trainer, gather=1)
    for each in (pool, later):
        each.config = each.config.model_copy(update={"average": 0.999})
        before = each.average.clone()
        each.add(torch.ones_like(each.weights), 1, STABLE)
        each.change = (each.average - before).norm()
    assert pool.change > 100 * later.change
    later.give(run.trainer)
    assert run.trainer.average.n_averaged == 10_001


def test_minutes_in_which_nothing_is_learned_are_refused(run):
    before = (run.folder / CHECKPOINT_FILE).read_bytes()
    with pytest.raises(ArgumentError, match=r"No step was made in 0\.01 minutes"):
        list(train_together(run, 0.01, 1, gather=1_000_000))
    assert (run.folder / CHECKPOINT_FILE).read_bytes() == before


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        ({"minutes": float("nan")}, "minutes=nan"),
        ({"minutes": -1}, "minutes=-1"),
        ({"processes": 0}, "processes=0"),
        ({"decay": 2.0}, "decay=2.0"),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused(run, numbers, reason):
    with pytest.raises(ArgumentError, match=reason):
        next(train_together(run, **({"minutes": 1, "processes": 1} | numbers)))
