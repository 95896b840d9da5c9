"""A hand-made network as a `Plan`, and the layers it stands for: stem, rows of blocks, head."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from ghnqat_sdk.training.spaces.blocks import (
    Act,
    ConvNet,
    Flatten,
    GlobalPool,
    Linear,
    Norm,
    Pool,
    Seq,
    Spec,
    Style,
    unit,
)
from ghnqat_sdk.training.spaces.cost import IMAGE, Cost
from ghnqat_sdk.training.spaces.family_blocks import Kind, repvgg, snap
from ghnqat_sdk.training.spaces.family_layers import (
    AdaptivePool,
    LayerNorm,
    Mean,
    UnpaddedConv,
    UnpaddedPool,
)
from ghnqat_sdk.training.spaces.family_rows import ROWS, Piece, Row

# ---------------------------------------------------------------- plans


class Stem(NamedTuple):
    """What comes before the first block.

    Attributes:
        kind: A key of `STEMS`.
        kernel, stride: Of its first convolution; patches are as large as their stride.
        pooled: Whether a max-pooling of 3x3 with stride 2 follows.
        ratio: Its channels, as a factor on the plan's base.
    """

    kind: str
    kernel: int = 3
    stride: int = 1
    pooled: bool = False
    ratio: float = 1.0

    @property
    def halvings(self) -> int:
        """How often it halves the image."""
        return self.stride // 2 + self.pooled


class Stage(NamedTuple):
    """Blocks of one kind with about base * `ratio` channels, the first with `stride`."""

    ratio: float
    blocks: int
    stride: int
    kind: Kind


class Head(NamedTuple):
    """What comes behind the last block.

    Attributes:
        kind: A key of `HEADS`.
        activates: Whether a norm and an activation come first, as behind blocks that end without.
        convolution: Channels of a 1x1 convolution before pooling, 0 for none.
        side: Positions a side that pooling leaves.
        hidden: Features of linear layers before the last.
    """

    kind: str = "linear"
    activates: bool = False
    convolution: int = 0
    side: int = 1
    hidden: tuple[int, ...] = ()


class Plan(NamedTuple):
    """A network without its place in a split.

    Attributes:
        family: What people call its kind.
        style: Norm, activation and bias of its convolutions.
        base: Channels that all ratios refer to.
        most: Most channels of a block.
        stem, stages, head: Its parts.
    """

    family: str
    style: Style
    base: int
    most: int
    stem: Stem
    stages: tuple[Stage, ...]
    head: Head


# ---------------------------------------------------------------- stems


def pooling(stem: Stem) -> tuple[Spec, ...]:
    return (Pool("max", 3, 2),) if stem.pooled else ()


def conv_stem(cout: int, stem: Stem, style: Style) -> tuple[Spec, ...]:
    """One convolution."""
    return (*unit(3, cout, style, stem.kernel, stem.stride), *pooling(stem))


def bare_stem(cout: int, stem: Stem, style: Style) -> tuple[Spec, ...]:
    """One convolution without a norm, for blocks that begin with one."""
    return (*unit(3, cout, style, stem.kernel, stem.stride, order="c"), *pooling(stem))


def deep_stem(cout: int, stem: Stem, style: Style) -> tuple[Spec, ...]:
    """Three convolutions of 3x3, as in ResNet-C and D."""
    half = snap(cout / 2)
    layers = unit(3, half, style, 3, stem.stride) + unit(half, half, style, 3)
    return (*layers, *unit(half, cout, style, 3), *pooling(stem))


def separable_stem(cout: int, stem: Stem, style: Style) -> tuple[Spec, ...]:
    """MNASNet's: twice the channels, then a depthwise convolution and one of 1x1."""
    double = snap(2 * cout)
    layers = unit(3, double, style, 3, stem.stride) + unit(double, double, style, 3, 1, double)
    return (*layers, *unit(double, cout, style, 1, order="cn"))


def inception_stem(cout: int, stem: Stem, style: Style) -> tuple[Spec, ...]:
    """GoogLeNet's: a third of the channels, pooling, then convolutions of 1x1 and 3x3."""
    third = snap(cout / 3)
    layers = (*unit(3, third, style, stem.kernel, stem.stride), *pooling(stem))
    return (*layers, *unit(third, third, style, 1), *unit(third, cout, style, 3))


def unpadded_stem(cout: int, stem: Stem, style: Style) -> tuple[Spec, ...]:
    """SqueezeNet's: neither the convolution nor the pooling is padded."""
    _, *others = unit(3, cout, style)
    pool = (UnpaddedPool(),) if stem.pooled else ()
    return (UnpaddedConv(3, cout, stem.kernel, stem.stride, style.bias), *others, *pool)


