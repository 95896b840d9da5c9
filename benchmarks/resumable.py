"""Measurements that take hours: one line of results for each task, at once, and nothing measured twice."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from itertools import islice
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, TypeVar

from ghnqat_sdk.training.process import keep_freed_memory

Task = TypeVar("Task")


def measure_all(
    tasks: Iterable[Task],
    measure: Callable[[Task], dict[str, Any]],
    path: Path,
    processes: int,
    minutes: float,
) -> Iterator[dict[str, Any]]:
    """Measure tasks in processes of their own, append each line to `path` when it comes, and yield it."""
    deadline = time.monotonic() + 60 * minutes
    with ProcessPoolExecutor(processes, get_context("spawn"), prepare) as pool:
        for line in work(tasks, lambda task: pool.submit(measure, task), processes, deadline):
            append(path, line)
            yield line


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """A line that was cut off when its process was killed is passed over."""
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            yield json.loads(text)
        except json.JSONDecodeError:
            continue


def append(path: Path, line: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("a+b") as file:
        if file.tell() and not path.read_bytes().endswith(b"\n"):
            file.write(b"\n")
        file.write(json.dumps(line).encode() + b"\n")


def prepare() -> None:
    """What a process of a pool does first."""
    keep_freed_memory()
    end_with_parent()


def end_with_parent() -> None:
    """Leave no process behind when the one that started it is killed."""

    def watch() -> None:
        parent = parent_process()
        if parent:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def work(
    tasks: Iterable[Task],
    start: Callable[[Task], Future[dict[str, Any]]],
    at_once: int,
    deadline: float,
) -> Iterator[dict[str, Any]]:
    """Lines as they come, with no new task after the deadline (of the monotonic clock)."""
    waiting, running = iter(tasks), set[Future[dict[str, Any]]]()
    while True:
        if time.monotonic() < deadline:
            running |= {start(task) for task in islice(waiting, at_once - len(running))}
        if not running:
            return
        done, running = wait(running, return_when=FIRST_COMPLETED)
        yield from (future.result() for future in done)
