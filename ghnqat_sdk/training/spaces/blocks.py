"""Layer descriptions of the spaces' networks: each can build its module and count its own cost.

A network is described by a tree of small immutable values (`Conv`, `Norm`, `Seq`, `Residual`, ...).
Each has

* ``build()``: the ordinary ``nn.Module`` it stands for;
* ``trace(flow, cost)``: what the module would do to a tensor's shape, adding what it costs,

so that cost and module come from one description and a network's cost is known without building it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from ghnqat_sdk.training.spaces.cost import Cost, Flow


class Spec(Protocol):
    """What every layer description can do."""

    def build(self) -> nn.Module:
        """The module."""

    def trace(self, flow: Flow, cost: Cost) -> Flow:
        """The shape behind the layer; its cost is added to `cost`."""


# ---------------------------------------------------------------- modules


class ResidualBlock(nn.Module):
    """``body(x) + shortcut(x)``, then an activation where one is given."""

    def __init__(self, body: nn.Module, shortcut: nn.Module, activation: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut, self.activation = body, shortcut, activation

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) to (N, C', h', w')"""
        return self.activation(self.body(x) + self.shortcut(x))


class ConvNet(nn.Module):
    """Stem, blocks one after another, head; a `BlockedModule`.

    Blocks that only pool or rearrange are none whose output a hint should tap: `taps` are the
    indices of those that are.
    """

    def __init__(
        self, stem: nn.Module, blocks: Sequence[nn.Module], head: nn.Module, taps: Sequence[int]
    ) -> None:
        super().__init__()
        self.stem, self.blocks, self.head = stem, nn.ModuleList(blocks), head
        self.taps = tuple(taps)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, classes)"""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)

    def block_ends(self) -> Sequence[nn.Module]:
        """See `BlockedModule`."""
        return [self.blocks[index] for index in self.taps]


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hardswish": nn.Hardswish,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "leaky-relu": lambda: nn.LeakyReLU(0.1),
}


def norm_groups(channels: int) -> int:
    """Groups of a GroupNorm: at most 8, at least two channels in each."""
    return next(groups for groups in (8, 4, 2, 1) if channels % (2 * groups) == 0 or groups == 1)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "group": lambda channels: nn.GroupNorm(norm_groups(channels), channels),
}


# ---------------------------------------------------------------- descriptions of single layers


class Conv(NamedTuple):
    """A convolution with "same" padding (odd kernels only)."""

    cin: int
    cout: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    groups: int
    dilation: int
    bias: bool

    def build(self) -> nn.Module:
        padding = (
            self.dilation * (self.kernel[0] - 1) // 2,
            self.dilation * (self.kernel[1] - 1) // 2,
        )
        return nn.Conv2d(
            self.cin,
            self.cout,
            self.kernel,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            bias=self.bias,
        )

    def trace(self, flow: Flow, cost: Cost) -> Flow:
        cin, cout, kernel, stride, groups, _, bias = self
        height, width = (flow.height - 1) // stride[0] + 1, (flow.width - 1) // stride[1] + 1
        weights = cout * (cin // groups) * kernel[0] * kernel[1]
        cost.macs += weights * height * width
        cost.parameters += weights + cout * bias
        return Flow(cout, height, width, flow.depth + 1)


class Linear(NamedTuple):
    cin: int
    cout: int

    def build(self) -> nn.Module:
        return nn.Linear(self.cin, self.cout)

    def trace(self, flow: Flow, cost: Cost) -> Flow:
        cost.macs += self.cin * self.cout
        cost.parameters += (self.cin + 1) * self.cout
        return Flow(self.cout, 1, 1, flow.depth + 1)


class Norm(NamedTuple):
    kind: str
    channels: int

    def build(self) -> nn.Module:
        return NORMS[self.kind](self.channels)

    def trace(self, flow: Flow, cost: Cost) -> Flow:
        cost.parameters += 2 * self.channels
        return flow


class Act(NamedTuple):
    kind: str

    def build(self) -> nn.Module:
        return ACTIVATIONS[self.kind]()

    def trace(self, flow: Flow, cost: Cost) -> Flow:
        return flow


class Pool(NamedTuple):
    """Max or average pooling, kernel 3 ("same" padding) or kernel 2 (no padding)."""

    kind: str
    kernel: int
    stride: int

    def build(self) -> nn.Module:
        padding = (self.kernel - 1) // 2
        if self.kind == "max":
            return nn.MaxPool2d(self.kernel, self.stride, padding)
        return nn.AvgPool2d(self.kernel, self.stride, padding, count_include_pad=False)

    def trace(self, flow: Flow, cost: Cost) -> Flow:
        height, width = (flow.height - 1) // self.stride + 1, (flow.width - 1) // self.stride + 1
        return Flow(flow.channels, height, width, flow.depth)


class GlobalPool(NamedTuple):
    def build(self) -> nn.Module:
        return nn.AdaptiveAvgPool2d(1)

    def trace(self, flow: Flow, cost: Cost) -> Flow:
        return Flow(flow.channels, 1, 1, flow.depth)


class Flatten(NamedTuple):
    def build(self) -> nn.Module:
        return nn.Flatten()

    def trace(self, flow: Flow, cost: Cost) -> Flow:
        return Flow(flow.channels * flow.height * flow.width, 1, 1, flow.depth)


# ---------------------------------------------------------------- descriptions made of others


class Seq(NamedTuple):
    """Layers one after another; none at all is the identity."""

    layers: tuple[Spec, ...] = ()

    def build(self) -> nn.Module:
        if not self.layers:
            return nn.Identity()
        return nn.Sequential(*(layer.build() for layer in self.layers))

    def trace(self, flow: Flow, cost: Cost) -> Flow:
        for layer in self.layers:
            flow = layer.trace(flow, cost)
        return flow


class Residual(NamedTuple):
    body: Seq
    shortcut: Seq
    activation: Seq

    def build(self) -> nn.Module:
        return ResidualBlock(self.body.build(), self.shortcut.build(), self.activation.build())

    def trace(self, flow: Flow, cost: Cost) -> Flow:
        body, shortcut = self.body.trace(flow, cost), self.shortcut.trace(flow, cost)
        return body._replace(depth=max(body.depth, shortcut.depth))


class Style(NamedTuple):
    """What all convolutions of a net share."""

    norm: str
    activation: str
    bias: bool


def unit(
    cin: int,
    cout: int,
    style: Style,
    kernel: int | tuple[int, int] = 3,
    stride: int | tuple[int, int] = 1,
    groups: int = 1,
    dilation: int = 1,
    order: str = "cna",
) -> tuple[Spec, ...]:
    """A convolution (c) with its norm (n) and activation (a), in the order given."""
    kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
    stride = (stride, stride) if isinstance(stride, int) else stride
    layers: list[Spec] = []
    channels = cin
    for letter in order:
        if letter == "c":
            layers.append(Conv(cin, cout, kernel, stride, groups, dilation, style.bias))
            channels = cout
        elif letter == "a":
            layers.append(Act(style.activation))
        elif style.norm != "none":
            layers.append(Norm(style.norm, channels))
    return tuple(layers)


def with_skip(
    body: tuple[Spec, ...], cin: int, cout: int, stride: int, style: Style, final: bool = False
) -> Spec:
    """A residual block around the body, with a projecting shortcut where the shape changes."""
    shortcut = () if cin == cout and stride == 1 else unit(cin, cout, style, 1, stride, order="cn")
    return Residual(Seq(body), Seq(shortcut), Seq((Act(style.activation),) if final else ()))
