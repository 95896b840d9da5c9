"""benchmarks/grow_run.py: the larger hypernetwork computes what the one before does."""

import pytest
import torch
from torch import nn

from ghnqat_sdk import GraphHypernetwork, HypernetworkConfig, predict_quantized_params
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.hypernetwork.decoder import DecoderConfig
from ghnqat_sdk.hypernetwork.encoders import TransformerConfig


@pytest.fixture
def grow_run(benchmark_module):
    return benchmark_module("grow_run")


@pytest.fixture
def config() -> HypernetworkConfig:
    encoder = TransformerConfig(width=16, layers=2, heads=2)
    return HypernetworkConfig(encoder=encoder, decoder=DecoderConfig(hidden=24, tile=8, banks=3))


def cnn() -> nn.Module:
    """A layer of each table of the decoder, with more channels than a tile has."""
    return nn.Sequential(
        *(nn.Conv2d(3, 20, 3, bias=False), nn.BatchNorm2d(20), nn.ReLU()),
        *(nn.Conv2d(20, 20, 5, groups=20), nn.Conv2d(20, 12, 1, groups=2), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10)),
    )


def state_of(ghn: GraphHypernetwork) -> dict[str, torch.Tensor]:
    """With all numbers random, and an average beside the model."""
    torch.manual_seed(1)
    own = {name: torch.randn(x.shape) * 0.3 for name, x in ghn.state_dict().items()}
    model = {f"model.{name}": x for name, x in own.items()}
    average = {f"average.module.{name}": x + 0.01 for name, x in own.items()}
    return model | average | {"optimizer.state.0.step": torch.ones(())}


@pytest.mark.parametrize("part", ["model.", "average.module."])
def test_the_larger_one_predicts_the_same(part, grow_run, config):
    ghn = GraphHypernetwork(config)
    state = state_of(ghn)
    larger = GraphHypernetwork(grow_run.grown_config(config))
    grown = grow_run.grown_state(state, config.encoder)
    predicted = []
    for each, tensors in ((ghn, state), (larger, grown)):
        each.load_state_dict(
            {n.removeprefix(part): x for n, x in tensors.items() if n.startswith(part)}
        )
        model = predict_quantized_params(cnn(), (4, 8), hypernetwork=each.eval())
        predicted.append(torch.cat([p.flatten() for p in model.parameters()]))
    torch.testing.assert_close(predicted[1], predicted[0], rtol=1e-3, atol=1e-4)
    assert not any(name.startswith("optimizer") for name in grown)


def test_twins_are_read_differently(grow_run, config):
    grown = grow_run.grown_state(state_of(GraphHypernetwork(config)), config.encoder)
    one, other = grown["model.decoder.dense.weight"].chunk(2, 2)
    assert (one - other).std() > 0.2 * one.std()
    made = grown["model.decoder.position"]
    assert torch.equal(*made.chunk(2, 2))


def test_folders_without_a_run_are_refused(grow_run, tmp_path):
    with pytest.raises(ArgumentError, match="cannot be read"):
        grow_run.grow(tmp_path, tmp_path / "wide")
