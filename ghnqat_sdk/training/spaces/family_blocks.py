"""The blocks of the hand-made families, written as torchvision and timm write them.

A block function takes channels in and out, a stride, the `Kind` of block and the network's style.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple, TypeAlias

from ghnqat_sdk.training.spaces.blocks import (
    Act,
    Conv,
    GlobalPool,
    Norm,
    Pool,
    Residual,
    Seq,
    Spec,
    Style,
    unit,
    with_skip,
)
from ghnqat_sdk.training.spaces.family_layers import LayerNorm, PositionLinear, Stateless
from ghnqat_sdk.training.spaces.family_modules import (
    Concat,
    Gated,
    Half,
    PreActivated,
    ScaledResidual,
    Sum,
)

GRID = (16, 24, 32, 48, 64, 96, 128, 160, 192, 256, 320, 384, 512, 640, 1024, 1280)
"""Channel counts of all blocks, so that compiled kernels recur."""


@cache
def snap(channels: float, quantum: int = 1, most: int = GRID[-1]) -> int:
    """The nearest count of the grid that `quantum` divides, at most `most`."""
    allowed = [size for size in GRID if size <= most and size % quantum == 0]
    return min(allowed, key=lambda size: (abs(size - channels), -size))


class Kind(NamedTuple):
    """One kind of block; each block function reads the fields that it knows.

    Attributes:
        block: A key of `family_rows.ROWS`.
        kernel: Of the spatial convolution.
        expansion: Channels between the 1x1 convolutions: c * expansion in inverted blocks,
            c / expansion in bottlenecks.
        group_width: Channels of a group of the spatial convolution, 0 for no groups.
        gate: A key of `GATES`, or "" for none.
        activation: Instead of the network's own, or "".
    """

    block: str
    kernel: int = 3
    expansion: int = 1
    group_width: int = 0
    gate: str = ""
    activation: str = ""


class Gate(NamedTuple):
    """How a squeeze-and-excitation gate is made."""

    squeezes_hidden: bool
    activation: str
    scaling: str


GATES = {
    "regnet": Gate(False, "relu", "sigmoid"),
    "efficientnet": Gate(False, "silu", "sigmoid"),
    "mobilenet-v3": Gate(True, "relu", "hardsigmoid"),
}


def gate(cin: int, hidden: int, kind: Kind) -> tuple[Spec, ...]:
    """Squeeze and excitation of the `hidden` channels, where the kind has one."""
    if not kind.gate:
        return ()
    squeezes_hidden, activation, scaling = GATES[kind.gate]
    squeezed = max(8, (hidden // 4 + 4) // 8 * 8) if squeezes_hidden else cin // 4
    biased = Style("none", activation, bias=True)
    layers = (*unit(hidden, squeezed, biased, 1), *unit(squeezed, hidden, biased, 1, order="c"))
    return (Gated(Seq((GlobalPool(), *layers, Stateless(scaling)))),)


# ---------------------------------------------------------------- blocks

BlockFunction: TypeAlias = Callable[[int, int, int, Kind, Style], Spec]
"""(channels in, channels out, stride, kind, style) to a block."""


def plain(cin: int, cout: int, stride: int, kind: Kind, style: Style) -> Spec:
    """VGG (Simonyan & Zisserman 2015)."""
    return Seq(unit(cin, cout, style, kind.kernel, stride))


def basic(cin: int, cout: int, stride: int, kind: Kind, style: Style) -> Spec:
    """ResNet's block of two convolutions (He et al. 2016)."""
    body = unit(cin, cout, style, 3, stride) + unit(cout, cout, style, 3, order="cn")
    return with_skip(body, cin, cout, stride, style, final=True)


def squeezed_body(cin: int, cout: int, stride: int, kind: Kind, style: Style) -> tuple[Spec, ...]:
    """1x1, spatial (grouped where the kind says so) and 1x1 convolution."""
    middle = snap(cout / kind.expansion, kind.group_width or 1)
    groups = middle // kind.group_width if kind.group_width else 1
    spatial = unit(middle, middle, style, kind.kernel, stride, groups)
    return (
        *unit(cin, middle, style, 1),
        *spatial,
        *gate(cin, middle, kind),
        *unit(middle, cout, style, 1, order="cn"),
    )


def bottleneck(cin: int, cout: int, stride: int, kind: Kind, style: Style) -> Spec:
    """ResNet-50's block; with groups that of ResNeXt (Xie et al. 2017)."""
    body = squeezed_body(cin, cout, stride, kind, style)
    return with_skip(body, cin, cout, stride, style, final=True)


def regnet(cin: int, cout: int, stride: int, kind: Kind, style: Style) -> Spec:
    """RegNet's block (Radosavovic et al. 2020): the shortcut runs first."""
    same = cin == cout and stride == 1
    shortcut = Seq() if same else Seq(unit(cin, cout, style, 1, stride, order="cn"))
    body = Seq(squeezed_body(cin, cout, stride, kind, style))
    return Seq((Sum((shortcut, body)), Act(style.activation)))


def preactivated(cin: int, cout: int, stride: int, kind: Kind, style: Style) -> Spec:
    """ResNet v2's block (He et al. 2016); an expansion makes it a bottleneck."""
    if kind.expansion == 1:
        body = unit(cin, cout, style, 3, stride, order="c") + unit(cout, cout, style, order="nac")
    else:
        middle = snap(cout / kind.expansion)
        body = unit(cin, middle, style, 1, order="c")
        body += unit(middle, middle, style, 3, stride, order="nac")
        body += unit(middle, cout, style, 1, order="nac")
    same = cin == cout and stride == 1
    shortcut = () if same else unit(cin, cout, style, 1, stride, order="c")
    before = (Norm(style.norm, cin), Act(style.activation))
    return PreActivated(Seq(before), Seq(body), Seq(shortcut))


