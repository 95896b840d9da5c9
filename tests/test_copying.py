import copy
import functools
import threading
import types
import weakref
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from functional_model import Model
from torch import Tensor, nn

from ghnqat_sdk.copying import copy_module
from ghnqat_sdk.errors import ArgumentError

IMAGES = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def changed(model: nn.Module) -> nn.Module:
    """A copy whose convolutions give zeros."""
    twin = copy_module(model)
    for module in twin.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data.zero_()
            module.bias.data.zero_()
    return twin


class Child(nn.Module):
    """Runs the convolution of its parent, which it knows by a weak reference."""

    def __init__(self, parent: nn.Module, proxy: bool) -> None:
        super().__init__()
        vars(self)["parent"] = weakref.proxy(parent) if proxy else weakref.ref(parent)

    def forward(self, x: Tensor) -> Tensor:
        parent = self.parent() if isinstance(self.parent, weakref.ref) else self.parent
        return parent.conv(x)


class Parent(nn.Module):
    def __init__(self, proxy: bool) -> None:
        super().__init__()
        self.conv, self.child = nn.Conv2d(3, 4, 3), Child(self, proxy)

    def forward(self, x: Tensor) -> Tensor:
        return self.child(x)


def closed_over() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    own = model.forward
    model.forward = lambda x: own(x) + model[0](x)
    return model


def with_a_lambda() -> nn.Module:
    model = Model(lambda m, x: m.steps["conv"](x), conv=nn.Conv2d(3, 4, 3))
    model.steps = {"conv": lambda x: model.conv(x)}
    return model


def in_a_notebook(source: str) -> nn.Module:
    """A model whose forward is replaced by a function in whose file it has a global name."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    names = {"model": model, "plain": model.forward, "F": F}
    exec(source, names)
    model.forward = names["scaled"]
    return model


GLOBALS = [
    "def scaled(x): return plain(x * 2 - 1)",
    "def scaled(x): return model[0](x)",
    "def scaled(x): return F.conv2d(x, model[0].weight)",
    "def scaled(x): return sum([plain(y) for y in [x, x]])",
    "def helper(x): return plain(x)\ndef scaled(x): return helper(x) if x.ndim else scaled",
]


def with_a_default() -> nn.Module:
    model = Model(lambda m, x: m.first(x) + m.second(x), conv=nn.Conv2d(3, 4, 3))
    model.first = lambda x, conv=model.conv: conv(x)
    model.second = lambda x, *, conv=model.conv: conv(x)
    return model


def with_a_tensor() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    weight = model[0].weight
    model.forward = lambda x: F.conv2d(x, weight)
    return model


def with_a_bound_method() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    model.forward = types.MethodType(lambda self, x: 2 * self[0](x), model)
    return model


def with_a_plain_list() -> nn.Module:
    model = Model(lambda m, x: m.blocks[0][0](x), conv=nn.Conv2d(3, 4, 3))
    model.blocks = [(model.conv,)]
    return model


def compiled() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    model.compile(backend="eager")
    return model


@pytest.mark.parametrize(
    "make",
    [
        lambda: Parent(proxy=False),
        lambda: Parent(proxy=True),
        closed_over,
        with_a_lambda,
        *(functools.partial(in_a_notebook, source) for source in GLOBALS),
        with_a_default,
        with_a_tensor,
        with_a_bound_method,
        with_a_plain_list,
        compiled,
    ],
)
def test_a_copy_runs_its_own_layers(make):
    model = make()
    expected = model(IMAGES).detach()
    assert not changed(model)(IMAGES).any()
    torch.testing.assert_close(model(IMAGES), expected)
    torch.testing.assert_close(copy_module(model)(IMAGES), expected)


def test_shared_modules_and_tied_weights_are_shared_in_the_copy():
    conv = nn.Conv2d(3, 3, 1)
    model = nn.Sequential(conv, nn.Conv2d(3, 3, 1), conv)
    model[1].weight = conv.weight
    twin = copy_module(model)
    assert twin[0] is twin[2]
    assert twin[1].weight is twin[0].weight
    assert twin[0].weight is not conv.weight


@dataclass
class Cache:
    """As people keep features."""

    last: Tensor | None = None
    lock: object = None
    seen: list[Tensor] = field(default_factory=list)


def remembering() -> nn.Module:
    """A model with a tensor that has a history in a list, in a dict, and in an object."""
    model = Model(lambda m, x: m.conv(x), conv=nn.Conv2d(3, 4, 3))
    features = model(IMAGES)
    model.features, model.by_name, model.cache = [features], {"x": features}, Cache(features)
    return model


def test_tensors_with_a_history_are_copied_without_it():
    model = remembering()
    twin = copy_module(model)
    for found in (twin.features[0], twin.by_name["x"], twin.cache.last):
        assert torch.equal(found, model.features[0])
        assert found.is_leaf
        assert found is not model.features[0]
    assert model.features[0].grad_fn is not None


def test_what_cannot_be_copied_is_refused_by_name_or_shared_alone():
    model = remembering()
    model.cache.lock = threading.Lock()
    with pytest.raises(ArgumentError, match=r"Cache\.lock cannot be copied"):
        copy_module(model)
    twin = copy_module(model, share=True)
    assert twin.cache is not model.cache
    assert twin.cache.lock is model.cache.lock


class Locked(nn.Module):
    """Says itself how it is copied."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lock = nn.Conv2d(3, 4, 3), threading.Lock()

    def __getstate__(self) -> dict:
        return {k: v for k, v in vars(self).items() if k != "lock"}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self.lock = threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        with self.lock:
            return self.conv(x)


