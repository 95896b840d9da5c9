"""What a layer reads: which channels of which parts."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghnqat_sdk.graph.channels import Run
from ghnqat_sdk.graph.trace import trace


class Between(nn.Module):
    """Two branches of 6 and 4 channels, what a test does to them, and a layer."""

    def __init__(self, between, last: nn.Module) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 6, 1)
        self.two = nn.Conv2d(3, 4, 1)
        self.between, self.last = between, last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.one(x), self.two(x)))


def reads(between, last: nn.Module) -> tuple[Run, ...]:
    """What the last layer reads of images of 5 × 4 pixels."""
    graph = trace(Between(between, last), torch.empty(2, 3, 5, 4))
    return next(node.reads for node in graph.nodes if node.module == "last")


def shuffled(x: Tensor) -> Tensor:
    """The channels of two halves in turn, as ShuffleNet writes it."""
    count, channels, height, width = x.shape
    return x.view(count, 2, channels // 2, height, width).transpose(1, 2).reshape(x.shape)


BOTH = (Run(0, 0, 6), Run(1, 0, 4))
ORDER = tuple((part, channel) for channel in range(3) for part in range(2))


def cat(a: Tensor, b: Tensor) -> Tensor:
    return torch.cat([a, b], 1)


@pytest.mark.parametrize(
    "between",
    [
        cat,
        lambda a, b: torch.concat((a, b), dim=-3),
        lambda a, b: F.max_pool2d(cat(a, b).relu(), 2),
        lambda a, b: cat(a, b).contiguous().clone()[:, :, 1:],
        lambda a, b: cat(a.relu_(), b).mul_(2),
        lambda a, b: F.batch_norm(cat(a, b), None, None, training=True),
        lambda a, b: F.interpolate(cat(a, b), scale_factor=2),
    ],
    ids=["cat", "dim", "pooled", "cropped", "in place", "normed", "larger"],
)
def test_parts_that_are_concatenated_keep_their_channels(between):
    assert reads(between, nn.Conv2d(10, 2, 1)) == BOTH


def test_norms_and_depthwise_layers_read_parts_as_well():
    assert reads(cat, nn.BatchNorm2d(10)) == BOTH
    assert reads(cat, nn.Conv2d(10, 10, 3, padding=1, groups=10)) == BOTH


def test_shuffled_channels_are_found_again():
    found = reads(lambda a, b: shuffled(cat(a[:, :3], b[:, :3])), nn.Conv2d(6, 2, 1))
    assert found == tuple(Run(part, channel, 1) for part, channel in ORDER)
    found = reads(lambda a, b: F.channel_shuffle(cat(a[:, :3], b[:, 1:]), 2), nn.Conv2d(6, 2, 1))
    assert found == tuple(Run(part, channel + part, 1) for part, channel in ORDER)


def test_halves_are_channels_of_where_they_come_from():
    last = nn.Conv2d(5, 2, 1)
    assert reads(lambda a, b: cat(a, b).chunk(2, 1)[1], last) == (Run(0, 5, 1), Run(1, 0, 4))
    assert reads(lambda a, b: cat(a, b)[:, :5], last) == ()  # those of the first, as they are


def test_each_position_of_a_flattened_image_is_a_part():
    found = reads(lambda a, b: a.flatten(1), nn.Linear(120, 2))
    assert found[:21] == (*(Run(place, 0, 1) for place in range(20)), Run(0, 1, 1))
    assert reads(lambda a, b: a.permute(0, 2, 3, 1).flatten(1), nn.Linear(120, 2)) == tuple(
        Run(place, 0, 6) for place in range(20)
    )
    assert reads(lambda a, b: a.mean((2, 3)), nn.Linear(6, 2)) == ()


def test_channels_may_be_last():
    assert reads(lambda a, b: cat(a, b).permute(0, 2, 3, 1), nn.Linear(10, 2)) == BOTH
    assert reads(lambda a, b: a.permute(0, 2, 3, 1), nn.LayerNorm(6)) == ()


@pytest.mark.parametrize("plain", [lambda a: a, torch.relu], ids=["layer", "activation"])
def test_of_a_sum_the_plainest_counts(plain):
    def between(a: Tensor, b: Tensor) -> Tensor:
        return cat(b, b[:, :2]) + plain(a)

    assert reads(between, nn.Conv2d(6, 2, 1)) == ()
    assert reads(lambda a, b: cat(b, b[:, :2]).add_(plain(a)), nn.Conv2d(6, 2, 1)) == ()


def test_the_same_tensor_twice_is_two_parts():
    found = reads(lambda a, b: cat(b, b), nn.Conv2d(8, 2, 1))
    assert found == (Run(0, 0, 4), Run(1, 0, 4))


def test_what_cannot_be_followed_is_read_as_counted():
    order = torch.tensor([3, 1, 0, 2])
    assert reads(lambda a, b: b.index_select(1, order.to(b.device)), nn.Conv2d(4, 2, 1)) == ()
    assert reads(lambda a, b: F.pixel_shuffle(b, 2), nn.Conv2d(1, 2, 1)) == ()
    assert reads(lambda a, b: torch.stack([b, b], 1).flatten(0, 1), nn.Conv2d(4, 2, 1)) == ()


def test_modules_whose_output_is_joined_are_named():
    class Joins(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return cat(x, x)

    model = nn.Sequential(nn.Conv2d(3, 4, 1), Joins(), nn.ReLU(), nn.Conv2d(8, 2, 1))
    graph = trace(model, torch.empty(2, 3, 4, 4))
    assert graph.joined == dict.fromkeys(("1", "2"), (Run(0, 0, 4), Run(1, 0, 4)))
