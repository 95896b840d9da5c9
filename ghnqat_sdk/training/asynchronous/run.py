"""Minutes of a run that several processes train together: start, follow, save, stop."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.training.asynchronous.plan import Plan
from ghnqat_sdk.training.asynchronous.pool import Fact, Pool
from ghnqat_sdk.training.asynchronous.team import Team
from ghnqat_sdk.training.asynchronous.worker import held
from ghnqat_sdk.training.config import RunConfig
from ghnqat_sdk.training.run import Run

_LOOKS = 0.5  # seconds between looks at the processes


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
    stable run can go on, with the config that it had.

    Args:
        run: Resumed; a stable one.
        minutes: From the moment on at which all processes are ready.
        processes: How many.
        decay: The last share of the minutes, in which the rate falls to zero and hints fade.
        gather: Networks of a step; by default as many as one of `Run.run` has with so many
            processes.

    Yields:
        How far it is, twice a second.

    Raises:
        ArgumentError: a number that cannot be meant, a run without a state, one that decays, an
            optimizer other than AdamW, or minutes in which no step was made.
        CheckpointError: a process has ended before its time, the weights diverge, or a file cannot
            be written; the last checkpoint stays.
    """
    _check_numbers(minutes, processes, decay)
    _check(run)
    pool = Pool(run.trainer, gather or run.config.sampling.meta_batch * processes)
    plan = Plan.of(minutes, decay)
    team = Team(run, _other_draws(run), pool, plan, processes)
    with run.alone(), team.at_work(plan) as begun:
        if not decay:
            run.write_config()
        yield from _follow(run, team, begun)
    if pool.step == pool.start.step:
        raise ArgumentError(
            f"No step was made in {minutes:g} minutes, since a first one takes longer. Write more "
            f"minutes; the run is as it was."
        )
    if decay:
        pool.give_average(run.trainer)


def _check_numbers(minutes: float, processes: int, decay: float) -> None:
    if not 0 < minutes < math.inf:
        raise ArgumentError(f"minutes={minutes!r}; expected a number above 0. Write minutes=60.")
    if not isinstance(processes, int) or processes < 1:
        raise ArgumentError(f"processes={processes!r}; expected 1 or more. Write processes=2.")
    if not 0 <= decay <= 1:
        raise ArgumentError(f"decay={decay!r}; expected a share of the minutes. Write decay=0.9.")


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


def _follow(run: Run, team: Team, plan: Plan) -> Iterator[Standing]:
    """Until the time is up; saves the run while it is stable, and logs how it goes."""
    stable = plan.stable > 0
    before = logged = team.pool.facts.clone()
    trained = run.progress.seconds
    while not plan.over():
        time.sleep(min(_LOOKS, plan.total / 20))
        team.check()
        now = team.pool.facts.clone()
        seconds = trained + plan.seconds()
        due = now[Fact.UPDATES] - logged[Fact.UPDATES] >= run.config.checkpoint_every
        ends = plan.decayed() > 0
        if stable and (ends or due):
            _save(run, team, seconds)
        if due:
            _log(run, team.pool, now - logged, plan, seconds)
            logged = now
        stable = stable and not ends
        yield _standing(team.pool, now, now - before, plan)
        before = now
    if stable:
        _save(run, team, trained + plan.seconds())


def _standing(pool: Pool, facts: Tensor, recent: Tensor, plan: Plan) -> Standing:
    images = pool.start.images + int(facts[Fact.IMAGES])
    step = pool.start.step + int(facts[Fact.UPDATES])
    return Standing(plan.seconds(), step, images, _loss(recent))


def _loss(recent: Tensor) -> float:
    return float(recent[Fact.LOSS] / recent[Fact.LOSSES])


def _log(run: Run, pool: Pool, recent: Tensor, plan: Plan, seconds: float) -> None:
    """A line of the log; one of a decay, which the stable run does not have, says how far it is."""
    progress = replace(pool.progress(), best=run.progress.best, seconds=seconds)
    decayed = {"decayed": plan.decayed()} if plan.decayed() else {}
    run.log({**vars(progress), "loss": _loss(recent), **decayed})


def _save(run: Run, team: Team, seconds: float) -> None:
    if team.pool.step == run.progress.step:
        return  # nothing new
    with held(team.lock, team.check):
        team.pool.give(run.trainer)
    run.progress.seconds = seconds
    run.save()
