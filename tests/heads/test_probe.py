"""`fit_head` refuses models whose answers are not what it fits."""

import pytest
import torch
from functional_model import Model
from torch import nn

import ghnqat_sdk as gq

LABELS = torch.arange(48) % 3
IMAGES = torch.randn(48, 3, 8, 8, generator=torch.Generator().manual_seed(0))
IMAGES += 1.5 * nn.functional.one_hot(LABELS, 3)[:, :, None, None]


def made(forward, head=None) -> nn.Module:
    """A fake-quantized model that applies `forward` to its head and a map of features."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU())
    layers = {"body": body, "fc": head or nn.Linear(12, 3)}
    return gq.from_float(Model(lambda m, x: forward(m.fc, m.body(x)), **layers))


def places(f):
    return f.flatten(2).mT


def pointwise(**options) -> nn.Module:
    return nn.Conv2d(12, 3, 1, **options)


REFUSED = {
    "of the sum of two calls": lambda fc, f: fc(f.mean((2, 3))) + fc(f.amax((2, 3))),
    "of a stack of calls": lambda fc, f: torch.stack([fc(t) for t in places(f).unbind(1)]).mean(0),
    "largest of places": lambda fc, f: fc(places(f)).amax(1),
    "probabilities of places": lambda fc, f: fc(places(f)).softmax(-1).mean(1),
    "one place": lambda fc, f: fc(places(f))[:, 0],
    "clamped": lambda fc, f: fc(f.mean((2, 3))).clamp(max=1),
    "negative": lambda fc, f: -fc(f.mean((2, 3))),
    "absolute": lambda fc, f: fc(f.mean((2, 3))).abs(),
    "other order": lambda fc, f: fc(f.mean((2, 3))).flip(1),
    "with features": lambda fc, f: fc(f.mean((2, 3))) + 100 * f.mean((2, 3))[:, :3],
    "with a prior": lambda fc, f: fc(f.mean((2, 3))) + torch.tensor([0.3, -0.2, 0.0]),
    "classes grouped": lambda fc, f: fc(f.mean((2, 3)))[:, :2],
}
CONVOLUTIONS = {
    "padded": {"padding": 1},
    "strided": {"stride": 2},
}


def check_refusal(qmodel: nn.Module, message: str, **options) -> None:
    before = {name: x.clone() for name, x in qmodel.state_dict().items()}
    with pytest.raises(gq.ArgumentError, match=message) as caught:
        gq.fit_head(qmodel, [(IMAGES, LABELS)], **options)
    assert "'fc'" in str(caught.value) or "'This model'" in str(caught.value)
    assert all(torch.equal(before[name], x) for name, x in qmodel.state_dict().items())
    assert not qmodel.fc._forward_hooks
    assert not qmodel.fc._forward_pre_hooks
    assert qmodel.training


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_answers_otherwise_than_its_head_is_refused_and_stays_as_it_was(name):
    message = "more than once" if "calls" in name else "does not rank the 3 classes"
    check_refusal(made(REFUSED[name]), message, layers="fc")


@pytest.mark.parametrize("options", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_a_convolution_that_skips_or_adds_places_is_no_classifier(options):
    qmodel = made(lambda fc, f: fc(f).mean((2, 3)), pointwise(**options))
    check_refusal(qmodel, "without stride and padding")


def test_small_batches_do_not_pass_by_chance():
    """Two places, of which the larger score is often that of the larger mean."""
    qmodel = made(lambda fc, f: fc(places(f)[:, :2]).amax(1))
    one_by_one = list(zip(IMAGES.split(1), LABELS.split(1), strict=True))
    gq.calibrate(qmodel, [IMAGES], progress=False)
    with pytest.raises(gq.ArgumentError, match="does not rank"):
        gq.fit_head(qmodel, one_by_one)


def test_a_relu_without_a_bias_to_lift_the_scores_is_refused():
    forward = lambda fc, f: fc(f).relu().mean((2, 3))  # noqa: E731
    check_refusal(made(forward, pointwise(bias=False)), "does not rank")
    gq.fit_head(made(forward, pointwise()), [(IMAGES, LABELS)])


FITTED = {
    "keyword": lambda fc, f: fc(input=f.mean((2, 3))),
    "softmax": lambda fc, f: fc(f.mean((2, 3))).softmax(1),
    "log_softmax": lambda fc, f: fc(f.mean((2, 3))).log_softmax(1),
    "sigmoid": lambda fc, f: fc(f.mean((2, 3))).sigmoid(),
    "temperature": lambda fc, f: fc(f.mean((2, 3))) / 3 + 1,
    "mean of places": lambda fc, f: fc(places(f)).mean(1),
    "single place": lambda fc, f: fc(f.mean((2, 3))[:, None]),
    "in a dict with features": lambda fc, f: {"features": f, "logits": fc(f.mean((2, 3)))},
    "beside other columns": lambda fc, f: torch.cat([f[:, :4, 0, 0], fc(f.mean((2, 3)))], 1),
}


@pytest.mark.parametrize("name", FITTED)
def test_a_model_that_answers_as_its_head_is_fitted(name):
    qmodel = made(FITTED[name])
    report = gq.fit_head(qmodel, [(IMAGES, LABELS)], layers="fc")
    assert report.heads[0].accuracy > 80
    assert not qmodel.fc._forward_hooks


@pytest.mark.parametrize("padding", [0, "same", "valid"])
def test_a_pointwise_convolution_is_fitted(padding):
    qmodel = made(lambda fc, f: fc(f).mean((2, 3)), pointwise(padding=padding))
    assert gq.fit_head(qmodel, [(IMAGES, LABELS)]).accuracy > 80


def test_a_model_in_half_precision_is_fitted():
    qmodel = made(lambda fc, f: fc(places(f)).mean(1).sigmoid()).to(torch.bfloat16)
    assert gq.fit_head(qmodel, [(IMAGES.bfloat16(), LABELS)], layers="fc").accuracy > 80
