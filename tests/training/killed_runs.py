"""Program: runs that are killed again and again, and one that is not.

python killed_runs.py DATA CONFIG FOLDER KILLS STEPS leaves FOLDER/whole, and FOLDER/0, 1, … that
took KILLS kills together. Children are forked from a process that has imported everything, so that
they spend their short lives in training.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from ghnqat_sdk.data import ImageSet, load_images
from ghnqat_sdk.hypernetwork.pretrained import load_pretrained
from ghnqat_sdk.training.checkpoint import load_training_state
from ghnqat_sdk.training.config import RunConfig, load_config
from ghnqat_sdk.training.run import Run


def main(data: str, config: str, folder: str, kills: str, steps: str) -> None:
    torch.set_num_threads(1)
    images = load_images(data, "train"), load_images(data, "val")
    job = load_config(config), images, int(steps)
    continue_run(*job, Path(folder) / "whole", None)
    draw, left, number, before = random.Random(0), int(kills), 0, 0
    while left or before < int(steps):
        if before == int(steps):  # a fast machine: more kills in another run
            number, before = number + 1, 0
        one = Path(folder) / str(number)
        step = continue_run(*job, one, draw.uniform(0.0, 0.15) if left else None)
        assert step >= before, (step, before)
        before, left = step, max(0, left - 1)


def continue_run(
    config: RunConfig,
    images: tuple[ImageSet, ImageSet],
    steps: int,
    folder: Path,
    life: float | None,
) -> int:
    """The steps that are safe after a child that lived so many seconds, or to its end."""
    pid = os.fork()
    if pid == 0:
        run = Run(config, folder, *images)
        run.resume()
        for _ in run.run(steps):
            pass
        os._exit(0)
    if life is not None:
        time.sleep(life)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert life is not None or status == 0
    for name in ("best", "last"):
        if (folder / name / "config.json").exists():
            load_pretrained(folder / name)
    state = load_training_state(folder)  # raises if it is damaged
    return state[1]["step"] if state else 0


if __name__ == "__main__":
    main(*sys.argv[1:])
