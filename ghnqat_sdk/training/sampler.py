"""What step t sees: networks, their bit-widths, and the images of each process.

They follow from (seed, t, number of processes). The networks of a run are one endless sequence,
each made from (seed, its number) alone, and dealt to processes like cards, by cost. A step draws
from a window of the sequence that moves on slowly, so that every network is prepared once, by one
process, and used several times while it is inside: its convolutions are compiled once.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ghnqat_sdk.bits import FLOAT_BITS, Pair
from ghnqat_sdk.configs import Limit, Part
from ghnqat_sdk.data import ImageSet, Moves, draw_moves, move_images
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.training.shares import SpaceShare
from ghnqat_sdk.training.spaces.protocol import Architecture

_MACS_PER_LAYER = 400_000  # a layer's fixed cost, as measured on a CPU
_ATTEMPTS = 2_000


class SamplingConfig(Part):
    """How many networks and images a step sees."""

    meta_batch: int = Field(default=8, ge=1)
    """Networks in each step of each process."""
    image_batch: int = Field(default=64, ge=2)
    """Images for each network."""
    least_images: int = Field(default=16, ge=2)
    """For the costliest ones."""
    batch_macs: Limit = 1e9
    """Multiply-accumulates of one network's batch: costlier networks see fewer images."""
    window: int = Field(default=128, ge=1)
    """Networks of each process that a step draws from."""
    uses: Limit = 16.0
    """How often a network is drawn, on average, before it leaves the window."""
    simple_until: int = Field(default=0, ge=0)
    """Steps, from the first on, in which only simple networks are drawn."""

    @model_validator(mode="after")
    def _least_of_a_batch(self) -> SamplingConfig:
        default = SamplingConfig.model_fields["least_images"].default  # of smaller batches: all
        if self.least_images > self.image_batch and self.least_images != default:
            raise ValueError(
                f"least_images, {self.least_images}, is above image_batch, {self.image_batch}; "
                f"lower the first, or raise the second"
            )
        return self

    def images(self, architecture: Architecture) -> int:
        """For one network: `image_batch`, halved as often as its cost asks for.

        Compiled convolutions recur with it.
        """
        images = self.image_batch
        while images * architecture.macs > self.batch_macs and images // 2 >= self.least_images:
            images //= 2
        return images


class Draw(NamedTuple):
    """One network of a step."""

    architecture: Architecture
    bits: Pair
    images: int


class Sampler:
    """Networks, bit-widths and images of every step.

    Args:
        seed: Of the run.
        shares: Which networks.
        sampling: How many.
        bits: (weight, activation) pairs with their shares.
        float_until: Steps in which every network is in float.

    Raises:
        ArgumentError: no network of a space meets its limits.
    """

    def __init__(
        self,
        seed: int,
        shares: Sequence[SpaceShare],
        sampling: SamplingConfig,
        bits: Sequence[tuple[Pair, float]],
        float_until: int,
    ) -> None:
        self.seed = seed
        self.sampling = sampling
        self.float_until = float_until
        self.shares = [share for share in shares if share.share > 0]
        self.spaces = [share.sized(share.build("train")) for share in self.shares]
        self.bits = list(bits)
        self.network = lru_cache(maxsize=2 * sampling.window)(self._network)
        self._window = lru_cache(maxsize=2)(self._sorted)
        for place in range(len(self.shares)):
            self._of_space(random.Random(f"{seed}/limits/{place}"), place, False)

    def step(self, step: int, rank: int = 0, processes: int = 1) -> list[Draw]:
        """This process's networks of a step.

        All processes draw the same bit-widths and the same ranks of cost, each among its own
        networks, so that none waits long for another.
        """
        rng = random.Random(f"{self.seed}/{step}/{processes}")
        first = int(step * self.sampling.meta_batch / self.sampling.uses)
        window = self._window(first, rank, processes, step < self.sampling.simple_until)
        return [self._draw(rng, step, window) for _ in range(self.sampling.meta_batch)]

    def _draw(self, rng: random.Random, step: int, window: Sequence[Architecture]) -> Draw:
        architecture = window[int(rng.random() * len(window))]
        bits = (FLOAT_BITS, FLOAT_BITS)
        if step >= self.float_until:
            settings, shares = zip(*self.bits, strict=True)
            bits = rng.choices(settings, shares)[0]
        return Draw(architecture, bits, self.sampling.images(architecture))

    def _sorted(self, first: int, rank: int, processes: int, simple: bool) -> list[Architecture]:
        """This process's networks from its `first` on, the cheapest first."""
        numbers = range(first, first + self.sampling.window)
        window = [self.network(number * processes + rank, simple) for number in numbers]
        return sorted(window, key=self._cost)

    def _cost(self, architecture: Architecture) -> float:
        images = self.sampling.images(architecture) / self.sampling.image_batch
        return architecture.macs * images + _MACS_PER_LAYER * architecture.depth

    def _network(self, number: int, simple: bool) -> Architecture:
        """The network of a number in the run's sequence."""
        rng = random.Random(f"{self.seed}/network/{number}")
        place = rng.choices(range(len(self.shares)), [share.share for share in self.shares])[0]
        return self._of_space(rng, place, simple)

    def _of_space(self, rng: random.Random, place: int, simple: bool) -> Architecture:
        """A random network of a space that meets its limits."""
        share = self.shares[place]
        space = self.spaces[place]
        found = None
        for _ in range(_ATTEMPTS):
            architecture = space[rng.randrange(len(space))]
            if share.takes(architecture):
                found = architecture
                if architecture.simple or not simple:
                    return architecture
        if found is None:
            raise ArgumentError(
                f"No network of the space {share.source!r} has {share.min_macs:.3g} to "
                f"{share.max_macs:.3g} multiply-accumulates, at most {share.max_parameters:.3g} "
                f"parameters, and norm {share.norm or 'of any kind'}. Raise max_macs, for example "
                f"to 40e6."
            )
        return found


class Batch(NamedTuple):
    """Images of one network.

    Attributes:
        images: (N, 3, H, W) normalized, channels_last.
        labels: (N,)
        indices: (N,) of the images in their set.
        moves: What was done to each.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    moves: Moves


def draw_batch(images: ImageSet, count: int, padding: int, generator: torch.Generator) -> Batch:
    """`count` random images, flipped, and shifted by up to `padding` pixels.

    The classes come in their proportions.
    """
    indices = images.stratified_indices(count, generator)
    moves = draw_moves(count, padding, generator)
    moved = move_images(images.normalize(images.images[indices]), moves)
    return Batch(moved, images.labels[indices], indices, moves)


@contextmanager
def own_random_numbers(seed: str) -> Iterator[None]:
    """What draws from torch's generator, as NoiseQuant and dropout do, follows from `seed` alone.

    The generator comes back as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(random.Random(seed).getrandbits(62))
        yield
