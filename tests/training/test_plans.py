"""Plans of small modules, each with something that a plan treats in a way of its own."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from module_route import agrees, drawn_parameters, images, relative, setting
from torch import Tensor, nn

from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.training import compute
from ghnqat_sdk.training.plan import ForwardPlan


class Given(nn.Module):
    """Layers, and what is done with them; the named ones end a block."""

    def __init__(
        self, forward: Callable[..., Tensor], ends: tuple[str, ...] = (), **layers: nn.Module
    ) -> None:
        super().__init__()
        self.ends, self.compute = ends, forward
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.scale = nn.Parameter(torch.ones(8, 1, 1))
        self.classifier = nn.Linear(128, 10)

    def block_ends(self) -> list[nn.Module]:
        return [self.get_submodule(name) for name in self.ends]

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.compute(self, x), 4)
        return self.classifier(x.flatten(1)) + 0 * self.scale.sum()


def conv(inputs: int = 3, outputs: int = 8, kernel: int = 3, **options) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, **{"padding": kernel // 2, "bias": False} | options)


def inner(**options) -> nn.Conv2d:
    return conv(8, 8, **options)


def one_after_another(*names: str) -> Callable[..., Tensor]:
    def forward(self: Given, x: Tensor) -> Tensor:
        for name in names:
            x = self.get_submodule(name)(x)
        return x

    return forward


def norm_and(**more: nn.Module) -> dict[str, nn.Module]:
    return {"a": conv(), "norm": nn.BatchNorm2d(8), **more}


def chain(ends: tuple[str, ...] = (), **more: nn.Module) -> Given:
    layers = norm_and(**more)
    return Given(one_after_another(*layers), ends, **layers)


class SameConv(nn.Conv2d):
    """A class of a user's own."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)


class OwnNorm(nn.BatchNorm2d):
    """One more."""


class Standardized(nn.Conv2d):
    """Computes with another weight than its own."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


class Doubled(nn.BatchNorm2d):
    """Does more than batch norm."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


MODULES = {
    "an input that two layers read": Given(
        lambda self, x: self.b(y := self.norm(self.a(x))) + self.c(y),
        **norm_and(b=inner(), c=inner()),
    ),
    "a norm that a layer and a sum read": Given(
        lambda self, x: (y := self.norm(self.a(x))) + self.b(y), **norm_and(b=inner())
    ),
    "an activation that a layer and a sum read": Given(
        lambda self, x: (y := F.relu(self.norm(self.a(x)))) + self.b(y), **norm_and(b=inner())
    ),
    "a norm that two activations read": Given(
        lambda self, x: self.b(F.relu(y := self.norm(self.a(x)))) + self.c(F.relu6(y)),
        **norm_and(b=inner(), c=inner()),
    ),
    "an activation in place": chain(relu=nn.ReLU(inplace=True), b=inner()),
    "an activation that clips above": chain(relu=nn.ReLU6(), b=inner()),
    "an activation that does not clip": chain(act=nn.Hardswish(), b=inner()),
    "activations as functions": Given(
        lambda self, x: self.c(torch.relu(self.norm2(self.b(self.norm(self.a(x)).relu())))),
        **norm_and(b=inner(), norm2=nn.BatchNorm2d(8), c=inner()),
    ),
    "an activation without a norm": Given(
        lambda self, x: self.b(F.relu(self.a(x))), a=conv(bias=True), b=inner(bias=True)
    ),
    "two norms in a row": chain(norm2=nn.BatchNorm2d(8), relu=nn.ReLU(), b=inner()),
    "a norm without parameters": chain(b=inner(), norm2=nn.BatchNorm2d(8, affine=False), c=inner()),
    "a norm with another epsilon": chain(b=inner(), norm2=nn.BatchNorm2d(8, eps=0.5), c=inner()),
    "other norms": chain(
        b=inner(), group=nn.GroupNorm(2, 8), c=inner(), instance=nn.InstanceNorm2d(8, affine=True)
    ),
    "pooling before a layer": chain(relu=nn.ReLU(), pool=nn.AvgPool2d(2), b=inner()),
    "a pixel": chain(pool=nn.AdaptiveAvgPool2d(1), b=inner(bias=True), c=inner(kernel=1)),
    "a pixel and a wide kernel": chain(
        pool=nn.AdaptiveAvgPool2d(1),
        b=inner(kernel=5, stride=2),
        c=inner(kernel=3, padding=2, dilation=2),
        d=inner(kernel=3, padding=2),
    ),
    "a depthwise convolution with a bias": chain(b=inner(groups=8, bias=True, stride=2)),
    "a depthwise convolution of the same size": chain(b=inner(groups=8, padding="same")),
    "a grouped convolution": chain(b=inner(groups=2), c=conv(8, 8, 4, stride=2)),
    "padding that is not zeros": chain(
        b=inner(padding_mode="circular"), c=inner(groups=8, padding_mode="reflect")
    ),
    "a parameter of its own": Given(
        lambda self, x: self.b(self.scale * self.norm(self.a(x))), **norm_and(b=inner())
    ),
    "a norm of features": Given(
        lambda self, x: self.c(self.norm1(self.b(self.a(x).mean((2, 3)))))[:, :, None, None],
        a=conv(),
        b=nn.Linear(8, 6),
        norm1=nn.BatchNorm1d(6),
        c=nn.Linear(6, 8),
    ),
    "concatenation and shuffling": Given(
        lambda self, x: self.b(torch.cat(self.norm(self.a(x)).chunk(2, dim=1)[::-1], dim=1)),
        **norm_and(b=inner()),
    ),
    "half of the channels, by a slice and by keywords": Given(
        lambda self, x: self.b(
            torch.stack(tensors=self.norm(self.a(x))[:, :4].split(2, dim=1)).sum(0)
        ),
        **norm_and(b=conv(2, 8)),
    ),
    "images behind an identity and padding": Given(
        lambda self, x: self.b(self.norm(self.a(self.pad(self.nothing(x)))).relu()),
        nothing=nn.Identity(),
        pad=nn.ZeroPad2d(1),
        **norm_and(b=inner()),
    ),
    "a strided branch of a stem": Given(
        lambda self, x: self.norm(self.a(x)) + self.norm2(self.b(x)),
        a=conv(stride=2),
        norm=nn.BatchNorm2d(8),
        b=conv(kernel=1, stride=2),
        norm2=nn.BatchNorm2d(8),
    ),
    "strided layers of one position": chain(
        b=inner(kernel=1, stride=2), c=inner(kernel=1, stride=(1, 2), bias=True, groups=2)
    ),
    "layers and norms of classes of one's own": chain(
        b=SameConv(8, 8), norm2=OwnNorm(8), relu=nn.ReLU(), c=SameConv(8, 8)
    ),
    "an input by its name": Given(lambda self, x: self.norm(self.a(input=x)), **norm_and()),
    "a convolution as its last layer": chain(b=inner()),
    "a block that ends with a norm": chain(("norm",), relu=nn.ReLU(), b=inner()),
    "a block that ends with an activation": chain(("relu",), relu=nn.ReLU(), b=inner()),
    "a block that ends with a layer": chain(
        ("b", "norm2"), b=inner(), norm2=nn.BatchNorm2d(8), c=inner()
    ),
}


