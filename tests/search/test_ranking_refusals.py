"""What cannot be ranked is told before anything is measured."""

import dataclasses

import pytest
import torch
from rankable import cnn
from torch import nn

import ghnqat_sdk as gq
from ghnqat_sdk.search.ranking import rank_architectures


@pytest.mark.parametrize(
    "budget", [5, {"mac": 5}, {"macs": 0}, {"macs": "5"}, {"macs": True}, {"macs": float("nan")}]
)
def test_what_is_no_budget_is_refused(small, images, budget):
    with pytest.raises(gq.ArgumentError, match=r"Write budget=\{'macs': 20e6\}"):
        rank_architectures([("a", cnn(2))], (4, 4), images, hypernetwork=small, budget=budget)


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([], "0 networks"),
        ([("a", cnn(2)), ("a", cnn(2))], "2 networks with 1 names"),
        ([cnn(2)], r"expected a pair \(name, nn.Module\)"),
        ([("a", "resnet18")], r"expected a pair \(name, nn.Module\)"),
    ],
)
def test_what_is_no_list_of_networks_is_refused(small, images, models, message):
    with pytest.raises(gq.ArgumentError, match=message):
        rank_architectures(models, (4, 4), images, hypernetwork=small)


def test_validation_of_other_classes_is_refused(small, images):
    for classes in (images.classes[::-1], ("0", "1", "2", "3")):
        other = dataclasses.replace(images, classes=classes)
        with pytest.raises(gq.ArgumentError, match="expected the same in the same order"):
            rank_architectures(
                [("a", cnn(2))], (4, 4), images, validation=other, hypernetwork=small
            )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"validation": torch.zeros(4, 3, 8, 8)}, "validation is a Tensor; expected an ImageSet"),
        ({"processes": 0}, "Write processes=2"),
        ({"processes": "2"}, "Write processes=2"),
        ({"results": "none/x.jsonl"}, "no file in a folder that is there"),
        ({"results": 5}, "results='5' is no file"),
        ({"models": None}, "models is a NoneType; expected pairs"),
        ({"models": [("a", nn.Linear)]}, "given as .*Linear.*; expected a pair"),
    ],
)
def test_arguments_of_another_kind_are_refused(small, images, settings, message):
    arguments = {"models": [("a", cnn(2))], "bits": (4, 4), "images": images, **settings}
    with pytest.raises(gq.ArgumentError, match=message):
        rank_architectures(**arguments, hypernetwork=small)


def test_too_few_images_to_hold_any_out_are_refused(small, images):
    with pytest.raises(gq.ArgumentError, match="2 images are too few"):
        rank_architectures([("a", cnn(2))], (4, 4), images.sample(2, 0), hypernetwork=small)


def test_images_without_labels_are_refused(small):
    with pytest.raises(gq.ArgumentError, match=r"ImageSet\.of"):
        rank_architectures([("a", cnn(2))], (4, 4), torch.zeros(4, 3, 8, 8), hypernetwork=small)
