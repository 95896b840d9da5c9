"""Minutes of a run that several processes train together: start, follow, save, stop."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Lock
from typing import NamedTuple

from torch import Tensor, multiprocessing

from ghnqat_sdk.errors import ArgumentError, CheckpointError
from ghnqat_sdk.training.asynchronous.plan import Plan
from ghnqat_sdk.training.asynchronous.pool import Fact, Pool
from ghnqat_sdk.training.asynchronous.worker import Work, work
from ghnqat_sdk.training.config import RunConfig
from ghnqat_sdk.training.run import Run

_LOOKS = 0.5  # seconds between looks at the processes
_FAREWELL = 60  # seconds in which a process ends by itself


class Standing(NamedTuple):
    """How far a training is.

    Attributes:
        seconds: Since it began.
        step, images: Of the run, so far.
        loss: Mean cross-entropy of networks since the last report; NaN where there was none.
    """

    seconds: float
    step: int
    images: int
    loss: float


def train_together(
    run: Run, minutes: float, processes: int, *, decay: float = 0.0, gather: int | None = None
) -> Iterator[Standing]:
    """Train a resumed run for some minutes by processes that do not wait for each other.

    The run is saved as any other: every `checkpoint_every` steps, and at the end, or where a decay
    begins. With a decay the trainer has the decayed average in the end, which is not saved: the
    stable run can go on.

    Args:
        run: Resumed; a stable one.
        minutes: From now on.
        processes: How many.
        decay: The last share of the minutes, in which the rate falls to zero and hints fade.
        gather: Networks of a step; by default as many as one of `Run.run` has with so many
            processes.

    Yields:
        How far it is, twice a second.

    Raises:
        ArgumentError: a run without a state, one that decays, or an optimizer other than AdamW.
        CheckpointError: a process has ended before its time, the weights diverge, or a file cannot
            be written; the last checkpoint stays.
    """
    _check(run)
    run.write_config()
    pool = Pool(run.trainer, gather or run.config.sampling.meta_batch * processes)
    plan = Plan.from_now(minutes, decay)
    context = multiprocessing.get_context("spawn")
    lock = context.Lock()
    given = Work(_other_draws(run).model_dump_json(), run.train, pool, lock, plan, processes)
    workers = [context.Process(target=work, args=(rank, given)) for rank in range(processes)]
    for worker in workers:
        worker.start()
    try:
        yield from _follow(run, pool, workers, lock, plan)
    finally:
        pool.facts[Fact.STOP] = 1
        for worker in workers:
            worker.join(_FAREWELL)
            worker.kill()
    if decay:
        pool.give_average(run.trainer)


def _check(run: Run) -> None:
    if run.progress.step == 0:
        raise ArgumentError(
            f"{str(run.folder)!r} holds no state that this run has resumed from. Train its first "
            f"steps with ghnqat-train run, and write run.resume()."
        )
    if run.config.decay is not None or run.config.schedule.type != "stable":
        raise ArgumentError(
            f"The rate of the run in {str(run.folder)!r} falls already. Go on with the stable run "
            f"that it comes from."
        )


def _other_draws(run: Run) -> RunConfig:
    """The run's config with a seed of its own: a step is of other networks and images than those
    that the run has seen."""
    source = random.Random(f"{run.config.seed}/{run.progress.step}")
    return run.config.model_copy(update={"seed": source.getrandbits(62)})


def _follow(
    run: Run, pool: Pool, workers: Sequence[BaseProcess], lock: Lock, plan: Plan
) -> Iterator[Standing]:
    """Until the time is up; saves the run while it is stable, and logs how it goes."""
    stable = True
    before = logged = pool.facts.clone()
    trained = run.progress.seconds
    while not plan.over():
        time.sleep(min(_LOOKS, plan.total / 20))
        _check_alive(workers, run)
        now = pool.facts.clone()
        due = now[Fact.UPDATES] - logged[Fact.UPDATES] >= run.config.checkpoint_every
        ends = plan.decayed() > 0
        if stable and (ends or due):
            _save(run, pool, lock, trained + plan.seconds())
        if due:
            standing = _standing(pool, now, now - logged, plan)
            run.log(standing._asdict() | {"seconds": trained + standing.seconds})
            logged = now
        stable = stable and not ends
        yield _standing(pool, now, now - before, plan)
        before = now
    if stable:
        _save(run, pool, lock, trained + plan.seconds())


def _standing(pool: Pool, facts: Tensor, recent: Tensor, plan: Plan) -> Standing:
    images = pool.start.images + int(facts[Fact.IMAGES])
    loss = float(recent[Fact.LOSS] / recent[Fact.LOSSES])
    return Standing(plan.seconds(), pool.start.step + int(facts[Fact.UPDATES]), images, loss)


def _save(run: Run, pool: Pool, lock: Lock, seconds: float) -> None:
    with lock:
        pool.give(run.trainer)
    run.progress.seconds = seconds
    run.save()


def _check_alive(workers: Sequence[BaseProcess], run: Run) -> None:
    """A process that was killed may hold the lock, and what it changed is half done."""
    ended = [worker.exitcode for worker in workers if worker.exitcode is not None]
    if ended:
        raise CheckpointError(
            f"A process that trains the run in {str(run.folder)!r} has ended, with exit code "
            f"{ended[0]}. The checkpoint of step {run.progress.step} is kept: go on from it, with "
            f"fewer processes where memory was short."
        )
