"""What a run is judged by while it trains: accuracy of unseen networks on validation images."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice

import torch
from torch import Tensor

from ghnqat_sdk.bits import Pair
from ghnqat_sdk.data import ImageSet
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.hypernetwork.ghn import GraphHypernetwork
from ghnqat_sdk.quantization.roundings import NEAREST
from ghnqat_sdk.training.compute import Setting
from ghnqat_sdk.training.config import RunConfig
from ghnqat_sdk.training.distributed import Processes
from ghnqat_sdk.training.prepared import KNOWN_SIZE, PreparedNetwork, PreparedNetworks
from ghnqat_sdk.training.shares import SpaceShare
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
        classes, self.side = config.hypernetwork.num_classes, config.data.size
        self._prepared = PreparedNetworks(classes, sys.maxsize, self.side)
        shares: dict[object, SpaceShare] = {}
        for share in config.networks:
            shares.setdefault(share.origin, share)
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
        found = list(islice(filter(self._takes_images, affordable), limits.networks))
        if not found:
            raise ArgumentError(
                f"No validation network of the space {share.source!r} has at most "
                f"{limits.max_macs:.3g} multiply-accumulates and runs on {self.side} × {self.side} "
                f"pixels. Raise validation.max_macs, for example to 60e6, or write data.size=32."
            )
        return found

    def _takes_images(self, architecture: Architecture) -> bool:
        """Whether a network is for images of the run's size; what spaces are made for, all are."""
        return self.side == KNOWN_SIZE or self._prepared.prepared(architecture) is not None

    @cached_property
    def networks(self) -> list[PreparedNetwork]:
        """Prepared when they are needed."""
        found = map(self._prepared.prepared, self.architectures)
        return [network for network in found if network is not None]

    @torch.no_grad()
    def figures(self, model: GraphHypernetwork, processes: Processes) -> dict[str, float]:
        """Mean top-1 in percent by space and bits, with batch statistics, as the paper measures.

        Networks are dealt to the processes, which all must call this.
        """
        images = self.images.sample(self.config.validation.images, seed=0)
        batches = list(images.batches(_BATCH))
        settings = [share.bits for share in self.config.bits.settings]
        right = torch.zeros(len(settings), len(self.networks))
        for column in range(processes.rank, len(self.networks), processes.size):
            for row, bits in enumerate(settings):
                right[row, column] = self._right(model, self.networks[column], bits, batches)
        accuracies = 100 * processes.total(right) / len(images)
        spaces = [architecture.key[0] for architecture in self.architectures]
        return {
            f"{space} W{bits[0]}/A{bits[1]}": round(_mean_of(space, spaces, of_bits), 2)
            for bits, of_bits in zip(settings, accuracies.tolist(), strict=True)
            for space in dict.fromkeys(spaces)
        }

    def _right(
        self, model: GraphHypernetwork, network: PreparedNetwork, bits: Pair, batches: Batches
    ) -> int:
        """How many images a network classifies rightly."""
        config = self.config
        setting = Setting(bits, config.hypernetwork.ranges, NEAREST, config.compute)
        (predicted,) = model([network.graph.with_bits(bits)])
        right = 0
        for images, labels in batches:
            scores, _ = network.plan.run(predicted, images, setting)
            right += int((scores.argmax(1).cpu() == labels).sum())
        return right


def _mean_of(space: object, spaces: Sequence[object], values: Sequence[float]) -> float:
    """Of the values that belong to a space."""
    own = [value for value, of in zip(values, spaces, strict=True) if of == space]
    return sum(own) / len(own)
