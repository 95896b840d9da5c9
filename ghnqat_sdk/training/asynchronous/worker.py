"""What each of the processes does that train a run together."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import parent_process
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Lock
from typing import NamedTuple

import torch

from ghnqat_sdk.data import ImageSet
from ghnqat_sdk.errors import GhnqatError
from ghnqat_sdk.training.asynchronous.losses import DeviceLosses
from ghnqat_sdk.training.asynchronous.plan import Plan
from ghnqat_sdk.training.asynchronous.pool import Fact, Pool, flat_of
from ghnqat_sdk.training.compute import ComputeConfig
from ghnqat_sdk.training.config import RunConfig
from ghnqat_sdk.training.distributed import Processes
from ghnqat_sdk.training.process import settle_process, sparing_old_objects
from ghnqat_sdk.training.run import open_features
from ghnqat_sdk.training.trainer import Trainer

_STEPS_BETWEEN_SPARINGS = 40
_LOOKS = 0.05  # seconds between looks at the clock, before it runs
_PATIENCE = 1  # seconds for the lock, before a look at who may hold it


class Work(NamedTuple):
    """What all processes are given.

    Attributes:
        config: Of what they draw, as JSON, which imports what is the user's own where it is read;
            its `compute` is where predicted networks are.
        train: Training images.
        pool: The weights.
        lock: Held by whoever changes the pool.
        plan: How long, and how fast.
        processes: How many share the work.
        complaints: Takes the error that ends a process.
    """

    config: str
    train: ImageSet
    pool: Pool
    lock: Lock
    plan: Plan
    processes: int
    complaints: SimpleQueue[tuple[type[GhnqatError], str]]


def work(rank: int, given: Work) -> None:
    """All that one process does, until the pool says stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who interrupts the first process stops all
    torch.set_num_threads(1)
    settle_process()
    try:
        _train(rank, given)
    except GhnqatError as error:
        given.complaints.put((type(error), str(error)))
        raise SystemExit(1) from error


def _train(rank: int, given: Work) -> None:
    pool = given.pool
    trainer = trainer_of(rank, given)
    weights = _in_one_buffer(trainer)
    step = pool.start.step
    plan = _begun(given)
    with sparing_old_objects() as spare:
        while not _is_over(pool):
            weights.copy_(pool.weights)
            learn(trainer, step, pool, given.lock, plan)
            step += 1
            if step % _STEPS_BETWEEN_SPARINGS == 0:
                spare()


def _begun(given: Work) -> Plan:
    """The plan, from the moment on at which all processes are ready."""
    facts = given.pool.facts
    with held(given.lock, _end_alone):
        facts[Fact.READY] += 1
    while not facts[Fact.BEGAN] and not _is_over(given.pool):
        time.sleep(_LOOKS)
    return given.plan.begun(facts[Fact.BEGAN].item())


def _is_over(pool: Pool) -> bool:
    return bool(pool.facts[Fact.STOP]) or _alone()


def _end_alone() -> None:
    """Without the first process, this one ends."""
    if _alone():
        raise SystemExit(1)


@contextmanager
def held(lock: Lock, check: Callable[[], object]) -> Iterator[None]:
    """Nobody else changes the pool meanwhile. Who was killed while it held the lock never gives it
    back: `check` raises then, and is asked while this one waits."""
    while not lock.acquire(timeout=_PATIENCE):
        check()
    try:
        yield
    finally:
        lock.release()


def _alone() -> bool:
    """Whether the process that started this one was killed."""
    parent = parent_process()
    return parent is not None and not parent.is_alive()


def trainer_of(rank: int, given: Work) -> Trainer:
    """The trainer of one process: its hypernetwork is on the processor, and networks are where the
    config says."""
    there = RunConfig.model_validate_json(given.config)
    compute = there.compute
    beside = compute.model_copy(update={"device": ComputeConfig().device})
    config = there.model_copy(update={"compute": beside})
    features = open_features(config, given.train, Processes())
    if features is not None:
        features = features.to(compute.device)
    processes = Processes(rank, given.processes)
    trainer = Trainer(config, given.train, features=features, processes=processes)
    if compute.device != beside.device:
        trainer.losses = DeviceLosses(trainer.losses, compute, given.processes)
    return trainer


def _in_one_buffer(trainer: Trainer) -> torch.Tensor:
    """The trainer's parameters, (P,), each of which is a part of it from here on."""
    weights = flat_of(trainer.parameters)
    parts = weights.split([parameter.numel() for parameter in trainer.parameters])
    for parameter, part in zip(trainer.parameters, parts, strict=True):
        parameter.data = part.view_as(parameter)
    return weights


def learn(trainer: Trainer, step: int, pool: Pool, lock: Lock, plan: Plan) -> None:
    """Some networks learn, and the pool gets what they gave."""
    started = time.process_time()
    trainer.losses.fading = plan.hint()
    drawn, results, unfit = trainer.learn(step)
    with held(lock, _end_alone):
        pool.count(drawn, results, unfit, time.process_time() - started)
        pool.add(trainer.gradients.flat, len(drawn), plan)
