"""What a run is judged by while it trains: accuracy of unseen networks on validation images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice

import torch
from torch import Tensor

from ghnqat_sdk.data import ImageSet
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.hypernetwork.ghn import GraphHypernetwork
from ghnqat_sdk.quantization.roundings import NEAREST
from ghnqat_sdk.training.compute import Setting
from ghnqat_sdk.training.config import RunConfig
from ghnqat_sdk.training.networks import Network, prepare_network
from ghnqat_sdk.training.sampler import SpaceShare
from ghnqat_sdk.training.spaces.protocol import Architecture

_BATCH = 64

Batches = Sequence[tuple[Tensor, Tensor]]


class Validation:
    """The same networks and images throughout a run.

    Args:
        config: Of the run.
        images: To draw validation images from.

    Raises:
        ArgumentError: a space has no network within the limits.
    """

    def __init__(self, config: RunConfig, images: ImageSet) -> None:
        self.config = config
        self.images = images
        shares = {share.source: share for share in config.networks}
        self.architectures = [
            architecture for share in shares.values() for architecture in self._first(share)
        ]

    def _first(self, share: SpaceShare) -> list[Architecture]:
        """The first networks of a space's validation split within the limits."""
        limits = self.config.validation
        space = share.build("val")
        every: Iterator[Architecture] = map(space.__getitem__, range(len(space)))
        affordable = (
            architecture for architecture in every if architecture.macs <= limits.max_macs
        )
        found = list(islice(affordable, limits.networks))
        if not found:
            raise ArgumentError(
                f"No validation network of the space {share.space!r} has at most "
                f"{limits.max_macs:.3g} multiply-accumulates. Raise validation.max_macs, for "
                f"example to 60e6."
            )
        return found

    @cached_property
    def networks(self) -> list[Network]:
        """Prepared when they are needed."""
        classes = self.config.hypernetwork.num_classes
        return [prepare_network(architecture, classes) for architecture in self.architectures]

    @torch.no_grad()
    def figures(self, model: GraphHypernetwork) -> dict[str, float]:
        """Mean top-1 in percent by space and bits, with batch statistics, as the paper measures."""
        config = self.config
        images = self.images.sample(config.validation.images, seed=0)
        batches = list(images.batches(_BATCH))
        figures: dict[str, float] = {}
        for share in config.bits.settings:
            setting = Setting(share.bits, config.hypernetwork.ranges, NEAREST, config.compute)
            by_space: dict[str, list[float]] = defaultdict(list)
            for network in self.networks:
                (predicted,) = model([network.graph.with_bits(share.bits)])
                right = _right(network, predicted, setting, batches)
                by_space[network.architecture.key[0]].append(100 * right / len(images))
            for space, values in by_space.items():
                name = "{} W{}/A{}".format(space, *share.bits)
                figures[name] = round(sum(values) / len(values), 2)
        return figures


def _right(
    network: Network, predicted: dict[str, Tensor], setting: Setting, batches: Batches
) -> int:
    """How many images a network classifies rightly."""
    right = 0
    for images, labels in batches:
        scores, _ = network.plan.run(predicted, images, setting)
        right += int((scores.argmax(1).cpu() == labels).sum())
    return right
