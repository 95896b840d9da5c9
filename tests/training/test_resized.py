"""Shares of networks that see images of another size than the rest of a run."""

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from toys import Toy

from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.training import losses
from ghnqat_sdk.training.distributed import Processes
from ghnqat_sdk.training.losses import resized
from ghnqat_sdk.training.prepared import PreparedNetworks
from ghnqat_sdk.training.run import open_features
from ghnqat_sdk.training.sampler import Sampler, SamplingConfig
from ghnqat_sdk.training.shares import CustomShare, FamiliesShare
from ghnqat_sdk.training.spaces.families import Families
from ghnqat_sdk.training.spaces.resized import Resized
from ghnqat_sdk.training.trainer import Trainer


def toys(**settings) -> CustomShare:
    return CustomShare(factory="toys.Toys", **settings)


def test_it_is_the_same_network_and_costs_by_area():
    network, large = Toy("train", 4), Resized(Toy("train", 4), 64)
    assert large.macs == 4 * network.macs
    for fact in ("key", "family", "norm", "simple", "parameter_count", "depth"):
        assert getattr(large, fact) == getattr(network, fact)
    shapes = [{n: p.shape for n, p in one.build(7).named_parameters()} for one in (network, large)]
    assert shapes[0] == shapes[1]
    assert large == Resized(Toy("train", 4), 64) != Resized(Toy("train", 4), 48)


def test_limits_are_of_what_it_costs_at_its_size():
    share = FamiliesShare(size=64, min_macs=4e6, max_macs=20e6)
    sampling = SamplingConfig(meta_batch=4, window=8, uses=1, image_batch=64, batch_macs=3e8)
    sampler = Sampler(0, [share], sampling, [((4, 4), 1.0)], 0)
    space = Families("train")
    for draw in sampler.step(0) + sampler.step(5):
        assert 4e6 <= draw.architecture.macs <= 20e6
        assert draw.architecture.macs == 4 * space[draw.architecture.key[2]].macs
        assert draw.images * draw.architecture.macs <= 3e8 or draw.images == 16
    tiny_cost = FamiliesShare(size=256, max_macs=1e4)
    with pytest.raises(ArgumentError, match="No network of the space 'families'"):
        Sampler(0, [tiny_cost], sampling, [((4, 4), 1.0)], 0)


@pytest.mark.parametrize("size", [8, 512, 32.5])
def test_sizes_out_of_range_are_refused(size):
    with pytest.raises(ValidationError, match="size"):
        FamiliesShare(size=size)


def test_a_network_is_prepared_for_its_own_size():
    prepared = PreparedNetworks(10, 4, size=24)
    plain, large = Toy("train", 0), Resized(Toy("train", 0), 48)
    assert prepared.prepared(plain).size == 24
    assert prepared.prepared(large).size == 48
    assert len(prepared.kept) == 2


def test_images_are_resized_once_and_in_channels_last():
    images = torch.rand(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    assert resized(images, 32) is images
    large = resized(images, 64)
    assert large.is_contiguous(memory_format=torch.channels_last)
    expected = F.interpolate(images, (64, 64), mode="bilinear")
    torch.testing.assert_close(large, expected)
    board = (torch.arange(32)[:, None] + torch.arange(32)).remainder(2).float().expand(1, 3, 32, 32)
    assert resized(board, 16)[..., 2:-2, 2:-2].sub(0.5).abs().max() < 0.1  # not every other square


def test_networks_of_all_sizes_learn_with_hints(hinted, images, monkeypatch):
    shares = (toys(), toys(size=48), toys(size=20))
    config = hinted.model_copy(update={"networks": shares})
    features = open_features(config, images["train"], Processes())
    sides = []
    real = losses.network_loss

    def noting(network, predicted, batch, *rest, **named):
        sides.append((network.size, batch.shape[-1]))
        found = real(network, predicted, batch, *rest, **named)
        assert found.finite and (found.hint is not None) == bool(named["teacher_features"])
        return found

    monkeypatch.setattr(losses, "network_loss", noting)
    trainer = Trainer(config, images["train"], features=features)
    assert trainer.model.config.images.largest == 48
    for report in trainer.steps(12):
        assert report.gradient_norm > 0
    assert {side for side, _ in sides} == {20, 32, 48}
    assert all(network == batch for network, batch in sides)
