"""What the benchmarks share: arguments, tables, medians, lines of results that outlive a kill."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import replace
from itertools import islice
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, TypeVar

from torchvision.transforms.v2.functional import resize

from ghnqat_sdk.data import ImageSet
from ghnqat_sdk.files import write_atomically
from ghnqat_sdk.hypernetwork import pretrained
from ghnqat_sdk.training.process import keep_freed_memory

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SHIPPED = pretrained._EMBEDDED
"""Folder of the weights that ship."""

Task = TypeVar("Task")


# ---- arguments


def parser(description: str | None) -> argparse.ArgumentParser:
    """Shows the docstring of a benchmark as it is written."""
    formatter = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(description=description, formatter_class=formatter)


def add_data(options: argparse.ArgumentParser) -> None:
    options.add_argument("--data", required=True, help="image folder, or torchvision's CIFAR-10")


def add_weights(options: argparse.ArgumentParser) -> None:
    options.add_argument(
        "--weights", default=str(SHIPPED), help="folder of weights (default: those that ship)"
    )


def add_json(options: argparse.ArgumentParser) -> None:
    options.add_argument("--json", type=Path, help="write the figures there as well")


def add_processes(options: argparse.ArgumentParser) -> None:
    options.add_argument("--processes", type=int, default=2, help="of one thread each")


def add_measuring(options: argparse.ArgumentParser) -> None:
    """For benchmarks that take hours."""
    add_processes(options)
    options.add_argument(
        "--minutes", type=float, default=float("inf"), help="take no new work after so many"
    )


# ---- tables and figures


def row(cells: Iterable[object]) -> str:
    """One row of a table in Markdown."""
    return "".join(f"| {cell} " if cell != "" else "| " for cell in cells) + "|"


def head(columns: Sequence[str], texts: int = 1) -> str:
    """The head of a table: the first columns hold texts, the others numbers."""
    lines = ["---"] * texts + ["---:"] * (len(columns) - texts)
    return f"{row(columns)}\n{row(lines)}"


def at_size(images: ImageSet, side: int) -> ImageSet:
    """Resized after decoding: decoding all of a folder at another size takes minutes."""
    return replace(images, images=resize(images.images, [side, side]))


def median_ms(call: Callable[[], Any], repeats: int) -> float:
    """Milliseconds by the clock."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times)


def turns_ms(
    calls: Sequence[Callable[[], Any]],
    turns: int,
    least_seconds: float,
    clock: Callable[[], float] = time.thread_time,
) -> list[float]:
    """Milliseconds of each call: medians of turns, of at least so many seconds, in which they take
    place one after the other. By default of the processor: what else runs does not count."""
    taken: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()  # the first run allocates
    for _ in range(turns):
        for call, of_call in zip(calls, taken, strict=True):
            of_call.append(_turn(call, turns, least_seconds, clock))
    return [round(statistics.median(each), 3) for each in taken]


def _turn(
    call: Callable[[], Any], least: int, least_seconds: float, clock: Callable[[], float]
) -> float:
    """Median of the runs of one turn, of which there are at least so many."""
    runs: list[float] = []
    while sum(runs) < 1000 * least_seconds or len(runs) < least:
        started = clock()
        call()
        runs.append(1000 * (clock() - started))
    return statistics.median(runs)


def write_json(path: Path, figures: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(figures, indent=1) + "\n").encode())


# ---- lines of results: one for each task, at once, and nothing measured twice


def measure_all(
    tasks: Iterable[Task],
    measure: Callable[[Task], dict[str, Any]],
    path: Path,
    processes: int,
    minutes: float,
) -> Iterator[dict[str, Any]]:
    """Measure tasks in processes of their own; each line goes to `path` at once, and is yielded."""
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
    waiting = iter(tasks)
    running: set[Future[dict[str, Any]]] = set()
    while True:
        if time.monotonic() < deadline:
            running |= {start(task) for task in islice(waiting, at_once - len(running))}
        if not running:
            return
        done, running = wait(running, return_when=FIRST_COMPLETED)
        yield from (future.result() for future in done)
