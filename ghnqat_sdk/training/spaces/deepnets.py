"""DeepNets-1M's generator re-created, convolutions only: part of ConvNets-250K (re-created).

GHN-2 was trained and tested on networks of searched cells (Knyazev et al., "Parameter Prediction
for Unseen Deep Architectures", 2021), GHN-QAT (Yun & Wong, 2023) on those without attention and
channel gating. They are drawn here by the values of the published generator; the published graphs
are not copied. (split, index) alone makes a network, the same on every machine, and nothing is
stored.

All of a network is used: steps that reach no output are left out, every cell reads the one before
it, and a step has at least one operation. Its head has no dropout.

Example:
    >>> network = DeepNets("val")[0]
    >>> network.key, network.channels
    (('deepnets', 'val', 0), 32)
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.training.spaces.deepnet import GRID, DeepNet
from ghnqat_sdk.training.spaces.described import check_index, check_split, is_integer
from ghnqat_sdk.training.spaces.drawing import draw
from ghnqat_sdk.training.spaces.genotypes import draw_genotypes
from ghnqat_sdk.training.spaces.protocol import Norm

TEST_CHANNELS = 32
"""Channels of the networks that are tested on."""

MAX_PARAMETERS = 10_000_000
"""Limit on the networks of all splits, before those of `wide` are widened."""

HIDDEN = 256
"""Features of the hidden linear layer, where there is one."""


@dataclass(frozen=True)
class Split:
    """How the networks of one split are drawn.

    Attributes:
        size: Number of networks.
        cells: Least and largest number of cells.
        shallow: One of these is drawn for each network: with more cells, at most two steps a cell.
        channels: Channels, with their integer odds.
        widening: Factor on the channels, after the limit of parameters has been applied.
        normalized: Whether networks have norm at all.
    """

    size: int
    cells: tuple[int, int] = (4, 18)
    shallow: tuple[int, ...] = (7, 8, 9, 10)
    channels: Mapping[int, int] = field(default_factory=lambda: {TEST_CHANNELS: 1})
    widening: int = 1
    normalized: bool = True


_TRAINING_CHANNELS = {16: 45, 24: 30, 32: 8, 48: 17}

SPLITS: dict[str, Split] = {
    "train": Split(250_000, channels=_TRAINING_CHANNELS),
    "val": Split(500),
    "id": Split(500),
    "deep": Split(100, cells=(10, 36), shallow=(18,)),
    "wide": Split(100, widening=4),
    "bn-free": Split(100, normalized=False),
    "deep-train": Split(250_000, cells=(10, 36), shallow=(18,), channels=_TRAINING_CHANNELS),
    "deep-val": Split(100, cells=(10, 36), shallow=(18,)),
}


class DeepNets:
    """One split of ConvNets-250K (re-created): a `Space` of `DeepNet`.

    Args:
        split: train, val, id, deep, wide or bn-free; deep-train and deep-val are as long as deep.
        channels: Channels C of all networks instead of the split's own, an even number; the
            graphs stay the same, and the limit of parameters is that of the split's own channels.
        bare: Whether all networks are without norm, whatever the split draws: of the training
            split, few are and those are short, while `bn-free` has all lengths.

    Raises:
        ArgumentError: there is no such split, or no network of that many channels.

    Example:
        >>> networks = DeepNets("deep")
        >>> len(networks), networks[3].channels
        (100, 32)
    """

    def __init__(self, split: str, channels: int | None = None, bare: bool = False) -> None:
        check_split(split, tuple(SPLITS), "DeepNets")
        if not (channels is None or (is_integer(channels) and channels > 1 and channels % 2 == 0)):
            raise ArgumentError(
                f"channels came as {channels!r}; expected a positive even integer, or None for "
                f"the split's own. Write, for example, DeepNets({split!r}, channels=32)."
            )
        self.split = split
        self.channels = channels
        self.bare = bare

    def __len__(self) -> int:
        return SPLITS[self.split].size

    def __getitem__(self, index: int) -> DeepNet:
        """The network at `index`, the same on every machine.

        Raises:
            SpaceIndexError: there is no such index.
        """
        check_index(index, self.split, len(self), "DeepNets")
        network = network_at(self.split, index)
        channels = self.channels or network.channels * SPLITS[self.split].widening
        norm: Norm = "none" if self.bare else network.norm
        if (channels, norm) == (network.channels, network.norm):
            return network
        return replace(network, channels=channels, norm=norm)

    def __iter__(self) -> Iterator[DeepNet]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        return f"DeepNets({self.split!r}, channels={self.channels}, bare={self.bare})"


def network_at(split: str, index: int) -> DeepNet:
    """The network before widening, with at most `MAX_PARAMETERS`."""
    digest = hashlib.sha256(f"deepnets/{split}/{index}".encode()).digest()
    rng = random.Random(int.from_bytes(digest, "big"))
    while True:
        network = draw_network(rng, split, index)
        if network.parameter_count <= MAX_PARAMETERS:
            return network


def draw_network(rng: random.Random, name: str, index: int) -> DeepNet:
    """One network by the values of the published generator, of any size."""
    split = SPLITS[name]
    cells = rng.randrange(split.cells[0], split.cells[1] + 1)
    steps = rng.randrange(1, 5 if cells <= rng.choice(split.shallow) else 3)
    normal, reduction = draw_genotypes(rng, steps)
    multiplier = rng.choice((1, 2))
    bare = split.normalized and cells <= 5 and steps <= 2 and rng.choice((False, True))
    return DeepNet(
        split=name,
        index=index,
        channels=draw_channels(rng, split.channels, multiplier, len(normal.ends)),
        cells=cells,
        multiplier=multiplier,
        normal=normal,
        reduction=reduction,
        stem=draw(rng, {"plain": 1, "pooled": 1, "imagenet": 2}),
        kernel=rng.choice((3, 5, 7)),
        preprocessed=steps > 1 or multiplier > 1 or draw(rng, {True: 9, False: 1}),
        norm="batch" if split.normalized and not bare else "none",
        pooled=draw(rng, {True: 9, False: 1}),
        hidden=rng.choice((0, HIDDEN)),
    )


def draw_channels(rng: random.Random, odds: Mapping[int, int], multiplier: int, ends: int) -> int:
    """Channels with which all cells, and what they put out, have counts of the grid."""
    factors = [multiplier**level * count for level in range(3) for count in (1, ends)]
    return draw(rng, {c: odds[c] for c in odds if all(c * factor in GRID for factor in factors)})