def test_a_class_that_says_how_it_is_pickled_is_copied_so():
    model = nn.Sequential(Locked())
    twin = copy_module(model)
    assert twin[0].lock is not model[0].lock
    assert torch.equal(twin(IMAGES), model(IMAGES))


def test_generators_go_on_on_their_own():
    model = Model(lambda m, x: x + torch.rand(1, generator=m.generator))
    model.generator = torch.Generator().manual_seed(3)
    twin = copy_module(model)
    assert torch.equal(twin(IMAGES), model(IMAGES))
    twin(IMAGES)
    assert not torch.equal(twin(IMAGES), model(IMAGES))


def test_python_modules_and_functions_are_no_part_of_a_model():
    model = Model(lambda m, x: m.functional.relu(m.activation(x)))
    model.functional, model.activation = F, torch.tanh
    assert torch.equal(copy_module(model)(IMAGES), model(IMAGES))


def test_functions_of_one_file_share_their_globals_in_the_copy_as_well():
    model = in_a_notebook(
        "count = 0\ndef scaled(x):\n  global count\n  count += 1\n  return plain(x)"
    )
    names = model.forward.__globals__
    exec("def counted():\n  model\n  return count", names)
    model.counted = names["counted"]
    twin = copy_module(model)
    twin(IMAGES)
    assert (twin.counted(), model.counted()) == (1, 0)


def test_functions_that_know_nothing_of_the_model_are_shared():
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    model.activation, model.change = F.gelu, changed
    twin = copy_module(model)
    assert twin.activation is F.gelu
    assert twin.change is changed


def test_hooks_that_collect_go_on_collecting_in_the_same_place():
    seen: list[Tensor] = []
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    model[0].register_forward_hook(lambda module, args, output: seen.append(output))
    copy_module(model)(IMAGES)
    assert len(seen) == 1


def test_a_copy_is_what_deepcopy_gives():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.MultiheadAttention(4, 2)).eval()
    model[0].requires_grad_(False)
    ours, theirs = copy_module(model), copy.deepcopy(model)
    for one, other in zip(ours.modules(), theirs.modules(), strict=True):
        assert type(one) is type(other)
        assert list(vars(one)) == list(vars(other))
        assert one.training is other.training
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)
        assert one.requires_grad is other.requires_grad


def test_a_set_of_modules_is_one_of_copies():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    model.chosen = {model[0], "name", ("a", 1)}
    twin = copy_module(model)
    assert twin.chosen == {twin[0], "name", ("a", 1)}
    assert model.chosen == {model[0], "name", ("a", 1)}
    assert twin[0]._non_persistent_buffers_set is not model[0]._non_persistent_buffers_set
