"""ConvNets-250K (re-created): an indexed, reproducible space of convolutional image classifiers.

The data set that GHN-QAT (Yun & Wong, 2023) was trained on is not public. This is a re-creation of it: the
operations follow DeepNets-1M (Knyazev et al., 2021) without attention and channel gating, next to the common
hand-made families (VGG, ResNet, ResNeXt, MobileNet, grouped). Nothing is stored: a net is made from (split, index),
and the same pair gives the same net on every machine.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, TypeVar

from torch import nn

from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.training.blocks_old import (
    BLOCKS,
    Act,
    Block,
    ConvNet,
    Edge,
    Flatten,
    Flow,
    GlobalPool,
    Linear,
    Meter,
    Norm,
    Pool,
    Seq,
    Spec,
    Step,
    Style,
    cell_stack,
    unit,
)

SPLITS: dict[str, int] = {"train": 250_000, "val": 500, "id": 500, "deep": 100, "wide": 100, "bn-free": 100}
MAX_TRAIN_DEPTH = 40
MAX_TRAIN_WIDTH = 256
MAX_PARAMETERS = 10_000_000
IMAGE = Flow(3, 32, 32)

T = TypeVar("T")


class Stem(NamedTuple):
    kernel: int
    stride: int


class Stage(NamedTuple):
    """A run of equal blocks; `down` says how its input is made smaller: none, stride, max or avg (pooling)."""

    blocks: int
    down: str
    block: Block


class Head(NamedTuple):
    """`convolution` and `hidden` are the sizes of optional layers before the classifier, 0 for none."""

    pooled: bool
    convolution: int
    hidden: int


@dataclass(frozen=True)
class Architecture:
    """One net of the space: everything that describes it, hashable and printable.

    Stage i has about base * growth ** i channels. Costs are for one 3x32x32 image and ten classes, and are worked
    out from the description; nothing is built for them.
    """

    split: str
    index: int
    family: str
    base: int
    growth: float
    stem: Stem
    stages: tuple[Stage, ...]
    norm: str
    activation: str
    bias: bool
    head: Head

    def build(self, num_classes: int = 10) -> nn.Module:
        """The net as an ordinary module; under ``torch.device("meta")`` it takes neither memory nor time."""
        if not isinstance(num_classes, int) or num_classes < 1:
            raise ArgumentError(
                f"num_classes came as {num_classes!r}, expected an integer of at least 1; write for example "
                "architecture.build(num_classes=10)"
            )
        return ConvNet(*(part.build() for part in self._parts(num_classes)))

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the convolutions and linear layers."""
        return self._cost.macs

    @property
    def parameter_count(self) -> int:
        return self._cost.parameters

    @property
    def depth(self) -> int:
        """Convolutions and linear layers on the longest path."""
        return self._cost.depth

    @property
    def width(self) -> int:
        """Largest channel count, in or out, of any convolution."""
        return self._cost.width

    @property
    def has_norm(self) -> bool:
        return self.norm != "none"

    @property
    def simple(self) -> bool:
        """Blocks of one kind with batch norm, ReLU and a pooled head: what an untrained hypernetwork learns first."""
        return (
            self.family not in ("cells", "grouped")
            and self.norm == "batch"
            and self.activation in ("relu", "relu6")
            and self.head.pooled
        )

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each stage (of each state of a cell, for cells)."""
        quantum = max(4, *(stage.block.groups for stage in self.stages))
        sizes, size = [], float(self.base)
        for _ in self.stages:
            sizes.append(max(1, int(size / quantum + 0.5)) * quantum)
            size *= self.growth
        return tuple(sizes)

    @cached_property
    def _cost(self) -> Meter:
        meter, flow = Meter(), IMAGE
        for part in self._parts(10):
            flow = part.trace(flow, meter)
        meter.depth = flow.depth
        return meter

    def _parts(self, num_classes: int) -> tuple[Seq, Spec, Seq]:
        style = Style(self.norm, self.activation, self.bias)
        acts_first = self.family == "cells" or self.stages[0].block.pre_activation
        order = {"cells": "cn"}.get(self.family, "c") if acts_first else "cna"
        stem = Seq(unit(3, self.channels[0], style, self.stem.kernel, self.stem.stride, order=order))
        body, channels = (self._cells if self.family == "cells" else self._blocks)(style)
        tail: tuple[Spec, ...] = (Act(self.activation),) if acts_first else ()
        if acts_first and self.family != "cells" and self.has_norm:
            tail = (Norm(self.norm, channels), *tail)
        return stem, body, Seq(tail + self._head(channels, style, num_classes))

    def _blocks(self, style: Style) -> tuple[Spec, int]:
        make, cin, stages = BLOCKS[self.family], self.channels[0], []
        for stage, cout in zip(self.stages, self.channels, strict=True):
            layers: list[Spec] = [Pool(stage.down, 2, 2)] if stage.down in ("max", "avg") else []
            for position in range(stage.blocks):
                stride = 2 if stage.down == "stride" and position == 0 else 1
                layers.append(make(cin, cout, stride, stage.block, style))
                cin = cout
            stages.append(Seq(tuple(layers)))
        return Seq(tuple(stages)), cin

    def _cells(self, style: Style) -> tuple[Spec, int]:
        layout = [
            (channels, 2 if stage.down == "stride" and position == 0 else 1, stage.block)
            for stage, channels in zip(self.stages, self.channels, strict=True)
            for position in range(stage.blocks)
        ]
        return cell_stack(self.channels[0], layout, style)

    def _head(self, channels: int, style: Style, num_classes: int) -> tuple[Spec, ...]:
        layers: tuple[Spec, ...] = ()
        if self.head.convolution:
            layers, channels = unit(channels, self.head.convolution, style, 1), self.head.convolution
        side = 1 if self.head.pooled else IMAGE.height // self.stem.stride // 2 ** (len(self.stages) - 1)
        layers += (GlobalPool(), Flatten()) if self.head.pooled else (Flatten(),)
        features = channels * side * side
        if self.head.hidden:
            layers += (Linear(features, self.head.hidden), Act(self.activation))
            features = self.head.hidden
        return (*layers, Linear(features, num_classes))


# ---------------------------------------------------------------- drawing a structure

FAMILIES = {
    "cells": 30, "plain": 12, "residual": 15, "bottleneck": 13, "separable": 10, "inverted": 12, "grouped": 8
}  # fmt: skip
ACTIVATION_WEIGHTS = {"relu": 70, "relu6": 8, "hardswish": 6, "silu": 7, "gelu": 5, "leaky-relu": 4}
NORM_WEIGHTS = {"batch": 85, "none": 10, "group": 5}
OPERATION_WEIGHTS = {
    "none": 5, "max-pool-3": 8, "avg-pool-3": 8, "skip": 12, "sep-conv-3": 14, "sep-conv-5": 8, "dil-conv-3": 8,
    "dil-conv-5": 5, "conv-1": 10, "conv-3": 14, "conv-5": 4, "conv-7": 1, "conv-7x1-1x7": 3,
}  # fmt: skip


def draw(rng: random.Random, weights: dict[T, int]) -> T:
    """One key, with odds as its integer weight."""
    left = rng.randrange(sum(weights.values()))
    for key, weight in weights.items():
        left -= weight
        if left < 0:
            return key
    raise AssertionError("weights are positive")


def draw_cell(rng: random.Random) -> Block:
    """1 to 4 steps. The first reads the newest input and no step is without an operation: nothing can be dead."""
    steps = []
    for count in range(2, 2 + draw(rng, {1: 15, 2: 35, 3: 30, 4: 20})):
        operations = [draw(rng, OPERATION_WEIGHTS), draw(rng, OPERATION_WEIGHTS)]
        sources = [1 if count == 2 else rng.randrange(count), rng.randrange(count)]
        if operations[0] == "none":
            operations[0] = "conv-3" if operations[1] == "none" or count == 2 else "none"
        if sources[0] == sources[1] and operations[0] == operations[1]:
            sources[1] = (sources[1] + 1) % count
        left, right = (Edge(source, operation) for source, operation in zip(sources, operations, strict=True))
        steps.append(Step(left, right, draw(rng, {"sum": 70, "concat": 30})))
    return Block(steps=tuple(steps), repeat=draw(rng, {1: 60, 2: 40}))


def draw_residual(rng: random.Random) -> Block:
    return Block(kernel=draw(rng, {3: 90, 5: 10}), pre_activation=rng.random() < 0.3)


def draw_bottleneck(rng: random.Random) -> Block:
    groups = draw(rng, {1: 60, 2: 10, 4: 15, 8: 15})
    return Block(
        kernel=draw(rng, {3: 90, 5: 10}),
        groups=groups,
        expansion=draw(rng, {2: 40, 4: 60} if groups == 1 else {1: 20, 2: 80}),
        pre_activation=rng.random() < 0.2,
    )


DRAW_BLOCK: dict[str, Callable[[random.Random], Block]] = {
    "cells": draw_cell,
    "plain": lambda rng: Block(kernel=draw(rng, {3: 85, 5: 12, 7: 3})),
    "residual": draw_residual,
    "bottleneck": draw_bottleneck,
    "separable": lambda rng: Block(kernel=draw(rng, {3: 65, 5: 25, 7: 10}), skip=rng.random() < 0.3),
    "inverted": lambda rng: Block(
        kernel=draw(rng, {3: 65, 5: 25, 7: 10}), expansion=draw(rng, {2: 25, 3: 25, 4: 25, 5: 5, 6: 20})
    ),
    "grouped": lambda rng: Block(
        kernel=draw(rng, {3: 85, 5: 15}), groups=draw(rng, {2: 40, 4: 40, 8: 20}), skip=rng.random() < 0.4
    ),
}
VARYING = ("cells", "separable", "inverted")  # families whose blocks may differ from stage to stage


def draw_stages(rng: random.Random, family: str) -> tuple[Stage, ...]:
    block = DRAW_BLOCK[family](rng)
    varies = family in VARYING and rng.random() < 0.5
    pools = family != "cells" and rng.random() < (0.7 if family == "plain" else 0.2)
    down = draw(rng, {"max": 70, "avg": 30}) if pools else "stride"
    stages = []
    for position in range(draw(rng, {2: 12, 3: 43, 4: 45})):
        if varies and position:
            block = DRAW_BLOCK[family](rng)
        stages.append(Stage(draw(rng, {1: 35, 2: 40, 3: 20, 4: 5}), down if position else "none", block))
    return tuple(stages)


def draw_head(rng: random.Random, family: str, side: int) -> Head:
    pooled = side > 4 or rng.random() >= 0.27
    convolution = draw(rng, {64: 1, 96: 1, 128: 1, 192: 1}) if family == "inverted" and rng.random() < 0.5 else 0
    hidden = draw(rng, {64: 1, 128: 1, 256: 1}) if rng.random() < (0.08 if pooled else 0.4) else 0
    return Head(pooled, convolution, hidden)


def draw_structure(rng: random.Random, split: str, index: int, family: str) -> Architecture:
    """Everything but the channels, which are fitted to a cost afterwards."""
    stem = Stem(draw(rng, {3: 80, 5: 12, 7: 8}), 2 if split == "wide" else draw(rng, {1: 65, 2: 35}))
    stages = draw_stages(rng, family)
    if split == "deep":
        stages = tuple(stage._replace(block=stage.block._replace(skip=True)) for stage in stages)
    norm = draw(rng, NORM_WEIGHTS)
    norm = "none" if split == "bn-free" else norm
    return Architecture(
        split=split,
        index=index,
        family=family,
        base=24,
        growth=draw(rng, {1.5: 45, 2.0: 55}),
        stem=stem,
        stages=stages,
        norm=norm,
        activation=draw(rng, ACTIVATION_WEIGHTS),
        bias=norm == "none" or rng.random() < 0.04,
        head=draw_head(rng, family, IMAGE.height // stem.stride // 2 ** (len(stages) - 1)),
    )


# ---------------------------------------------------------------- fitting it to the limits of its split


class Limits(NamedTuple):
    """What a split promises: ranges of depth and width, and the quantiles that costs are drawn from."""

    depth: tuple[int, int]
    width: tuple[int, int]
    quantiles: tuple[tuple[float, float], ...]  # (probability, MACs); the first and the last are the limits


TRAIN_COSTS = (
    (0.0, 0.7e6),
    (0.1, 1.7e6),
    (0.25, 3.5e6),
    (0.5, 8e6),
    (0.75, 18e6),
    (0.9, 36e6),
    (0.98, 70e6),
    (1.0, 1e8),
)
TRAIN_LIMITS = Limits((1, MAX_TRAIN_DEPTH), (1, MAX_TRAIN_WIDTH), TRAIN_COSTS)
LIMITS: dict[str, Limits] = {
    **dict.fromkeys(("train", "val", "id", "bn-free"), TRAIN_LIMITS),
    "deep": Limits(
        (2 * MAX_TRAIN_DEPTH, 4 * MAX_TRAIN_DEPTH), (1, MAX_TRAIN_WIDTH), ((0.0, 4e6), (0.5, 3e7), (1.0, 1e8))
    ),
    "wide": Limits((1, MAX_TRAIN_DEPTH), (2 * MAX_TRAIN_WIDTH, 4 * MAX_TRAIN_WIDTH), ((0.0, 4e6), (1.0, 3e8))),
}
SMALLEST_BASE, LARGEST_BASE = 8, 128
NEAR = 1.4  # accepted ratio between the cost drawn and the cost got
ATTEMPTS = 40  # structures tried for one family and cost before both are drawn again


def draw_cost(rng: random.Random, limits: Limits) -> float:
    """By the table of quantiles, straight lines between them: no transcendental function whose last bit may vary."""
    position = rng.random()
    for (p0, low), (p1, high) in zip(limits.quantiles, limits.quantiles[1:], strict=False):
        if position <= p1:
            return low + (high - low) * (position - p0) / (p1 - p0)
    return limits.quantiles[-1][1]


def scaled(architecture: Architecture, factor: float) -> Architecture:
    base = int(architecture.base * factor / 4 + 0.5) * 4
    return replace(architecture, base=min(max(base, SMALLEST_BASE), LARGEST_BASE))


def fit_cost(rng: random.Random, architecture: Architecture, cost: float) -> Architecture | None:
    """Channels that bring the net near the cost, or None where there are none."""
    for _ in range(2):
        architecture = scaled(architecture, (cost / architecture.macs) ** 0.5)
        if cost / NEAR <= architecture.macs <= cost * NEAR:
            return architecture
    return None


def fit_deep(rng: random.Random, architecture: Architecture, cost: float) -> Architecture | None:
    """As many blocks as the depth needs, then channels for the cost."""
    factor = MAX_TRAIN_DEPTH * (2.1 + rng.random()) / architecture.depth
    stages = tuple(stage._replace(blocks=int(stage.blocks * factor + 1)) for stage in architecture.stages)
    architecture = replace(architecture, stages=stages, base=12)
    return fit_cost(rng, architecture, cost) if architecture.depth >= 2 * MAX_TRAIN_DEPTH else None


def fit_wide(rng: random.Random, architecture: Architecture, cost: float) -> Architecture | None:
    """As many channels as the width needs, whatever that costs (the limits are checked afterwards)."""
    return scaled(architecture, MAX_TRAIN_WIDTH * (2.0 + rng.random()) / architecture.width)


FITS: dict[str, Callable[[random.Random, Architecture, float], Architecture | None]] = {
    "deep": fit_deep,
    "wide": fit_wide,
}


def keeps(architecture: Architecture, limits: Limits) -> bool:
    return (
        limits.depth[0] <= architecture.depth <= limits.depth[1]
        and limits.width[0] <= architecture.width <= limits.width[1]
        and limits.quantiles[0][1] <= architecture.macs <= limits.quantiles[-1][1]
        and architecture.parameter_count <= MAX_PARAMETERS
    )


def check_split(split: str) -> int:
    """The number of nets in the split."""
    if split not in SPLITS:
        raise ArgumentError(f"split came as {split!r}, expected one of {', '.join(SPLITS)}; write for example 'train'")
    return SPLITS[split]


def sample_architecture(split: str, index: int) -> Architecture:
    """The net at the index of the split; the same on every platform, in every process."""
    size = check_split(split)
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < size:
        raise ArgumentError(
            f"index came as {index!r}, expected an integer from 0 to {size - 1} for split {split!r}; "
            f"write for example sample_architecture({split!r}, 0)"
        )
    rng = random.Random(int.from_bytes(hashlib.sha256(f"{split}/{index}".encode()).digest(), "big"))
    families = {name: weight for name, weight in FAMILIES.items() if split != "deep" or name != "plain"}
    limits, fit = LIMITS[split], FITS.get(split, fit_cost)
    while True:
        family, cost = draw(rng, families), draw_cost(rng, limits)
        for _ in range(ATTEMPTS):
            architecture = fit(rng, draw_structure(rng, split, index, family), cost)
            if architecture is not None and keeps(architecture, limits):
                return architecture


class ArchitectureSpace:
    """One split of ConvNets-250K (re-created), as a sequence of architectures."""

    def __init__(self, split: str = "train") -> None:
        self.split, self._size = split, check_split(split)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Architecture:
        return sample_architecture(self.split, index)

    def __iter__(self) -> Iterator[Architecture]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        return f"ArchitectureSpace({self.split!r})"