def separable(cin: int, cout: int, stride: int, kind: Kind, style: Style) -> Spec:
    """MobileNet's block (Howard et al. 2017)."""
    spatial = unit(cin, cin, style, kind.kernel, stride, groups=cin)
    return Seq((*spatial, *unit(cin, cout, style, 1)))


def inverted(cin: int, cout: int, stride: int, kind: Kind, style: Style) -> Spec:
    """MobileNetV2's block (Sandler et al. 2018); with a gate V3's or EfficientNet's."""
    hidden = cin * kind.expansion
    spatial = unit(hidden, hidden, style, kind.kernel, stride, groups=hidden)
    body = (
        *(unit(cin, hidden, style, 1) if kind.expansion > 1 else ()),
        *spatial,
        *gate(cin, hidden, kind),
        *unit(hidden, cout, style, 1, order="cn"),
    )
    return skipped_where_same(body, cin == cout and stride == 1)


def fused(cin: int, cout: int, stride: int, kind: Kind, style: Style) -> Spec:
    """EfficientNetV2's early block (Tan & Le 2021): one convolution for the first two."""
    if kind.expansion == 1:
        return skipped_where_same(unit(cin, cout, style, 3, stride), cin == cout and stride == 1)
    hidden = cin * kind.expansion
    body = unit(cin, hidden, style, 3, stride) + unit(hidden, cout, style, 1, order="cn")
    return skipped_where_same(body, cin == cout and stride == 1)


def skipped_where_same(body: tuple[Spec, ...], same: bool) -> Spec:
    return Residual(Seq(body), Seq(), Seq()) if same else Seq(body)


def convnext(cin: int, cout: int, stride: int, kind: Kind, style: Style) -> Spec:
    """ConvNeXt's block (Liu et al. 2022)."""
    body = (
        Conv(cout, cout, (kind.kernel, kind.kernel), (1, 1), cout, 1, bias=True),
        Stateless("channels-last"),
        LayerNorm(cout, last=True),
        PositionLinear(cout, 4 * cout),
        Act(style.activation),
        PositionLinear(4 * cout, cout),
        Stateless("channels-first"),
    )
    return ScaledResidual(Seq(body), cout)


def shuffled(cin: int, cout: int, stride: int, kind: Kind, style: Style) -> Spec:
    """ShuffleNetV2's block (Ma et al. 2018)."""
    half = cout // 2
    same = cin == cout and stride == 1
    body = (
        *unit(half if same else cin, half, style, 1),
        *unit(half, half, style, 3, stride, groups=half, order="cn"),
        *unit(half, half, style, 1),
    )
    if same:
        return Seq((Half(Seq(body)), Stateless("shuffle")))
    smaller = unit(cin, cin, style, 3, stride, groups=cin, order="cn") + unit(cin, half, style, 1)
    return Seq((Concat((Seq(smaller), Seq(body))), Stateless("shuffle")))


def fire(cin: int, cout: int, stride: int, kind: Kind, style: Style) -> Spec:
    """SqueezeNet's block (Iandola et al. 2016)."""
    squeezed = snap(cout / 8)
    half = cout // 2
    expansions = (Seq(unit(squeezed, half, style, 1)), Seq(unit(squeezed, half, style, 3)))
    return Seq((*unit(cin, squeezed, style, 1), Concat(expansions)))


def chain(cin: int, style: Style, *steps: tuple[int, int | tuple[int, int]]) -> Seq:
    """Convolutions one after another, each given by its channels and its kernel."""
    layers: tuple[Spec, ...] = ()
    for cout, kernel in steps:
        layers += unit(cin, cout, style, kernel)
        cin = cout
    return Seq(layers)


def inception(cin: int, cout: int, stride: int, kind: Kind, style: Style) -> Spec:
    """GoogLeNet's block (Szegedy et al. 2015), with two branches of 3x3 as in torchvision."""
    narrow = snap(cout / 16)
    eighth = cout // 8
    wide = cout // 2
    pooled = (Pool("max", 3, 1), *unit(cin, eighth, style, 1))
    return Concat((
        Seq(unit(cin, 2 * eighth, style, 1)),
        chain(cin, style, (snap(3 * eighth), 1), (wide, 3)),
        chain(cin, style, (narrow, 1), (eighth, kind.kernel)),
        Seq(pooled),
    ))  # fmt: skip


def factorized(cin: int, cout: int, stride: int, kind: Kind, style: Style) -> Spec:
    """Inception-v3's block of rows and columns of seven (Szegedy et al. 2016)."""
    quarter = cout // 4
    narrow = snap(3 * cout / 16)
    row = (1, 7)
    column = (7, 1)
    double = [(narrow, column), (narrow, row), (narrow, column), (quarter, row)]
    pooled = (Pool("avg", 3, 1), *unit(cin, quarter, style, 1))
    return Concat((
        Seq(unit(cin, quarter, style, 1)),
        chain(cin, style, (narrow, 1), (narrow, row), (quarter, column)),
        chain(cin, style, (narrow, 1), *double),
        Seq(pooled),
    ))  # fmt: skip


def repvgg(cin: int, cout: int, stride: int, kind: Kind, style: Style) -> Spec:
    """RepVGG's block as it is trained (Ding et al. 2021)."""
    branches: tuple[Spec, ...] = (
        Seq(unit(cin, cout, style, 3, stride, order="cn")),
        Seq(unit(cin, cout, style, 1, stride, order="cn")),
    )
    if cin == cout and stride == 1:
        branches += (Norm(style.norm, cout),)
    return Seq((Sum(branches), Act(style.activation)))