@pytest.mark.parametrize("bits", [(32, 32), (4, 4), (4, 32)], ids=str)
@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_a_plan_does_what_the_module_does(module, bits):
    assert agrees(module, setting(bits), 1e-3, count=6)


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_every_module_runs_in_half_precision(monkeypatch, module):
    monkeypatch.setattr(compute, "has_bfloat16", lambda: True)
    parameters, x = drawn_parameters(module), images(4)
    exact = setting((32, 32))
    half = exact._replace(compute=exact.compute.model_copy(update={"dense": "bfloat16"}))
    scores, expected = (ForwardPlan(module).run(parameters, x, how)[0] for how in (half, exact))
    assert scores.dtype == torch.float32
    assert relative(scores, expected) < 0.1


def test_a_rounded_block_is_tapped_before_it_is_rounded():
    module = MODULES["a block that ends with an activation"]
    _, (tap,) = ForwardPlan(module).run(drawn_parameters(module), images(2), setting((2, 2)))
    assert len(tap.unique()) > 4


def test_blocks_are_tapped_in_the_order_that_the_module_gives():
    module = Given(
        one_after_another("a", "b", "c"), ("c", "a"), a=conv(), b=inner(stride=2), c=inner(stride=2)
    )
    _, taps = ForwardPlan(module).run(drawn_parameters(module), images(2), setting((32, 32)))
    assert [tap.shape[-1] for tap in taps] == [8, 32]


def test_a_plan_runs_on_any_values_of_the_parameters():
    module = MODULES["two norms in a row"]
    plan, x = ForwardPlan(module), images(2)
    parameters = drawn_parameters(module)
    doubled = {name: 2 * value for name, value in parameters.items()}
    one, other = (plan.run(values, x, setting((32, 32)))[0] for values in (parameters, doubled))
    assert relative(one, other) > 0.1
    assert torch.equal(plan.run(parameters, x, setting((32, 32)))[0], one)


REFUSED = {
    "a transposed convolution": nn.ConvTranspose2d(8, 8, 3),
    "a forward of its own": Standardized(8, 8, 3),
    "a weight that is made": nn.utils.parametrizations.spectral_norm(nn.Conv2d(8, 8, 3)),
    "a norm with a forward of its own": Doubled(8),
}


@pytest.mark.parametrize("layer", REFUSED.values(), ids=REFUSED)
def test_what_no_step_computes_is_refused(layer):
    kind = type(layer).__name__
    with pytest.raises(ArgumentError, match=rf"the {kind} 'b'.* Write (one|nn\.)"):
        ForwardPlan(chain(b=layer))
