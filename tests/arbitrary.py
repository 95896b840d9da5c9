"""Arbitrary arguments for public functions and commands, and what a call must leave alone."""

from __future__ import annotations

import gc
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import ghnqat_sdk as gq
from ghnqat_sdk.errors import ReplacedWeightsWarning


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.conv(x) + self.conv(y)


class Raises(nn.Module):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.conv, self.error = nn.Conv2d(3, 4, 3), error

    def forward(self, x: Tensor) -> Tensor:
        raise self.error


class ReadsValues(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.dropout(self.norm(x))
        return x if x.sum() > 0 else -x


def convolutional(*more: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), *more)


def classifier(classes: int = 10) -> nn.Sequential:
    return convolutional(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, classes))


def with_gradients() -> nn.Module:
    model = classifier()
    model(torch.rand(2, 3, 8, 8)).sum().backward()
    return model


def sharing() -> nn.Module:
    layer = nn.Conv2d(3, 3, 3, padding=1)
    return nn.Sequential(layer, nn.Dropout(), layer, nn.PReLU())


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        return torch.jit.script(nn.ReLU())


MODELS: dict[str, Callable[[], nn.Module]] = {
    "classifier": classifier,
    "evaluated": lambda: classifier(7).eval(),
    "with gradients": with_gradients,
    "frozen": lambda: classifier().requires_grad_(False),
    "half": lambda: classifier().bfloat16(),
    "double": lambda: classifier(1000).double(),
    "on meta": lambda: classifier().to("meta"),
    "mixed modes": lambda: convolutional(nn.Dropout().eval()),
    "sharing": sharing,
    "linear": lambda: nn.Sequential(nn.Linear(5, 4), nn.GELU(), nn.Linear(4, 2)),
    "one dimension": lambda: nn.Sequential(
        nn.Conv1d(2, 4, 3), nn.GroupNorm(2, 4), nn.ConvTranspose1d(4, 2, 2)
    ),
    "attention": lambda: nn.MultiheadAttention(8, 2),
    "lazy": lambda: nn.Sequential(nn.LazyConv2d(4, 3)),
    "scripted": scripted,
    "recurrent": lambda: nn.LSTM(4, 4),
    "embedding": lambda: nn.Embedding(4, 4),
    "two inputs": TwoInputs,
    "reads values": ReadsValues,
    "raises": lambda: Raises(KeyError("x")),
    "raises nothing said": lambda: Raises(AssertionError()),
    "without forward": nn.Module,
    "without parameters": nn.ReLU,
    "empty": nn.Sequential,
    "quantized": lambda: gq.predict_quantized_params(classifier()),
}


def junk() -> st.SearchStrategy[Any]:
    """What somebody might pass by mistake."""
    shapes = st.lists(st.integers(0, 9), max_size=5)
    simple = st.one_of(
        st.none(), st.booleans(), st.integers(-3, 70), st.floats(), st.text(max_size=8),
        st.binary(max_size=4),
        st.sampled_from([object(), int, torch.float32, Path("nowhere"), {"x": 1}, slice(3)]),
        st.sampled_from([nn.ReLU(), "a/b"]),
        shapes.map(torch.zeros), shapes.map(lambda shape: torch.full(shape, float("nan"))),
    )  # fmt: skip
    named = st.dictionaries(st.text(max_size=3), simple, max_size=2)
    return st.one_of(simple, st.lists(simple, max_size=3), st.tuples(simple, simple), named)


def mostly(*right: Any) -> st.SearchStrategy[Any]:
    return st.one_of(st.sampled_from(right), st.sampled_from(right), junk())


def named(values: dict[str, Any]) -> list[Named]:
    return [Named(name, value) for name, value in values.items()]


def value(given: Any) -> Any:
    return given.value if isinstance(given, Named) else given


class Named:
    """A value that failing cases show by name."""

    def __init__(self, name: str, value: Any) -> None:
        self.name, self.value = name, value

    def __repr__(self) -> str:
        return self.name


IMAGES = {
    f"{n} of {s} × {s}": torch.rand(n, 3, s, s) for n, s in ((1, 8), (2, 8), (70, 8), (2, 32))
}


SMALL = IMAGES["2 of 8 × 8"]
TWO = {"x": SMALL, "y": IMAGES["1 of 8 × 8"]}
BATCHES = {
    "many": [*IMAGES.values()],
    "few": [SMALL, IMAGES["70 of 8 × 8"]],
    "named": [TWO, TWO],
    "none": [],
}


EXAMPLES = {"two inputs": (SMALL, SMALL), "linear": torch.rand(2, 5)}


BITS = (
    (4, 4),
    (2, 2),
    (8, 32),
    (32, 32),
    [3, 5],
    {"*": (4, 4)},
    {"0": (8, 8), "*": (2, 2)},
    {"nowhere": (4, 4)},
)


models = st.sampled_from(sorted(MODELS))


def state(of: Any) -> Any:
    """Everything about an argument that a call must leave alone."""
    if not isinstance(of, nn.Module):
        return None
    if isinstance(of, torch.jit.ScriptModule):
        return of.training
    parts: list[Any] = []
    for name, module in of.named_modules():
        hooks = sum(len(v) for k, v in vars(module).items() if k.endswith("_hooks"))
        parts.append((name, type(module), module.training, hooks, sorted(vars(module))))
    for name, tensor in (*of.named_parameters(), *of.named_buffers()):
        if isinstance(tensor, nn.parameter.UninitializedTensorMixin):
            parts.append((name, tensor.requires_grad))
            continue
        kept = None if tensor.is_meta else tensor.detach().clone()
        grad = None if tensor.grad is None else tensor.grad.clone()
        parts.append(
            (
                name,
                id(tensor),
                tensor.requires_grad,
                tensor.dtype,
                tensor.stride(),
                Same(kept),
                Same(grad),
            )
        )
    return parts


class Same:
    """A tensor that compares by its bits."""

    def __init__(self, tensor: Tensor | None) -> None:
        self.tensor = tensor

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Same)
        if self.tensor is None or other.tensor is None:
            return self.tensor is other.tensor
        return torch.equal(self.tensor.nan_to_num(1e9), other.tensor.nan_to_num(1e9))

    __hash__ = None  # type: ignore[assignment]


def surroundings() -> Any:
    return (
        Same(torch.get_rng_state()),
        random.getstate(),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_num_threads(),
        gc.isenabled(),
    )


def explained(error: gq.GhnqatError) -> None:
    """A message with something to hold on to."""
    assert len(str(error)) > 20


def check(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call it; the result, or None where it raised one of our errors. Models and surroundings are
    as before."""
    handed = [v for v in (*args, *kwargs.values()) if isinstance(v, nn.Module)]
    before, around, result = [state(v) for v in handed], surroundings(), None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gq.UncalibratedWarning)
        warnings.simplefilter("ignore", ReplacedWeightsWarning)
        try:
            result = function(*args, **kwargs)
        except gq.GhnqatError as error:
            explained(error)
    assert [state(v) for v in handed] == before
    assert surroundings() == around
    return result
