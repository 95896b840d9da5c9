"""Networks measured by processes at once, one of which may end without a word."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch

from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.search.measuring import Line, Study

Entry = tuple[str, Any, dict[str, Line]]
"""A name, a network or an architecture, and what is known of that name."""

_pool = partial(
    ProcessPoolExecutor,
    mp_context=get_context("spawn"),
    initializer=torch.set_num_threads,
    initargs=(1,),
)


def lines_of(entries: Sequence[Entry], study: Study, processes: int) -> Iterator[Line]:
    """A line for each network, as they come.

    Raises:
        ArgumentError: processes cannot be started.
    """
    if processes == 1:
        yield from (study.line(*entry) for entry in entries)
        return
    left = []
    with _pool(processes) as pool:
        futures = {pool.submit(study.line, *entry): entry for entry in entries}
        for future in as_completed(futures):
            try:
                yield future.result()
            except BrokenProcessPool:
                left.append(futures[future])
            except Exception:  # what cannot be sent to a process is measured in this one
                yield study.line(*futures[future])
    if left:
        _check_that_processes_start()
    for entry in left:
        yield _alone(entry, study)


def _alone(entry: Entry, study: Study) -> Line:
    """Of a network in a process of its own, which it may end."""
    with _pool(1) as pool:
        try:
            return pool.submit(study.line, *entry).result()
        except BrokenProcessPool:
            why = "its process ended, as one does for which there is not enough memory"
            return {"name": entry[0], "error": why}


def _check_that_processes_start() -> None:
    with _pool(1) as pool:
        try:
            pool.submit(int).result()
        except BrokenProcessPool as error:
            raise ArgumentError(
                "Processes end before they do anything. In a script, what starts them stands below "
                "if __name__ == '__main__':, since each reads the script anew; or write "
                "processes=1."
            ) from error
