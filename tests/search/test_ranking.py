"""Networks ranked by what they reach with predicted parameters."""

import copy
import dataclasses
import os
import re

import pytest
import torch
from rankable import Giving, Using, cnn, names
from torch import nn

import ghnqat_sdk as gq
from ghnqat_sdk.search import measuring
from ghnqat_sdk.search.ranking import rank_architectures


def test_networks_come_by_accuracy_with_their_costs(small, images):
    models = [("wide", cnn(16)), ("narrow", cnn(2))]
    report = rank_architectures(models, (4, 8), images, hypernetwork=small)
    accuracies = [network.accuracy for network in report.networks]
    assert accuracies == sorted(accuracies, reverse=True)
    by_name = {network.name: network for network in report.networks}
    assert by_name["wide"].weight_bits == 4 * (16 * 27 + 3 * 16)
    assert by_name["wide"].macs == 16 * 27 * 9 + 3 * 16
    assert by_name["wide"].accuracy > 60


def test_the_models_stay_as_they_are_and_two_runs_agree(small, images):
    model = cnn(4)
    before = [tensor.clone() for tensor in model.state_dict().values()]
    first, second = (
        rank_architectures([("m", model)], (4, 4), images, hypernetwork=small) for _ in range(2)
    )
    assert first == second
    assert all(map(torch.equal, before, model.state_dict().values()))


def test_architectures_of_a_space_are_built_for_the_classes(small, images):
    class Wide:
        key = ("toys", "test", 7)

        def build(self, num_classes: int) -> nn.Module:
            return cnn(8, num_classes)

    report = rank_architectures([Wide()], (4, 4), images, hypernetwork=small)
    assert names(report.networks) == "toys/test/7"


def where_measured(scores: torch.Tensor) -> torch.Tensor:
    if len(scores) == 30:  # of the images that are measured with
        raise IndexError("no such thing\nat all")
    return scores


def test_scores_are_found_among_what_a_network_returns(small, images):
    torch.manual_seed(0)
    plain = Giving(lambda scores: scores)
    models = [("plain", plain)]
    for name, wrapped in {
        "dict": lambda scores: {
            "logits": scores,
            "loss": scores.sum(),
            "wide": scores.repeat(1, 2),
        },
        "places": lambda scores: scores[:, :, None, None],
    }.items():
        models.append((name, copy.deepcopy(plain)))
        models[-1][1].wrapped = wrapped
    report = rank_architectures(models, (4, 4), images, hypernetwork=small)
    assert len(report.networks) == 3
    assert len({network.accuracy for network in report.networks}) == 1


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (
            Giving(lambda scores: {"a": scores, "b": -scores}),
            r"\[\(30, 3\), \(30, 3\)\]; expected one",
        ),
        (Giving(lambda scores: scores, classes=5), r"\[\(30, 5\)\]; expected .* for the 3 classes"),
        (Giving(where_measured), r"^IndexError: no such thing$"),
    ],
)
def test_a_network_without_scores_of_the_classes_fails_alone(small, images, model, reason):
    models = [("first", cnn(4)), ("bad", model), ("last", cnn(2))]
    report = rank_architectures(models, (4, 4), images, hypernetwork=small)
    assert sorted(network.name for network in report.networks) == ["first", "last"]
    assert re.search(reason, report.failed["bad"])


def test_scores_that_are_not_finite_are_no_accuracy(familiar, images):
    model = Giving(lambda scores: scores / 0 * 0)
    report = rank_architectures([("bad", model)], (4, 4), images, hypernetwork=familiar)
    assert report.networks == () and "scores are not finite" in report.failed["bad"]


def test_two_processes_find_what_one_finds(images):
    models = [("a", cnn(4)), ("b", cnn(8))]
    torch.manual_seed(0)
    one, two = (rank_architectures(models, (4, 4), images, processes=n) for n in (1, 2))
    assert [x.name for x in one.networks] == [x.name for x in two.networks]
    for first, second in zip(one.networks, two.networks, strict=True):
        assert abs(first.accuracy - second.accuracy) < 10


