"""Genotypes of searched cells: which operations on which states, drawn, and made into cells.

States are numbered as in `cells`. `draw_genotypes` draws the two genotypes of a network by the
values of the DeepNets-1M generator (Knyazev et al., 2021); `cell_row` gives genotypes their
channels, strides and inputs.

Example:
    >>> slot = Slot(Genotype(((Edge(0, "skip"), Edge(1, "conv-3")),), ends=(2,)), 16, stride=1)
    >>> style = Style("batch", "relu", bias=False)
    >>> cells, channels = cell_row([slot, slot], Place(48, 48, halves=False), style)
    >>> len(cells), channels
    (2, 16)
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

from ghnqat_sdk.training.spaces.blocks import Act, Norm, Pool, Seq, Spec, Style, unit
from ghnqat_sdk.training.spaces.cells import CellSpec, Halve, StepSpec

Operation: TypeAlias = Callable[[int, int, Style], tuple[Spec, ...]]
"""(channels, stride, style) to layers."""


def halve(cin: int, cout: int, style: Style) -> tuple[Spec, ...]:
    """Activation, factorized reduction, norm."""
    norm = () if style.norm == "none" else (Norm(style.norm, cout),)
    return (Act(style.activation), Halve(cin, cout, style.bias), *norm)


def skip(c: int, stride: int, style: Style) -> tuple[Spec, ...]:
    """The identity; a factorized reduction where the stride is 2."""
    return () if stride == 1 else halve(c, c, style)


def pool(kind: str) -> Operation:
    """Pooling of 3x3, "max" or "avg"."""
    return lambda c, stride, style: (Pool(kind, 3, stride),)


def dense(kernel: int) -> Operation:
    """An ordinary convolution."""
    return lambda c, stride, style: unit(c, c, style, kernel, stride, order="acn")


def depthwise(kernel: int, dilation: int = 1) -> Operation:
    """A depthwise convolution and one of 1x1."""

    def operation(c: int, stride: int, style: Style) -> tuple[Spec, ...]:
        spatial = unit(c, c, style, kernel, stride, groups=c, dilation=dilation, order="ac")
        return (*spatial, *unit(c, c, style, 1, order="cn"))

    return operation


def separable(kernel: int) -> Operation:
    """A depthwise convolution and one of 1x1, twice."""
    half = depthwise(kernel)
    return lambda c, stride, style: (*half(c, stride, style), *half(c, 1, style))


def cross(c: int, stride: int, style: Style) -> tuple[Spec, ...]:
    """A row of 7 and a column of 7."""
    row = unit(c, c, style, (1, 7), (1, stride), order="ac")
    return (*row, *unit(c, c, style, (7, 1), (stride, 1), order="cn"))


POOLS: dict[str, Operation] = {
    "max-pool-3": pool("max"),
    "avg-pool-3": pool("avg"),
    "skip": skip,
}
CONVOLUTIONS: dict[str, Operation] = {
    "sep-conv-3": separable(3),
    "sep-conv-5": separable(5),
    "dil-conv-3": depthwise(3, dilation=2),
    "dil-conv-5": depthwise(5, dilation=2),
    "conv-1": dense(1),
    "conv-7x1-1x7": cross,
    "conv-3": dense(3),
    "conv-5": dense(5),
    "conv-7": dense(7),
}
OPERATIONS = {**POOLS, **CONVOLUTIONS}

LARGE = ("conv-5", "conv-7")
"""Operations of which a cell has at most one."""

NONE = "none"
"""Drawn like an operation, and leaves its step with one edge."""


class Edge(NamedTuple):
    """An operation on an earlier state."""

    source: int
    operation: str


class Genotype(NamedTuple):
    """Steps of a cell, each of one or two edges, and the states that make its output."""

    steps: tuple[tuple[Edge, ...], ...]
    ends: tuple[int, ...]

    @property
    def edges(self) -> list[Edge]:
        """Those of all steps."""
        return [edge for step in self.steps for edge in step]

    @property
    def sources(self) -> set[int]:
        """States that are read."""
        return {edge.source for edge in self.edges}

    def pruned(self) -> Genotype:
        """The same cell without the steps that reach no end; the others are numbered anew."""
        live = set(self.ends)
        for state in range(len(self.steps) + 1, 1, -1):
            if state in live:
                live.update(edge.source for edge in self.steps[state - 2])
        kept = [0, 1, *sorted(live - {0, 1})]
        number = {state: position for position, state in enumerate(kept)}
        steps = tuple(
            tuple(edge._replace(source=number[edge.source]) for edge in self.steps[state - 2])
            for state in kept[2:]
        )
        return Genotype(steps, tuple(number[end] for end in self.ends))


def draw_step(rng: random.Random, state: int, operations: Sequence[str]) -> tuple[Edge, ...]:
    """Edges from two different states before `state`; at least one of them has an operation."""
    first = rng.randrange(state)
    second = rng.randrange(state - 1)
    second += second >= first
    sources = sorted((first, second))
    while True:
        drawn = [Edge(source, rng.choice(operations)) for source in sources]
        edges = tuple(edge for edge in drawn if edge.operation != NONE)
        if edges:
            return edges


def draw_genotype(
    rng: random.Random, steps: int, ends: tuple[int, ...], operations: Sequence[str]
) -> Genotype:
    """A cell that reads the last cell before it, so that no cell of a network is dead."""
    allowed = (NONE, *operations) if steps > 1 else operations
    while True:
        states = range(2, steps + 2)
        drawn = Genotype(tuple(draw_step(rng, state, allowed) for state in states), ends)
        genotype = drawn.pruned()
        large = sum(edge.operation in LARGE for edge in drawn.edges)
        if large <= 1 and 1 in genotype.sources:
            return genotype


def draw_genotypes(rng: random.Random, steps: int) -> tuple[Genotype, Genotype]:
    """A normal and a reduction cell with the same ends, and a convolution in one of them.

    Half of the reduction cells only pool. Half of the pairs have all steps as ends, the other half
    the last and each of the others by chance.
    """
    reducing = rng.choice((tuple(POOLS), tuple(OPERATIONS)))
    drops = steps > 1 and rng.choice((False, True))
    kept = [state for state in range(2, steps + 1) if not (drops and rng.choice((False, True)))]
    ends = (*kept, steps + 1)
    while True:
        normal = draw_genotype(rng, steps, ends, tuple(OPERATIONS))
        reduction = draw_genotype(rng, steps, ends, reducing)
        if any(edge.operation in CONVOLUTIONS for edge in normal.edges + reduction.edges):
            return normal, reduction


class Slot(NamedTuple):
    """One cell of a row: its genotype, the channels of its states, and its stride."""

    genotype: Genotype
    channels: int
    stride: int


class Place(NamedTuple):
    """What a cell finds: channels of its two inputs, and whether the older is twice as large."""

    before: int
    last: int
    halves: bool


def cell(slot: Slot, place: Place, style: Style, preprocessed: bool = True) -> CellSpec:
    """One cell; without `preprocessed` its inputs must have its own channels."""
    before, last = inputs(slot.channels, place, style, preprocessed)
    steps = []
    for step in slot.genotype.steps:
        sources = tuple(edge.source for edge in step)
        strides = (slot.stride if source < 2 else 1 for source in sources)
        operations = tuple(
            Seq(OPERATIONS[edge.operation](slot.channels, stride, style))
            for edge, stride in zip(step, strides, strict=True)
        )
        steps.append(StepSpec(sources, operations))
    older = before if 0 in slot.genotype.sources else Seq()
    return CellSpec(older, last, tuple(steps), slot.genotype.ends)


def inputs(c: int, place: Place, style: Style, preprocessed: bool) -> tuple[Seq, Seq]:
    """What brings both inputs of a cell to one size, and to its channels by 1x1 convolutions."""
    if not preprocessed:
        return Seq((Pool("max", 1, 2),) if place.halves else ()), Seq()
    last = unit(place.last, c, style, 1, order="acn")
    if place.halves:
        return Seq(halve(place.before, c, style)), Seq(last)
    return Seq(unit(place.before, c, style, 1, order="acn")), Seq(last)


def cell_row(
    slots: Sequence[Slot], place: Place, style: Style, preprocessed: bool = True
) -> tuple[tuple[CellSpec, ...], int]:
    """Cells one after another, the first at `place`; also the channels that come out."""
    known: dict[tuple[Slot, Place], CellSpec] = {}
    cells = []
    for slot in slots:
        if (slot, place) not in known:
            known[slot, place] = cell(slot, place, style, preprocessed)
        cells.append(known[slot, place])
        out = slot.channels * len(slot.genotype.ends)
        place = Place(place.last, out, halves=slot.stride == 2)
    return tuple(cells), place.last
