"""Layer descriptions of the ConvNets-250K (re-created) nets: each can build its module and count its own cost.

A net is described by a tree of small immutable values (`Conv`, `Norm`, `Seq`, `Residual`, ...). Each has

* ``build()``: the ordinary ``nn.Module`` it stands for;
* ``trace(flow, meter)``: what the module would do to a tensor's shape, adding its cost to the meter,

so that cost and module come from one description and a net's cost is known without building it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn


class Flow(NamedTuple):
    """Shape of one image's activations, and how many convolutions and linears lie behind it."""

    channels: int
    height: int
    width: int
    depth: int = 0


@dataclass
class Meter:
    """Cost collected while a description is traced."""

    macs: int = 0
    parameters: int = 0
    width: int = 0
    depth: int = 0


class Spec(Protocol):
    """What every layer description can do."""

    def build(self) -> nn.Module: ...

    def trace(self, flow: Flow, meter: Meter) -> Flow: ...


# ---------------------------------------------------------------- modules


class ChannelShuffle(nn.Module):
    """Interleaves the channels of the groups (ShuffleNet)."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        x = x.reshape(batch, self.groups, channels // self.groups, height, width)
        return x.transpose(1, 2).reshape(batch, channels, height, width)


class ResidualBlock(nn.Module):
    """``body(x) + shortcut(x)``, then an activation where one is given."""

    def __init__(self, body: nn.Module, shortcut: nn.Module, activation: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut, self.activation = body, shortcut, activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.body(x) + self.shortcut(x))


class CellStep(nn.Module):
    """Applies an operation to each of one or two earlier states; sums the results, or concatenates and projects."""

    def __init__(self, sources: list[int], operations: list[nn.Module], project: nn.Module | None) -> None:
        super().__init__()
        self.sources, self.operations, self.project = sources, nn.ModuleList(operations), project

    def forward(self, states: list[Tensor | None]) -> Tensor:
        results = [operation(states[source]) for source, operation in zip(self.sources, self.operations, strict=True)]
        if self.project is not None:
            return self.project(torch.cat(results, dim=1))
        return results[0] if len(results) == 1 else results[0] + results[1]


class Cell(nn.Module):
    """A small graph of steps over the outputs of the two cells before it."""

    def __init__(self, before: nn.Module | None, last: nn.Module, steps: list[CellStep], loose: list[int]) -> None:
        super().__init__()
        self.before, self.last, self.steps, self.loose = before, last, nn.ModuleList(steps), loose

    def forward(self, before: Tensor, last: Tensor) -> Tensor:
        states = [None if self.before is None else self.before(before), self.last(last)]
        for step in self.steps:
            states.append(step(states))
        ends = [states[index] for index in self.loose]
        return ends[0] if len(ends) == 1 else torch.cat(ends, dim=1)


class CellStack(nn.Module):
    """Cells in a row, each reading the outputs of the two before it."""

    def __init__(self, cells: list[Cell]) -> None:
        super().__init__()
        self.cells = nn.ModuleList(cells)

    def forward(self, x: Tensor) -> Tensor:
        before = last = x
        for cell in self.cells:
            before, last = last, cell(before, last)
        return last


class ConvNet(nn.Module):
    """Stem, body and head."""

    def __init__(self, stem: nn.Module, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.stem, self.body, self.head = stem, body, head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)))


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
        padding = (self.dilation * (self.kernel[0] - 1) // 2, self.dilation * (self.kernel[1] - 1) // 2)
        return nn.Conv2d(
            self.cin, self.cout, self.kernel, self.stride, padding, self.dilation, self.groups, bias=self.bias
        )

    def trace(self, flow: Flow, meter: Meter) -> Flow:
        cin, cout, kernel, stride, groups, _, bias = self
        height, width = (flow.height - 1) // stride[0] + 1, (flow.width - 1) // stride[1] + 1
        weights = cout * (cin // groups) * kernel[0] * kernel[1]
        meter.macs += weights * height * width
        meter.parameters += weights + cout * bias
        meter.width = max(meter.width, cin, cout)
        return Flow(cout, height, width, flow.depth + 1)


class Linear(NamedTuple):
    cin: int
    cout: int

    def build(self) -> nn.Module:
        return nn.Linear(self.cin, self.cout)

    def trace(self, flow: Flow, meter: Meter) -> Flow:
        meter.macs += self.cin * self.cout
        meter.parameters += (self.cin + 1) * self.cout
        return Flow(self.cout, 1, 1, flow.depth + 1)


class Norm(NamedTuple):
    kind: str
    channels: int

    def build(self) -> nn.Module:
        return NORMS[self.kind](self.channels)

    def trace(self, flow: Flow, meter: Meter) -> Flow:
        meter.parameters += 2 * self.channels
        return flow


class Act(NamedTuple):
    kind: str

    def build(self) -> nn.Module:
        return ACTIVATIONS[self.kind]()

    def trace(self, flow: Flow, meter: Meter) -> Flow:
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

    def trace(self, flow: Flow, meter: Meter) -> Flow:
        height, width = (flow.height - 1) // self.stride + 1, (flow.width - 1) // self.stride + 1
        return Flow(flow.channels, height, width, flow.depth)


class GlobalPool(NamedTuple):
    def build(self) -> nn.Module:
        return nn.AdaptiveAvgPool2d(1)

    def trace(self, flow: Flow, meter: Meter) -> Flow:
        return Flow(flow.channels, 1, 1, flow.depth)


class Flatten(NamedTuple):
    def build(self) -> nn.Module:
        return nn.Flatten()

    def trace(self, flow: Flow, meter: Meter) -> Flow:
        return Flow(flow.channels * flow.height * flow.width, 1, 1, flow.depth)


class Shuffle(NamedTuple):
    groups: int

    def build(self) -> nn.Module:
        return ChannelShuffle(self.groups)

    def trace(self, flow: Flow, meter: Meter) -> Flow:
        return flow


# ---------------------------------------------------------------- descriptions made of others


class Seq(NamedTuple):
    """Layers one after another; none at all is the identity."""

    layers: tuple[Spec, ...] = ()

    def build(self) -> nn.Module:
        if not self.layers:
            return nn.Identity()
        return nn.Sequential(*(layer.build() for layer in self.layers))

    def trace(self, flow: Flow, meter: Meter) -> Flow:
        for layer in self.layers:
            flow = layer.trace(flow, meter)
        return flow


class Residual(NamedTuple):
    body: Seq
    shortcut: Seq
    activation: Seq

    def build(self) -> nn.Module:
        return ResidualBlock(self.body.build(), self.shortcut.build(), self.activation.build())

    def trace(self, flow: Flow, meter: Meter) -> Flow:
        body, shortcut = self.body.trace(flow, meter), self.shortcut.trace(flow, meter)
        return body._replace(depth=max(body.depth, shortcut.depth))


class StepSpec(NamedTuple):
    sources: tuple[int, ...]
    operations: tuple[Seq, ...]
    project: Seq | None

    def build(self) -> CellStep:
        project = None if self.project is None else self.project.build()
        return CellStep(list(self.sources), [operation.build() for operation in self.operations], project)

    def trace(self, states: list[Flow], meter: Meter) -> Flow:
        ends = [operation.trace(states[i], meter) for i, operation in zip(self.sources, self.operations, strict=True)]
        flow = ends[0]._replace(depth=max(end.depth for end in ends))
        return flow if self.project is None else self.project.trace(flow, meter)


class CellSpec(NamedTuple):
    before: Seq | None
    last: Seq
    steps: tuple[StepSpec, ...]
    loose: tuple[int, ...]

    def build(self) -> Cell:
        before = None if self.before is None else self.before.build()
        return Cell(before, self.last.build(), [step.build() for step in self.steps], list(self.loose))

    def trace(self, before: Flow, last: Flow, meter: Meter) -> Flow:
        states = [before if self.before is None else self.before.trace(before, meter), self.last.trace(last, meter)]
        for step in self.steps:
            states.append(step.trace(states, meter))
        ends = [states[index] for index in self.loose]
        return ends[0]._replace(channels=sum(end.channels for end in ends), depth=max(end.depth for end in ends))


class StackSpec(NamedTuple):
    cells: tuple[CellSpec, ...]

    def build(self) -> nn.Module:
        return CellStack([cell.build() for cell in self.cells])

    def trace(self, flow: Flow, meter: Meter) -> Flow:
        before = last = flow
        for cell in self.cells:
            before, last = last, cell.trace(before, last, meter)
        return last


# ---------------------------------------------------------------- genotypes, and what they stand for


class Style(NamedTuple):
    """What all convolutions of a net share."""

    norm: str
    activation: str
    bias: bool


class Edge(NamedTuple):
    """An operation on an earlier state of a cell: 0 and 1 are the cell's inputs, 2 the first step's result, ..."""

    source: int
    operation: str


class Step(NamedTuple):
    left: Edge
    right: Edge
    combine: str


class Block(NamedTuple):
    """Genotype of one kind of block; each family reads the fields that it knows."""

    kernel: int = 3
    groups: int = 1
    expansion: int = 1
    pre_activation: bool = False
    skip: bool = False
    repeat: int = 1
    steps: tuple[Step, ...] = ()


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


def with_skip(body: tuple[Spec, ...], cin: int, cout: int, stride: int, style: Style, final: bool = False) -> Spec:
    """A residual block around the body, with a projecting shortcut where the shape changes."""
    shortcut = () if cin == cout and stride == 1 else unit(cin, cout, style, 1, stride, order="cn")
    return Residual(Seq(body), Seq(shortcut), Seq((Act(style.activation),) if final else ()))


def plain(cin: int, cout: int, stride: int, block: Block, style: Style) -> Spec:
    return Seq(unit(cin, cout, style, block.kernel, stride))


def residual(cin: int, cout: int, stride: int, block: Block, style: Style) -> Spec:
    first, second = ("nac", "nac") if block.pre_activation else ("cna", "cn")
    body = unit(cin, cout, style, block.kernel, stride, order=first)
    body += unit(cout, cout, style, block.kernel, order=second)
    return with_skip(body, cin, cout, stride, style, final=not block.pre_activation)


def bottleneck(cin: int, cout: int, stride: int, block: Block, style: Style) -> Spec:
    quantum = max(4, block.groups)
    middle = max(quantum, cout // block.expansion // quantum * quantum)
    order = "nac" if block.pre_activation else "cna"
    body = unit(cin, middle, style, 1, order=order)
    body += unit(middle, middle, style, block.kernel, stride, block.groups, order=order)
    body += unit(middle, cout, style, 1, order="nac" if block.pre_activation else "cn")
    return with_skip(body, cin, cout, stride, style, final=not block.pre_activation)


def separable(cin: int, cout: int, stride: int, block: Block, style: Style) -> Spec:
    body = unit(cin, cin, style, block.kernel, stride, groups=cin) + unit(cin, cout, style, 1)
    return with_skip(body, cin, cout, stride, style) if block.skip and stride == 1 and cin == cout else Seq(body)


def inverted(cin: int, cout: int, stride: int, block: Block, style: Style) -> Spec:
    hidden = cin * block.expansion
    body = unit(cin, hidden, style, 1) + unit(hidden, hidden, style, block.kernel, stride, groups=hidden)
    body += unit(hidden, cout, style, 1, order="cn")
    return with_skip(body, cin, cout, stride, style) if stride == 1 and cin == cout else Seq(body)


def grouped(cin: int, cout: int, stride: int, block: Block, style: Style) -> Spec:
    body = (*unit(cin, cout, style, block.kernel, stride, block.groups), Shuffle(block.groups))
    body += unit(cout, cout, style, 1, groups=block.groups, order="cn" if block.skip else "cna")
    return with_skip(body, cin, cout, stride, style, final=True) if block.skip else Seq(body)


BLOCKS: dict[str, Callable[[int, int, int, Block, Style], Spec]] = {
    "plain": plain,
    "residual": residual,
    "bottleneck": bottleneck,
    "separable": separable,
    "inverted": inverted,
    "grouped": grouped,
}


def dense(kernel: int) -> Callable[..., tuple[Spec, ...]]:
    return lambda c, stride, style, repeat: unit(c, c, style, kernel, stride, order="acn")


def depthwise(kernel: int, dilation: int = 1, repeats: bool = True) -> Callable[..., tuple[Spec, ...]]:
    def operation(c: int, stride: int, style: Style, repeat: int) -> tuple[Spec, ...]:
        layers: tuple[Spec, ...] = ()
        for step in range(repeat if repeats else 1):
            layers += unit(c, c, style, kernel, 1 if step else stride, c, dilation, order="ac")
            layers += unit(c, c, style, 1, order="cn")
        return layers

    return operation


def cross(c: int, stride: int, style: Style, repeat: int) -> tuple[Spec, ...]:
    return unit(c, c, style, (1, 7), (1, stride), order="ac") + unit(c, c, style, (7, 1), (stride, 1), order="cn")


OPERATIONS: dict[str, Callable[[int, int, Style, int], tuple[Spec, ...]]] = {
    "skip": lambda c, stride, style, repeat: () if stride == 1 else unit(c, c, style, 1, stride, order="acn"),
    "max-pool-3": lambda c, stride, style, repeat: (Pool("max", 3, stride),),
    "avg-pool-3": lambda c, stride, style, repeat: (Pool("avg", 3, stride),),
    "sep-conv-3": depthwise(3),
    "sep-conv-5": depthwise(5),
    "dil-conv-3": depthwise(3, dilation=2, repeats=False),
    "dil-conv-5": depthwise(5, dilation=2, repeats=False),
    "conv-1": dense(1),
    "conv-3": dense(3),
    "conv-5": dense(5),
    "conv-7": dense(7),
    "conv-7x1-1x7": cross,
}


def cell(before: tuple[int, int], last: int, c: int, stride: int, block: Block, style: Style) -> CellSpec:
    """One cell of c channels a state; `before` is the channels and stride that bring the older input to the newer."""
    edges = [[edge for edge in (step.left, step.right) if edge.operation != "none"] for step in block.steps]
    used = {edge.source for pair in edges for edge in pair}
    steps = []
    for step, pair in zip(block.steps, edges, strict=True):
        operations = (
            Seq(OPERATIONS[edge.operation](c, stride if edge.source < 2 else 1, style, block.repeat)) for edge in pair
        )
        concatenates = step.combine == "concat" and len(pair) == 2
        project = Seq(unit(2 * c, c, style, 1, order="acn")) if concatenates else None
        steps.append(StepSpec(tuple(edge.source for edge in pair), tuple(operations), project))
    older = Seq(unit(before[0], c, style, 1, before[1], order="acn")) if 0 in used else None
    loose = tuple(index for index in range(2, 2 + len(steps)) if index not in used)
    return CellSpec(older, Seq(unit(last, c, style, 1, order="acn")), tuple(steps), loose)


def cell_stack(stem: int, layout: list[tuple[int, int, Block]], style: Style) -> tuple[StackSpec, int]:
    """Cells from (channels, stride, genotype) each; also returns the channels that come out."""
    cells = []
    before, last, pending = stem, stem, 1
    for c, stride, block in layout:
        cells.append(cell((before, pending), last, c, stride, block, style))
        before, last, pending = last, c * len(cells[-1].loose), stride
    return StackSpec(tuple(cells)), last
