"""Rows of blocks: a hand-made network's stages, with what makes the image smaller between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from ghnqat_sdk.training.spaces.blocks import Pool, Seq, Spec, Style, unit
from ghnqat_sdk.training.spaces.family_blocks import (
    BlockFunction,
    Kind,
    basic,
    bottleneck,
    convnext,
    factorized,
    fire,
    fused,
    inception,
    inverted,
    plain,
    preactivated,
    regnet,
    repvgg,
    separable,
    shuffled,
)
from ghnqat_sdk.training.spaces.family_layers import LayerNorm, UnpaddedConv, UnpaddedPool
from ghnqat_sdk.training.spaces.family_modules import Dense


class Piece(NamedTuple):
    """A part of a network, the channels behind it, and whether it is a block that hints may tap."""

    spec: Spec
    channels: int
    tapped: bool = True


class Row(NamedTuple):
    """What a stage is made of: `blocks` of one kind, the first with the stride."""

    cin: int
    cout: int
    stride: int
    blocks: int
    kind: Kind
    style: Style


RowFunction: TypeAlias = Callable[[Row], list[Piece]]
"""A stage's description to its parts."""


def strided(block: BlockFunction) -> RowFunction:
    """The first block makes the image smaller."""

    def pieces(row: Row) -> list[Piece]:
        ins = (row.cin, *(row.cout,) * (row.blocks - 1))
        strides = (row.stride, *(1,) * (row.blocks - 1))
        specs = (
            block(c, row.cout, s, row.kind, row.style) for c, s in zip(ins, strides, strict=True)
        )
        return [Piece(spec, row.cout) for spec in specs]

    return pieces


def pooled_before(block: BlockFunction, pool: Spec) -> RowFunction:
    """A pooling before the first block makes the image smaller."""

    def pieces(row: Row) -> list[Piece]:
        before = [Piece(pool, row.cin, False)] if row.stride == 2 else []
        return before + strided(block)(row._replace(stride=1))

    return pieces


def plain_row(row: Row) -> list[Piece]:
    """A pooling of 2x2 behind the last convolution makes the image smaller."""
    pool = [Piece(Pool("max", 2, 2), row.cout, False)] if row.stride == 2 else []
    return strided(plain)(row._replace(stride=1)) + pool


def convnext_row(row: Row) -> list[Piece]:
    """A norm and a convolution of 2x2 patches make the image smaller."""
    smaller = Seq((LayerNorm(row.cin, last=False), UnpaddedConv(row.cin, row.cout, 2, 2)))
    first = [Piece(smaller, row.cout, False)] if row.stride == 2 else []
    return first + strided(convnext)(row._replace(stride=1))


def dense_row(row: Row) -> list[Piece]:
    """DenseNet's block of `blocks` layers, `cout` new channels each; a transition where it strides.

    Transitions are what hints tap: the first channels of a dense block's output are its input's.
    """
    style = row.style
    cin = row.cin
    pieces = []
    if row.stride == 2:
        transition = Seq((*unit(cin, cin // 2, style, 1, order="nac"), Pool("avg", 2, 2)))
        cin = cin // 2
        pieces.append(Piece(transition, cin))
    layers = []
    for position in range(row.blocks):
        wide = 4 * row.cout
        layer = unit(cin + position * row.cout, wide, style, 1, order="nac")
        layers.append(Seq((*layer, *unit(wide, row.cout, style, 3, order="nac"))))
    channels = cin + row.blocks * row.cout
    return [*pieces, Piece(Dense(tuple(layers)), channels, False)]


ROWS: dict[str, RowFunction] = {
    "plain": plain_row,
    "basic": strided(basic),
    "bottleneck": strided(bottleneck),
    "regnet": strided(regnet),
    "preactivated": strided(preactivated),
    "dense": dense_row,
    "separable": strided(separable),
    "inverted": strided(inverted),
    "fused": strided(fused),
    "shuffled": strided(shuffled),
    "fire": pooled_before(fire, UnpaddedPool()),
    "inception": pooled_before(inception, Pool("max", 3, 2)),
    "factorized": pooled_before(factorized, Pool("max", 3, 2)),
    "convnext": convnext_row,
    "repvgg": strided(repvgg),
}
