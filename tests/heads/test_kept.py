"""Which heads keep the user's values, for which reason, and what is said of them."""

import warnings

import pytest
import torch
from functional_model import Model
from torch import nn

import ghnqat_sdk as gq

IMAGES = torch.empty(2, 3, 8, 8)


def network(head: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), head)


def linear(classes: int, *behind: nn.Module) -> nn.Module:
    return network(
        nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(12, classes),
            *behind,
        )
    )


def by_matrix(classes: int) -> nn.Module:
    weight, bias = (nn.Parameter(torch.zeros(shape)) for shape in ((12, classes), (classes,)))
    return network(Model(lambda m, f: f.mean((2, 3)) @ m.weight + m.bias, weight=weight, bias=bias))


def by_map(classes: int) -> nn.Module:
    return network(nn.Sequential(nn.Conv2d(12, classes, 8), nn.Flatten()))


def scaled(classes: int) -> nn.Module:
    return linear(classes, Model(lambda m, x: x * m.scale, scale=nn.Parameter(torch.ones(()))))


def normed(classes: int) -> nn.Module:
    return linear(classes, nn.BatchNorm1d(classes))


def shared(classes: int) -> nn.Module:
    def forward(m, f):
        return {"aux": m.fc(f.amax((2, 3))).sum(), "scores": m.fc(f.mean((2, 3)))}

    return network(Model(forward, fc=nn.Linear(12, classes)))


def predict(model: nn.Module, small, head: str) -> tuple[dict[str, str], list[str]]:
    """What is kept, and what is warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", gq.RandomHeadWarning)
        qmodel = gq.predict_quantized_params(
            model, hypernetwork=small, example_inputs=IMAGES, head=head
        )
    messages = [str(w.message) for w in caught if w.category is gq.RandomHeadWarning]
    return gq.prediction_report(qmodel).kept, messages


def parameters_of_head(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_parameters() if not name.startswith("0.")}


@pytest.mark.parametrize("classes", [3, 10])
@pytest.mark.parametrize("make", [linear, scaled, normed, shared, by_matrix, by_map])
def test_heads_of_all_kinds_are_kept_on_request(small, make, classes):
    kept, messages = predict(make(classes), small, "keep")
    assert kept == dict.fromkeys(parameters_of_head(make(classes)), "head='keep'")
    assert messages == []


@pytest.mark.parametrize("make", [linear, scaled, normed, shared, by_matrix, by_map])
def test_heads_of_all_kinds_can_be_predicted(small, make):
    assert predict(make(3), small, "predict") == ({}, [])


@pytest.mark.parametrize("make", [linear, scaled, normed, shared])
def test_linear_heads_are_predicted_where_the_classes_are_the_hypernetworks(small, make):
    assert predict(make(10), small, "auto") == ({}, [])
    kept, (message,) = predict(make(3), small, "auto")
    assert set(kept) == parameters_of_head(make(3))
    assert all("3 classes, the hypernetwork's 10" in reason for reason in kept.values())
    assert "3 classes" in message
    assert ("fit_head cannot" in message) == (make is normed)


@pytest.mark.parametrize("classes", [3, 10])
@pytest.mark.parametrize("make", [by_matrix, by_map])
def test_heads_of_other_kinds_are_kept_and_said_so_whatever_their_classes(small, make, classes):
    model = make(classes)
    values = [p.clone() for p in model[2].parameters()]
    kept, (message,) = predict(model, small, "auto")
    assert set(kept) == parameters_of_head(model)
    assert set(kept.values()) == {
        "its head is no linear layer or 1 × 1 convolution; head='predict' predicts it"
    }
    assert "Train it: fit_head cannot" in message
    assert all(map(torch.equal, values, model[2].parameters()))


def several(*classes: int) -> nn.Module:
    def forward(m, f):
        return [head(f.mean((2, 3))) for head in m.children()]

    heads = {f"head{index}": nn.Linear(12, each) for index, each in enumerate(classes)}
    return network(Model(forward, **heads))


def test_all_heads_that_are_kept_are_named(small):
    kept, (message,) = predict(several(3, 4), small, "auto")
    assert set(kept) == parameters_of_head(several(3, 4))
    assert "'2.head0' (3 classes); '2.head1' (4 classes) keep their values" in message
    assert "Train them" in message
    assert "fit" not in message
    _, (message,) = predict(several(2, 3, 4, 5, 6, 7), small, "auto")
    assert "'2.head3' (5 classes); and 2 more keep their values" in message


def test_one_head_of_several_is_to_be_trained(small):
    kept, (message,) = predict(several(3, 10), small, "auto")
    assert set(kept) == {"2.head0.weight", "2.head0.bias"}
    assert "Train it" in message
    assert "fit" not in message


def test_a_backbone_of_features_is_predicted_in_whole(small):
    layers = [nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.ReLU()]
    pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    for after in ([], pooled):
        assert predict(nn.Sequential(*layers, *after), small, "auto") == ({}, [])


def test_a_linear_layer_with_a_scale_behind_it_is_fitted(small):
    torch.manual_seed(0)
    labels = torch.arange(60) % 3
    images = torch.randn(60, 3, 8, 8) + nn.functional.one_hot(labels, 3)[:, :, None, None]
    qmodel = gq.predict_quantized_params(
        scaled(3), hypernetwork=small, calibration=[(images, labels)], head="fit"
    )
    assert (qmodel.eval()(images).argmax(1) == labels).double().mean() > 0.8
