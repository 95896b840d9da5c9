"""Random number generators that go on as if nothing had run."""

from __future__ import annotations

import pickle
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def random_numbers_stay() -> Iterator[None]:
    """Whatever is drawn inside, the generators of torch, Python and NumPy are afterwards as before.

    NumPy's where it is in use, CUDA's of the devices in use.
    """
    python, numpy = random.getstate(), sys.modules.get("numpy")
    drawn = numpy.random.get_state() if numpy is not None else None
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    devices = list(range(torch.cuda.device_count())) if cuda else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        if numpy is not None:
            numpy.random.set_state(drawn)


@contextmanager
def other_random_numbers(device: torch.device) -> Iterator[None]:
    """Whatever is drawn inside, on the CPU or on `device`, is other than outside; afterwards the
    generators are as before."""
    with random_numbers_stay():
        random.random()
        for each in {torch.device("cpu"), device}:
            torch.rand(1, device=each)
        if (numpy := sys.modules.get("numpy")) is not None:
            numpy.random.random()
        yield


def seed_generators() -> tuple[Any, ...]:
    """Start the generators of torch on the CPU, Python and NumPy anew; gives their states."""
    random.seed(0)
    torch.default_generator.manual_seed(0)  # torch.manual_seed would set those of devices as well
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(0)
    return generator_states()


def generator_states() -> tuple[Any, ...]:
    """Of the same generators, to be compared."""
    numpy = sys.modules.get("numpy")
    drawn = None if numpy is None else pickle.dumps(numpy.random.get_state(legacy=False))
    return random.getstate(), torch.get_rng_state().numpy().tobytes(), drawn
