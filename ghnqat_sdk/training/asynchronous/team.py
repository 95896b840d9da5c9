"""The processes that train a run together: begun, watched, and stopped."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from torch import multiprocessing

from ghnqat_sdk.errors import CheckpointError
from ghnqat_sdk.training.asynchronous.plan import Plan
from ghnqat_sdk.training.asynchronous.pool import Fact, Pool
from ghnqat_sdk.training.asynchronous.worker import Work, work
from ghnqat_sdk.training.config import RunConfig
from ghnqat_sdk.training.run import Run

_LOOKS = 0.1  # seconds between looks at processes that get ready
_FAREWELL = 60  # seconds in which all of them end by themselves


class Team:
    """Processes that share a pool.

    Args:
        run: What they train.
        config: Of what they draw.
        pool: The weights.
        plan: Not begun.
        size: How many.
    """

    def __init__(self, run: Run, config: RunConfig, pool: Pool, plan: Plan, size: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.run = run
        self.pool = pool
        self.lock = context.Lock()
        self.complaints = context.SimpleQueue()
        given = Work(
            config.model_dump_json(), run.train, pool, self.lock, plan, size, self.complaints
        )
        self.workers = [context.Process(target=work, args=(rank, given)) for rank in range(size)]

    @contextmanager
    def at_work(self, plan: Plan) -> Iterator[Plan]:
        """Around the time in which they train; yields the plan, which begins when all are ready.

        Raises:
            GhnqatError: as `check`.
        """
        for worker in self.workers:
            worker.start()
        patience = 0.0  # what a process does after an error means nothing
        try:
            while self.pool.facts[Fact.READY] < len(self.workers):
                time.sleep(_LOOKS)
                self.check()
            now = time.time()
            self.pool.facts[Fact.BEGAN] = now
            yield plan.begun(now)
            patience = _FAREWELL
        except (GeneratorExit, KeyboardInterrupt):
            patience = _FAREWELL
            raise
        finally:
            self._stop(patience)

    def _stop(self, patience: float) -> None:
        """Those that do not end within so many seconds are killed."""
        self.pool.facts[Fact.STOP] = 1
        end = time.monotonic() + patience
        for worker in self.workers:
            worker.join(max(0.0, end - time.monotonic()))
            worker.kill()
            worker.join()

    def check(self) -> None:
        """Look whether all are alive.

        Raises:
            GhnqatError: the error that has ended one.
            CheckpointError: one was killed; it may hold the lock, and what it changed is half done.
        """
        ended = [worker.exitcode for worker in self.workers if worker.exitcode is not None]
        if not ended:
            return
        if not self.complaints.empty():
            kind, reason = self.complaints.get()
            raise kind(reason)
        raise CheckpointError(
            f"A process that trains the run in {str(self.run.folder)!r} has ended, with exit code "
            f"{ended[0]}. The checkpoint of step {self.run.progress.step} is kept: go on from it, "
            f"with fewer processes where memory was short."
        )