def test_a_network_that_cannot_be_measured_does_not_stop_the_others(small, images):
    models = [("grey", nn.Sequential(nn.Conv2d(1, 4, 3))), ("fine", cnn(4))]
    report = rank_architectures(models, (4, 4), images, hypernetwork=small)
    assert names(report.networks) == "fine"
    assert "grey" in report.failed
    assert "grey: " in str(report)


def test_networks_beyond_the_budget_are_not_predicted(small, images, monkeypatch):
    predicted, predict = [], measuring.predict_quantized_params

    def noted(model, *arguments, **settings):
        predicted.append(model)
        return predict(model, *arguments, **settings)

    monkeypatch.setattr(measuring, "predict_quantized_params", noted)
    models = [("wide", cnn(16)), ("narrow", cnn(2))]
    report = rank_architectures(models, (4, 4), images, hypernetwork=small, budget={"macs": 1000})
    assert names(report.networks) == names(report.front()) == "narrow"
    assert report.beyond == {"wide": "3,936 multiply-accumulates of at most 1,000"}
    assert "wide: 3,936" in str(report)
    assert [model[0].out_channels for model in predicted] == [2]


def test_layers_may_have_bits_of_their_own(small, images):
    models = [("a", cnn(4))]
    bits = {"0": (8, 8), "*": (2, 4)}
    (network,) = rank_architectures(models, bits, images, hypernetwork=small).networks
    assert network.weight_bits == 8 * 4 * 27 + 2 * 3 * 4
    with pytest.raises(gq.ArgumentError, match=r"bits=\(1, 4\)"):
        rank_architectures(models, bits | {"*": (1, 4)}, images, hypernetwork=small)


class Ending(nn.Module):
    """Ends the process that it runs in, as the operating system does with those of too much
    memory."""

    def forward(self, x):
        os._exit(1)


def test_a_process_that_ends_takes_one_network_with_it(small, images):
    """A lambda cannot be sent to a process, and is measured all the same."""
    models = [("fine", cnn(4)), ("lambda", Giving(lambda scores: scores)), ("ends", Ending())]
    report = rank_architectures(models, (4, 4), images, hypernetwork=small, processes=2)
    assert {network.name for network in report.networks} == {"fine", "lambda"}
    assert "its process ended" in report.failed["ends"]


def test_random_numbers_are_those_of_the_network_alone(small, images):
    class Space:
        key = ("space", "test", 0)

        def build(self, num_classes: int) -> nn.Module:
            model = Using(lambda x, y: x + y * torch.randn_like(x), 5.0)
            model.body = cnn(8, num_classes)
            return model

    before = torch.get_rng_state()
    first, second = (
        rank_architectures([Space()], (4, 4), images, hypernetwork=small) for _ in range(2)
    )
    assert first == second
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_of_another_precision_is_measured_in_float32(small, images):
    models = [("float32", cnn(4))]
    for dtype in (torch.float64, torch.bfloat16):
        models.append((str(dtype), copy.deepcopy(models[0][1]).to(dtype)))
    report = rank_architectures(models, (4, 4), images, hypernetwork=small)
    assert len({network.accuracy for network in report.networks}) == 1
    assert models[1][1][0].weight.dtype == torch.float64


def test_weights_count_once_and_those_in_float_in_full(small, images):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.body = nn.Conv2d(3, 3, 3, padding=1), cnn(4)
            self.second = nn.Conv2d(3, 3, 3, padding=1)
            self.second.weight = self.first.weight
            self.scale = nn.Parameter(torch.ones(3, 1, 1))

        def forward(self, x):
            return self.body(self.second(self.first(x)) * self.scale)

    report = rank_architectures([("a", Tied())], (4, 4), images, hypernetwork=small)
    assert report.networks[0].weight_bits == 4 * (3 * 27 + 4 * 27 + 3 * 4) + 32 * 3


def test_heads_are_fitted_to_as_many_classes_of_other_names(familiar, images, monkeypatch):
    heads, predict = [], measuring.predict_quantized_params

    def noted(*arguments, **settings):
        heads.append(settings["head"])
        return predict(*arguments, **settings)

    monkeypatch.setattr(measuring, "predict_quantized_params", noted)
    for classes in (images.classes, images.classes[::-1]):
        named = dataclasses.replace(images, classes=classes)
        rank_architectures([("a", cnn(4))], (4, 4), named, hypernetwork=familiar)
    assert heads == ["auto", "fit"]
