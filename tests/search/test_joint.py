"""The best network and its bits under one budget."""

import re

import pytest
import torch
from torch import nn

import ghnqat_sdk as gq
from ghnqat_sdk.search import joint


def cnn(width: int) -> nn.Module:
    body = [nn.Conv2d(3, width, 3, stride=2), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3))


WEIGHTS = {width: 27 * width + 3 * width for width in (2, 8, 16, 64)}


def searched(small, images, **settings):
    torch.manual_seed(0)  # classifiers stay as they are in what bits are suggested by
    models = [(f"w{width}", cnn(width)) for width in WEIGHTS]
    return gq.search_architectures(models, images, hypernetwork=small, **settings)


def cost(candidate, weights: int) -> float:
    """In bits of weights."""
    if not candidate.mixed:
        return candidate.bits[0] * weights
    width = weights // 30
    return candidate.bits["0"][0] * 27 * width + candidate.bits["5"][0] * 3 * width


def test_each_network_has_the_most_bits_that_the_budget_affords(small, images):
    found = searched(small, images, weight_bytes=WEIGHTS[16] / 2, finalists=0)
    bits = {candidate.name: candidate.bits for candidate in found.candidates}
    assert bits == {"w2": (8, 8), "w8": (8, 8), "w16": (4, 8)}
    assert list(found.beyond) == ["w64"]
    accuracies = [candidate.accuracy for candidate in found.candidates]
    assert accuracies == sorted(accuracies, reverse=True)
    assert found.best == found.candidates[0]


def test_operations_limit_both_bit_widths(small, images):
    macs = 27 * 16 * 9 + 3 * 16
    found = searched(small, images, bit_operations=9 * macs, finalists=0)
    bits = {candidate.name: candidate.bits for candidate in found.candidates}
    assert bits == {"w2": (8, 8), "w8": (4, 4), "w16": (3, 3)}


def test_the_first_have_bits_for_each_layer_within_the_budget_as_well(small, images):
    budget = WEIGHTS[8] * 3 / 8
    found = searched(small, images, weight_bytes=budget, finalists=2)
    mixed = [candidate for candidate in found.candidates if candidate.mixed]
    assert len(mixed) == 2
    for candidate in found.candidates:
        assert cost(candidate, WEIGHTS[int(candidate.name[1:])]) <= 8 * budget
    assert str(found).count("of each layer") == 2
    gq.predict_quantized_params(
        cnn(int(mixed[0].name[1:])), mixed[0].bits, hypernetwork=small
    )  # fmt: skip


def test_what_is_known_is_not_measured_again(small, images, tmp_path):
    path = tmp_path / "known.jsonl"
    first = searched(small, images, weight_bytes=200, results=path)
    lines = path.read_text()
    assert searched(small, images, weight_bytes=200, results=path) == first
    assert path.read_text() == lines


def test_networks_that_fail_are_told_and_the_others_found(small, images):
    models = [("grey", nn.Sequential(nn.Conv2d(1, 4, 3))), ("fine", cnn(4))]
    found = gq.search_architectures(models, images, weight_bytes=1e6, hypernetwork=small)
    assert {candidate.name for candidate in found.candidates} == {"fine"}
    assert "grey: " in str(found)


def test_bits_that_cost_the_same_come_by_what_they_round_least(small, images):
    for pairs in ([(4, 4), (4, 8)], [(4, 8), (4, 4)]):
        found = searched(small, images, weight_bytes=1e4, candidates=pairs, finalists=0)
        assert {candidate.bits for candidate in found.candidates} == {(4, 8)}


def test_names_with_the_signs_of_patterns_are_names(small, images):
    model = nn.Sequential()
    model.add_module("conv[1]", nn.Conv2d(3, 4, 3))
    model.add_module("conv*", nn.Conv2d(4, 4, 3))
    for name, module in (("pool", nn.AdaptiveAvgPool2d(1)), ("flat", nn.Flatten())):
        model.add_module(name, module)
    model.add_module("head", nn.Linear(4, 3))
    found = gq.search_architectures([("a", model)], images, weight_bytes=150, hypernetwork=small)
    assert [candidate.mixed for candidate in found.candidates].count(True) == 1
    assert found.failed == {}


def test_without_bits_for_each_layer_there_are_those_for_all(small, images, monkeypatch):
    def fails(*arguments, **settings):
        raise ZeroDivisionError("of the model")

    monkeypatch.setattr(joint, "suggest_bits", fails)
    found = searched(small, images, weight_bytes=1e4, finalists=1)
    assert len(found.candidates) == len(WEIGHTS)
    assert found.failed == {found.best.name: "no bits for each layer: of the model"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "One budget above 0"),
        ({"weight_bytes": 5, "bit_operations": 5}, "One budget above 0"),
        ({"weight_bytes": 500, "finalists": -1}, "Write finalists=3"),
        ({"weight_bytes": 500, "finalists": True}, "Write finalists=3"),
        ({"weight_bytes": 500, "candidates": [(32, 32)]}, "Write candidates="),
        ({"weight_bytes": 1}, "w2: 120 bits of weights of at most 8; .* Raise it"),
    ],
)
def test_what_cannot_be_searched_is_refused(small, images, settings, message):
    with pytest.raises(gq.ArgumentError) as error:
        searched(small, images, **settings)
    assert re.search(message, str(error.value))
