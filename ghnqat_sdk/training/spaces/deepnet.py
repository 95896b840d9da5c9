"""One network of searched cells, described by a few numbers and two genotypes.

As in DeepNets-1M (Knyazev et al., "Parameter Prediction for Unseen Deep Architectures", 2021), for
images of 32 pixels: stem, cells of which those at one and two thirds of the depth halve the image,
and a head of one or two linear layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ghnqat_sdk.training.spaces.blocks import (
    Act,
    Flatten,
    GlobalPool,
    Linear,
    Pool,
    Seq,
    Spec,
    Style,
    unit,
)
from ghnqat_sdk.training.spaces.cells import CellNetSpec
from ghnqat_sdk.training.spaces.cost import IMAGE
from ghnqat_sdk.training.spaces.described import Described
from ghnqat_sdk.training.spaces.genotypes import Genotype, Place, Slot, cell_row
from ghnqat_sdk.training.spaces.protocol import Norm

StemKind = Literal["plain", "pooled", "imagenet"]

SIMPLE_CELLS = 8
"""Largest number of cells of a simple network."""

GRID = (16, 24, 32, 48, 64, 96, 128, 160, 192, 256, 320, 384, 512)
"""Channel counts that are chosen where there is a choice, so that compiled kernels recur."""


@dataclass(frozen=True)
class DeepNet(Described):
    """One network of cells, an `Architecture`.

    Attributes:
        split: The split it belongs to.
        index: Where in the split.
        channels: Channels C of a cell's states before the first reduction.
        cells: Number of cells; those at one and two thirds are reduction cells.
        multiplier: Factor on the channels at each reduction.
        normal: Genotype of all other cells.
        reduction: Genotype of the reduction cells.
        stem: One convolution to 3 C channels, plain or with a max-pooling behind it, or three
            convolutions as for ImageNet.
        kernel: Kernel of the first convolution.
        preprocessed: Whether 1x1 convolutions bring a cell's inputs to its channels.
        norm: Batch normalization or none.
        pooled: Whether the head averages over the image, or flattens it.
        hidden: Features of the hidden linear layer, 0 for none.

    Other channels or norm than the split's own are not part of its key.
    """

    space: ClassVar[str] = "deepnets"
    split: str
    index: int
    channels: int
    cells: int
    multiplier: int
    normal: Genotype
    reduction: Genotype
    stem: StemKind
    kernel: int
    preprocessed: bool
    norm: Norm
    pooled: bool
    hidden: int

    @property
    def family(self) -> str:
        """See `Architecture`."""
        return "cells"

    @property
    def simple(self) -> bool:
        """See `Architecture`: batch norm, a pooled head, and few cells."""
        return self.norm == "batch" and self.pooled and self.cells <= SIMPLE_CELLS

    def describe(self, num_classes: int) -> CellNetSpec:
        """See `Described`."""
        style = Style(self.norm, "relu", bias=self.norm == "none")
        stem, second_stem, place = self._stems(style)
        cells, channels = cell_row(self._slots(), place, style, self.preprocessed)
        return CellNetSpec(stem, second_stem, cells, self._head(channels, num_classes))

    def _stems(self, style: Style) -> tuple[Seq, Seq, Place]:
        """The stem, what lies between it and the first cell's newer input, and what that finds."""
        c = self.channels
        if self.stem == "imagenet":
            half = on_grid(c // 2)
            layers = unit(3, half, style, self.kernel, order="cn")
            layers += unit(half, c, style, order="acn")
            return Seq(layers), Seq(unit(c, c, style, stride=2, order="acn")), Place(c, c, True)
        wide = on_grid(3 * c) if self.preprocessed else c
        pool: tuple[Spec, ...] = (Pool("max", 3, 2),) if self.stem == "pooled" else ()
        layers = (*unit(3, wide, style, self.kernel, order="cn"), *pool)
        return Seq(layers), Seq(), Place(wide, wide, False)

    def _slots(self) -> list[Slot]:
        slots = []
        channels = self.channels
        for position in range(self.cells):
            reduces = position in (self.cells // 3, 2 * self.cells // 3)
            channels *= self.multiplier if reduces else 1
            genotype = self.reduction if reduces else self.normal
            slots.append(Slot(genotype, channels, stride=2 if reduces else 1))
        return slots

    def _head(self, channels: int, num_classes: int) -> Seq:
        side = IMAGE.height // (4 if self.stem == "plain" else 8)
        layers: tuple[Spec, ...] = (GlobalPool(), Flatten()) if self.pooled else (Flatten(),)
        features = channels if self.pooled else channels * side * side
        if self.hidden:
            layers += (Linear(features, self.hidden), Act("relu"))
            features = self.hidden
        return Seq((*layers, Linear(features, num_classes)))


def on_grid(channels: int) -> int:
    """The nearest count of the grid; larger ones are left as they are."""
    return channels if channels > GRID[-1] else min(GRID, key=lambda size: abs(size - channels))
