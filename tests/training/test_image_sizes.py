"""Runs on images of other sizes than spaces are made for: networks that do not take them are
passed over, and counted."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn
from toys import Toy, ToyNet, Toys

from ghnqat_sdk.data import load_images
from ghnqat_sdk.errors import ArgumentError, TraceError
from ghnqat_sdk.training.prepared import PreparedNetworks, network_for
from ghnqat_sdk.training.shares import CustomShare
from ghnqat_sdk.training.trainer import Trainer
from ghnqat_sdk.training.validation import Validation


class Reading(ToyNet):
    """Its classifier reads so many pixels."""

    def __init__(self, side: int, *arguments) -> None:
        super().__init__(*arguments)
        width = self.classifier.in_features
        self.classifier = nn.Linear(width * side**2, self.classifier.out_features)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.classifier(x.flatten(1))


class ForKnownSize(Toy):
    """Where its index is even, for images of 32 pixels alone."""

    side = 8

    def build(self, num_classes: int = 10) -> nn.Module:
        if self.index % 2:
            return super().build(num_classes)
        return Reading(self.side, self.width, self.layers, self.norm, num_classes)


class ForNoSize(ForKnownSize):
    side = 5


class Mixed(Toys):
    def __getitem__(self, index: int) -> Toy:
        return ForKnownSize(self.split, index)


class AllForKnownSize(Toys):
    def __getitem__(self, index: int) -> Toy:
        return ForKnownSize(self.split, 2 * index)


def at(tiny, side: int, space: type):
    share = CustomShare(factory=f"{space.__module__}.{space.__name__}")
    data = tiny.data.model_copy(update={"size": side})
    return tiny.model_copy(update={"networks": (share,), "data": data})


@pytest.mark.parametrize("side", [24, 48])
def test_networks_for_other_sizes_are_passed_over_and_counted(tiny, data, side):
    config = at(tiny, side, Mixed)
    train = load_images(data, "train", side)
    trainer = Trainer(config, train)
    drawn = [network.draw for report in trainer.steps(6) for network in report.networks]
    assert drawn
    assert all(draw.architecture.key[2] % 2 for draw in drawn)
    progress = trainer.progress
    assert progress.networks == len(drawn)
    assert progress.skipped_networks == 6 * config.sampling.meta_batch - len(drawn) > 0
    validation = Validation(config, load_images(data, "val", side))
    assert [architecture.key[2] for architecture in validation.architectures] == [1]


def test_a_step_in_which_no_network_takes_the_images_changes_nothing(tiny, data):
    trainer = Trainer(at(tiny, 24, AllForKnownSize), load_images(data, "train", 24))
    before = [p.detach().clone() for p in trainer.model.parameters()]
    reports = list(trainer.steps(3))
    assert [report.networks for report in reports] == [()] * 3
    assert all(map(torch.equal, before, trainer.model.parameters()))


def test_a_size_that_no_validation_network_takes_is_refused(tiny, data):
    with pytest.raises(ArgumentError, match=r"runs on 24 × 24 pixels.+data\.size=32"):
        Validation(at(tiny, 24, AllForKnownSize), load_images(data, "val", 24))


def test_a_network_that_takes_no_images_at_all_is_an_error():
    assert network_for(ForKnownSize("val", 0), 10, 24) is None
    with pytest.raises(TraceError, match="could not be run"):
        network_for(ForNoSize("val", 0), 10, 24)
    kept = PreparedNetworks(10, 4, 24)
    assert kept.prepared(ForKnownSize("val", 0)) is None
    assert kept.prepared(dataclasses.replace(ForKnownSize("val", 0), index=1)) is not None
