"""Channels mean the same behind concatenations, shuffles and flattening."""

import pytest
import torch
from torch import Tensor, nn

from ghnqat_sdk.graph.trace import trace
from ghnqat_sdk.hypernetwork.decoder import DecoderConfig
from ghnqat_sdk.hypernetwork.encoders import TransformerConfig
from ghnqat_sdk.hypernetwork.ghn import GraphHypernetwork, HypernetworkConfig

IMAGES = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def hypernetwork(follows: bool = True, tile: int = 8) -> GraphHypernetwork:
    torch.manual_seed(0)
    decoder = DecoderConfig(hidden=16, tile=tile, kernel=3, banks=4, bank_kernel=3, follows=follows)
    encoder = TransformerConfig(width=16, layers=2, heads=2)
    made = GraphHypernetwork(HypernetworkConfig(encoder=encoder, decoder=decoder)).eval()
    banks = made.decoder.banks
    for table in (banks.dense, banks.point, banks.depthwise, banks.gate.weight):
        nn.init.normal_(table, std=0.3)
    return made


class Joined(nn.Module):
    """Two branches, joined and rearranged by `between`, before a layer."""

    def __init__(self, between, last: nn.Module, channels: int = 6) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, channels, 3, stride=2, padding=1)
        self.two = nn.Conv2d(3, channels, 1, stride=2)
        self.between, self.last = between, last

    def forward(self, x: Tensor) -> Tensor:
        joined = torch.cat([self.one(x), self.two(x)], 1)
        return self.last(self.between(joined))


@torch.no_grad()
def output(between, last: nn.Module, channels: int = 6, **settings) -> Tensor:
    """Of the model with predicted parameters."""
    model = Joined(between, last, channels).eval()
    (predicted,) = hypernetwork(**settings)([trace(model, IMAGES)])
    model.load_state_dict(predicted, strict=False)
    return model(IMAGES)


def as_it_is(x: Tensor) -> Tensor:
    return x


def shuffled(x: Tensor) -> Tensor:
    count, channels, height, width = x.shape
    return x.view(count, 2, channels // 2, height, width).transpose(1, 2).reshape(x.shape)


def swapped(x: Tensor) -> Tensor:
    """The second part before the first."""
    return x.roll(x.shape[1] // 2, 1)


def backwards(x: Tensor) -> Tensor:
    """The second part comes first here, too."""
    return x.flip(1)


LAYERS = {
    "conv": lambda c: nn.Conv2d(2 * c, 5, 3, padding=1),
    "grouped": lambda c: nn.Sequential(
        nn.Conv2d(2 * c, 2 * c, 1), nn.Conv2d(2 * c, 4, 1, groups=2)
    ),
    "depthwise": lambda c: nn.Sequential(
        nn.Conv2d(2 * c, 2 * c, 3, groups=2 * c, bias=False), nn.Conv2d(2 * c, 3, 1)
    ),
    "norm": lambda c: nn.Sequential(nn.BatchNorm2d(2 * c), nn.Conv2d(2 * c, 3, 1)),
    "wide": lambda c: nn.Conv2d(2 * c, 40, 1),
}


@pytest.mark.parametrize("channels", [6, 20], ids=["a tile", "tiles"])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(("order", "plain"), [(shuffled, as_it_is), (backwards, swapped)])
def test_an_order_of_channels_changes_nothing(order, plain, layer, channels):
    """Another order is followed by the weights, so that the network computes the same."""
    expected = output(plain, LAYERS[layer](channels), channels)
    found = output(order, LAYERS[layer](channels), channels)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_order_of_a_flattened_image_changes_nothing():
    by_channel = output(lambda x: x[:, :6].flatten(1), nn.Linear(96, 7))
    by_place = output(lambda x: x[:, :6].permute(0, 2, 3, 1).flatten(1), nn.Linear(96, 7))
    torch.testing.assert_close(by_channel, by_place, rtol=1e-4, atol=1e-4)


def test_weights_of_many_parts_are_mixed_and_followed():
    """More tiles than are decoded."""

    def many(x: Tensor) -> Tensor:
        return torch.cat([x] * 12, 1)

    model = Joined(many, nn.Conv2d(2 * 20 * 12, 40, 1), 20)
    (predicted,) = hypernetwork()([trace(model, IMAGES)])
    rows = predicted["last.weight"].flatten(1)
    assert rows.shape == (40, 480)
    assert torch.linalg.matrix_rank(rows) == 40


def test_parts_of_whole_tiles_are_decoded_as_if_counted():
    last = nn.Conv2d(16, 5, 3)
    torch.testing.assert_close(output(as_it_is, last, 8), output(as_it_is, last, 8, follows=False))


@pytest.mark.parametrize(
    "last", [nn.ConvTranspose2d(12, 12, 2), nn.PReLU(1)], ids=["conv", "prelu"]
)
def test_parameters_that_have_no_place_for_each_input_are_as_counted(last):
    found = output(shuffled, last)
    torch.testing.assert_close(found, output(shuffled, last, follows=False))


def test_counted_channels_do_not_follow():
    last = LAYERS["conv"](6)
    counted = output(as_it_is, last, follows=False)
    assert not torch.allclose(output(shuffled, last, follows=False), counted, atol=1e-2)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("layer", ["conv", "depthwise", "grouped", "norm"])
def test_gradients_reach_the_hypernetwork_as_finite_differences_say(layer, channels_last):
    made = hypernetwork()
    graph = trace(Joined(shuffled, LAYERS[layer](6)), IMAGES)
    table = made.decoder.position
    direction = torch.randn(table.shape, generator=torch.Generator().manual_seed(1))

    def total() -> Tensor:
        (predicted,) = made([graph], channels_last=channels_last)
        return sum(t.double().square().sum() for t in predicted.values())

    total().backward()
    expected = (table.grad * direction).sum().item()
    with torch.no_grad():
        table += 1e-3 * direction
        above = total()
        table -= 2e-3 * direction
        slope = (above - total()).item() / 2e-3
    assert slope == pytest.approx(expected, rel=2e-2)
