"""Random networks for Hypothesis: trees of torch's layers, of classes derived from them, and of
what wraps them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from random_layers import CHANNELS, LEAVES, SIZE, Calls, Draw, of_dims, wrapped
from torch import Tensor, nn


@dataclass(frozen=True)
class Network:
    """A model, and images that it takes.

    Attributes:
        parts: What it is made of, for messages.
    """

    model: nn.Module
    images: Tensor
    parts: tuple[str, ...]

    def __repr__(self) -> str:
        first = next(self.model.parameters())
        images = f"{tuple(self.images.shape)}, finite {bool(self.images.isfinite().all())}"
        return f"{' '.join(self.parts)} in {first.dtype}, images {images}\n{self.model}"


def _tree(draw: Draw, channels: int, dims: int, depth: int, parts: list[str]) -> nn.Module:
    """A block that keeps channels and size: a leaf, or a sequence, a skip connection, a gate or a
    shared block."""
    kinds = [*LEAVES, "conv", "norm", *(["sequence", "skip", "gate", "shared"] if depth else [])]
    kind = draw(st.sampled_from(kinds))
    parts.append(kind)
    if kind in LEAVES:
        return LEAVES[kind](draw, channels, dims)
    inner = [_tree(draw, channels, dims, depth - 1, parts) for _ in range(draw(st.integers(1, 3)))]
    body = nn.Sequential(*inner)
    if kind == "skip":
        return Calls(lambda m, x: x + m.body(x.clone()), body=body)
    if kind == "gate":
        return Calls(lambda m, x: x * torch.sigmoid(m.body(x.clone())), body=body)
    return nn.Sequential(body, nn.ReLU(), body) if kind == "shared" else body


def _headed(draw: Draw, body: nn.Module, channels: int, dims: int) -> nn.Module:
    """A stem, the body, and a head with outputs of one kind or another."""
    classes = draw(st.sampled_from([10, 5]))
    stem = of_dims("Conv", dims)(3, channels, 3, padding=1)
    head = wrapped(draw, nn.Linear(channels, classes))
    parts = {"stem": stem, "body": body, "head": head}

    def scores(m: Any, x: Tensor) -> Tensor:
        return m.head(m.body(m.stem(x)).flatten(2).mean(2))

    outputs: list[Callable[[Any, Tensor], Any]] = [
        scores,
        lambda m, x: {"scores": scores(m, x)},
        lambda m, x: (scores(m, x), [x]),
        lambda m, x: (scores(m, x), m.extra(x.flatten(2).mean(2))) if m.training else scores(m, x),
    ]
    return Calls(draw(st.sampled_from(outputs)), extra=nn.Linear(3, classes), **parts)


def _changed(draw: Draw, model: nn.Module) -> nn.Module:
    """Another type, mode, or memory format; hooks."""
    dtypes = [torch.float32] * 6 + [torch.float64, torch.bfloat16, torch.float16]
    model.to(draw(st.sampled_from(dtypes)))
    model.train(draw(st.booleans()))
    if draw(st.booleans()):
        for module in list(model.modules())[:: draw(st.integers(1, 4))]:
            module.training = not module.training
    if draw(st.integers(0, 4)) == 0:
        model.requires_grad_(False)
    if draw(st.integers(0, 4)) == 0:
        model.register_forward_hook(lambda module, args, output: None)
    if draw(st.integers(0, 6)) == 0:
        own = model.forward
        model.forward = lambda *args, **kwargs: own(*args, **kwargs)
    return model


@st.composite
def networks(draw: Draw, bad_values: bool = True) -> Network:
    """A small network and a batch for it; the same from the same draws."""
    dims = draw(st.sampled_from([1, 2, 2, 2, 2, 3]))
    channels = draw(st.sampled_from(CHANNELS))
    parts: list[str] = [f"{dims}d"]
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the old weight_norm is deprecated
        torch.manual_seed(draw(st.integers(0, 9)))
        body = nn.Sequential(
            *(_tree(draw, channels, dims, 2, parts) for _ in range(draw(st.integers(1, 3))))
        )
        model = _changed(draw, _headed(draw, body, channels, dims))
        rows = draw(st.sampled_from([1, 2, 3, 70]))
        images = torch.randn(rows, 3, *(SIZE,) * dims).to(next(model.parameters()).dtype)
    if bad_values and draw(st.integers(0, 7)) == 0:
        value = draw(st.sampled_from([float("nan"), float("inf")]))
        images.view(-1)[draw(st.integers(0, images.numel() - 1))] = value
    return Network(model, images, tuple(parts))