def patch_stem(cout: int, stem: Stem, style: Style) -> tuple[Spec, ...]:
    """ConvNeXt's: patches of the stride's size."""
    return (UnpaddedConv(3, cout, stem.stride, stem.stride), LayerNorm(cout, last=False))


def repvgg_stem(cout: int, stem: Stem, style: Style) -> tuple[Spec, ...]:
    """RepVGG's: one of its blocks."""
    return (repvgg(3, cout, stem.stride, Kind("repvgg"), style),)


STEMS: dict[str, Callable[[int, Stem, Style], tuple[Spec, ...]]] = {
    "conv": conv_stem,
    "bare": bare_stem,
    "deep": deep_stem,
    "separable": separable_stem,
    "inception": inception_stem,
    "unpadded": unpadded_stem,
    "patch": patch_stem,
    "repvgg": repvgg_stem,
}


# ---------------------------------------------------------------- heads


def linear_head(channels: int, head: Head, style: Style, classes: int) -> tuple[Spec, ...]:
    """Pooling and linear layers."""
    features = channels * head.side**2
    layers: tuple[Spec, ...] = (AdaptivePool(head.side), Flatten())
    for hidden in head.hidden:
        layers += (Linear(features, hidden), Act(style.activation))
        features = hidden
    return (*layers, Linear(features, classes))


def mean_head(channels: int, head: Head, style: Style, classes: int) -> tuple[Spec, ...]:
    """A linear layer behind a mean."""
    return (Mean(), Linear(channels, classes))


def norm_head(channels: int, head: Head, style: Style, classes: int) -> tuple[Spec, ...]:
    """ConvNeXt's: a layer norm between pooling and the linear layer."""
    norm = LayerNorm(channels, last=False)
    return (GlobalPool(), norm, Flatten(), Linear(channels, classes))


def conv_head(channels: int, head: Head, style: Style, classes: int) -> tuple[Spec, ...]:
    """SqueezeNet's: the classifier is a 1x1 convolution before pooling."""
    biased = style._replace(norm="none", bias=True)
    return (*unit(channels, classes, biased, 1), GlobalPool(), Flatten())


HEADS: dict[str, Callable[[int, Head, Style, int], tuple[Spec, ...]]] = {
    "linear": linear_head,
    "mean": mean_head,
    "norm": norm_head,
    "conv": conv_head,
}


# ---------------------------------------------------------------- networks


class Network(NamedTuple):
    """Description of a `ConvNet`: stem, blocks, which of them hints may tap, head."""

    stem: Seq
    blocks: tuple[Spec, ...]
    taps: tuple[int, ...]
    head: Seq

    def build(self) -> nn.Module:
        blocks = [block.build() for block in self.blocks]
        return ConvNet(self.stem.build(), blocks, self.head.build(), self.taps)

    def cost(self) -> Cost:
        """Of one image."""
        cost = Cost()
        flow = IMAGE
        for part in (self.stem, *self.blocks, self.head):
            flow = part.trace(flow, cost)
        cost.depth = flow.depth
        return cost


def describe(plan: Plan, classes: int) -> Network:
    """The layers of a plan."""
    stem: tuple[Spec, ...] = ()
    channels = IMAGE.channels
    if plan.stem.kind != "none":
        channels = snap(plan.base * plan.stem.ratio)
        stem = STEMS[plan.stem.kind](channels, plan.stem, plan.style)
    pieces: list[Piece] = []
    for stage in plan.stages:
        pieces += stage_pieces(channels, stage, plan)
        channels = pieces[-1].channels
    if plan.head.activates:
        last = Seq((Norm(plan.style.norm, channels), Act(plan.style.activation)))
        pieces.append(Piece(last, channels))
    blocks = tuple(piece.spec for piece in pieces)
    taps = tuple(index for index, piece in enumerate(pieces) if piece.tapped)
    return Network(Seq(stem), blocks, taps, Seq(head_layers(channels, plan, classes)))


def stage_pieces(cin: int, stage: Stage, plan: Plan) -> list[Piece]:
    kind = stage.kind
    width = snap(plan.base * stage.ratio, kind.group_width or 1, plan.most)
    style = plan.style
    if kind.activation:
        style = style._replace(activation=kind.activation)
    return ROWS[kind.block](Row(cin, width, stage.stride, stage.blocks, kind, style))


def head_layers(channels: int, plan: Plan, classes: int) -> tuple[Spec, ...]:
    head = plan.head
    layers: tuple[Spec, ...] = ()
    if head.convolution:
        layers = unit(channels, head.convolution, plan.style, 1)
        channels = head.convolution
    return layers + HEADS[head.kind](channels, head, plan.style, classes)
