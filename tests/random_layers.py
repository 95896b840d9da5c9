"""Layers for Hypothesis: torch's own, classes derived from them, and what wraps them."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torchvision.ops import DeformConv2d, FrozenBatchNorm2d

CHANNELS = (4, 8)


SIZE = 6


Draw = Callable[[st.SearchStrategy[Any]], Any]


Block = Callable[[Draw, int, int], nn.Module]
"""Makes a module from a draw, a number of channels that it keeps, and how many dimensions images
have."""


class Same(nn.Conv2d):
    """Pads by itself, as ports from TensorFlow do."""

    def forward(self, x: Tensor) -> Tensor:
        sides = [side for k in reversed(self.kernel_size) for side in ((k - 1) // 2, k // 2)]
        return F.conv2d(F.pad(x, sides), self.weight, self.bias, self.stride)


class Standardized(nn.Conv2d):
    """Computes with a standardized weight."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


class Labelled(nn.Conv2d):
    """A convolution with a label."""

    label = "stage 1"


class Multiplied(nn.Conv2d):
    """A 1 × 1 convolution by matrix multiplication."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bchw,nc->bnhw", x, self.weight[:, :, 0, 0])


class Activated(nn.BatchNorm2d):
    """Batch norm and its activation."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class Swish(torch.autograd.Function):
    """As the memory-efficient ones of EfficientNets."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return grad * (s + x * s * (1 - s))


class Calls(nn.Module):
    """A function of a module's parts and its input."""

    def __init__(self, function: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def _cached_grid(m: Any, x: Tensor) -> Tensor:
    if m.grids.get(x.shape) is None:
        m.grids[x.shape] = torch.linspace(0, 1, x.shape[-1], device=x.device, dtype=x.dtype)
    m.seen.append(tuple(x.shape))
    return x + m.grids[x.shape]


def _assembled(m: Any, x: Tensor) -> Tensor:
    canvas = torch.zeros_like(x)
    canvas[:, ::2].copy_(x[:, ::2])
    canvas[:, 1::2] = m.inner(x)[:, 1::2]
    return canvas


def _tokens(m: Any, x: Tensor) -> Tensor:
    tokens = x.flatten(2).transpose(1, 2)
    return m.mix(tokens).transpose(1, 2).reshape(x.shape)


def _reads(m: Any, x: Tensor) -> Tensor:
    return x if x.float().mean().item() < 1e9 else -x


WRAPPERS: dict[str, Callable[[Any], nn.Module]] = {
    "weight_norm_hook": torch.nn.utils.weight_norm,
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm_hook": torch.nn.utils.spectral_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "pruned": functools.partial(prune.l1_unstructured, name="weight", amount=0.5),
    "doubled": lambda layer: (
        parametrize.register_parametrization(layer, "weight", Doubled()) or layer
    ),
}


def wrapped(draw: Draw, layer: nn.Module) -> nn.Module:
    name = draw(st.sampled_from([None] * 8 + sorted(WRAPPERS)))
    return layer if name is None else WRAPPERS[name](layer)


def of_dims(kind: str, dims: int) -> Any:
    return getattr(nn, f"{kind}{dims}d")


def conv(draw: Draw, channels: int, dims: int) -> nn.Module:
    """A convolution that keeps channels and size."""
    kernel = draw(st.sampled_from([1, 3]))
    groups = draw(st.sampled_from([1, 1, 2, channels]))
    modes = ["zeros", "zeros", "circular", "replicate"]
    options = {"bias": draw(st.booleans()), "padding_mode": draw(st.sampled_from(modes))}
    layer = of_dims("Conv", dims)(
        channels, channels, kernel, padding=kernel // 2, groups=groups, **options
    )
    return wrapped(draw, layer)


def transposed(draw: Draw, channels: int, dims: int) -> nn.Module:
    """A transposed convolution that keeps channels and size."""
    layer = of_dims("ConvTranspose", dims)(
        channels, channels, 3, padding=1, bias=draw(st.booleans())
    )
    return wrapped(draw, layer)


def derived(draw: Draw, channels: int, dims: int) -> nn.Module:
    """A convolution of a class of the user's."""
    kind = draw(st.sampled_from([Same, Standardized, Labelled, Multiplied]))
    kernel = 1 if kind is not Same else 3
    return wrapped(draw, kind(channels, channels, kernel)) if dims == 2 else nn.Identity()


def norm(draw: Draw, channels: int, dims: int) -> nn.Module:
    """Any norm."""
    options: list[Callable[[], nn.Module]] = [
        lambda: of_dims("BatchNorm", dims)(channels),
        lambda: of_dims("BatchNorm", dims)(channels, affine=False),
        lambda: of_dims("BatchNorm", dims)(channels, track_running_stats=False),
        lambda: of_dims("InstanceNorm", dims)(channels, affine=True),
        lambda: of_dims("InstanceNorm", dims)(channels, track_running_stats=True),
        lambda: nn.GroupNorm(2, channels),
        lambda: nn.LayerNorm(SIZE),
        lambda: nn.SyncBatchNorm(channels),
        lambda: parametrize.register_parametrization(
            of_dims("BatchNorm", dims)(channels), "weight", Doubled()
        ),
    ]
    if dims == 2:
        options += [lambda: Activated(channels), lambda: FrozenBatchNorm2d(channels)]
    return draw(st.sampled_from(options))()


def activation(draw: Draw, channels: int, dims: int) -> nn.Module:
    """Any activation, in place or not."""
    inplace = draw(st.booleans())
    options: list[Callable[[], nn.Module]] = [
        lambda: nn.ReLU(inplace), lambda: nn.ReLU6(inplace), lambda: nn.Hardswish(inplace), nn.GELU,
        nn.Tanh,
        lambda: nn.SiLU(inplace), lambda: nn.PReLU(channels), lambda: nn.Softmax(1), nn.Sigmoid,
        lambda: nn.ELU(inplace=inplace), lambda: Calls(lambda m, x: Swish.apply(x)),
        lambda: nn.Dropout(0.1, inplace),
    ]  # fmt: skip
    return draw(st.sampled_from(options))()


def pooling(draw: Draw, channels: int, dims: int) -> nn.Module:
    """A pooling that keeps the size."""
    return of_dims(draw(st.sampled_from(["MaxPool", "AvgPool"])), dims)(3, 1, 1)


def attention(draw: Draw, channels: int, dims: int) -> nn.Module:
    """Over all places of the image."""
    recurrent = nn.GRU(channels, channels, batch_first=True)
    alone = nn.MultiheadAttention(channels, 2, batch_first=True)
    layer = nn.TransformerEncoderLayer(channels, 2, 8, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 1)
    options = [
        encoder,
        layer,
        Calls(lambda m, x: m.inner(x, x, x)[0], inner=alone),
        Calls(lambda m, x: m.inner(x)[0], inner=recurrent),
        wrapped(draw, nn.Linear(channels, channels)),
    ]
    return Calls(_tokens, mix=draw(st.sampled_from(options)))


def odd(draw: Draw, channels: int, dims: int) -> nn.Module:
    """What people do in a forward pass."""
    weight = nn.Parameter(torch.randn(channels, channels, *(1,) * dims) / channels)
    function = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[dims]
    pointwise = of_dims("Conv", dims)(channels, channels, 1)
    options = [
        Calls(lambda m, x: function(x, m.weight), weight=weight),
        Calls(_cached_grid, grids={}, seen=[]),
        Calls(_reads),
        Calls(_assembled, inner=copy.deepcopy(pointwise)),
        Calls(lambda m, x: x + m.place, place=nn.Parameter(torch.randn(SIZE))),
        Calls(lambda m, x: m.inner.forward(input=x), inner=pointwise),
        Calls(lambda m, x: x * (1 + 0.1 * torch.rand(1)).to(x), unused=nn.Linear(3, 3)),
        Calls(lambda m, x: m.table(torch.zeros(1, dtype=torch.long, device=x.device)).sum() + x,
              table=nn.Embedding(2, 4)),
    ]  # fmt: skip
    if dims == 2:
        offsets = nn.Conv2d(channels, 18, 3, padding=1)
        deformable = DeformConv2d(channels, channels, 3, padding=1)
        options.append(
            # Offsets that are NaN end the process.
            Calls(
                lambda m, x: m.inner(x, m.offsets(x).nan_to_num().clamp(-2, 2)),
                inner=deformable,
                offsets=offsets,
            )
        )
    return draw(st.sampled_from(options))


LEAVES: dict[str, Block] = {
    "conv": conv, "transposed": transposed, "derived": derived, "norm": norm,
    "activation": activation,
    "pooling": pooling, "attention": attention, "odd": odd,
}  # fmt: skip
