"""The losses of a step's networks, each on images that are drawn for it."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ghnqat_sdk.data import ImageSet
from ghnqat_sdk.training.compute import Setting
from ghnqat_sdk.training.config import RunConfig
from ghnqat_sdk.training.features import FeatureCache
from ghnqat_sdk.training.hints import Hints
from ghnqat_sdk.training.objective import NetworkLoss, network_loss
from ghnqat_sdk.training.prepared import PreparedNetwork
from ghnqat_sdk.training.sampler import Batch, Draw, draw_batch, own_random_numbers


class Losses:
    """What a run compares predicted networks with.

    Args:
        config: The run.
        images: Training images.
        features: The teacher's over these images; with `hints`, or neither.
        hints: What compares them with blocks of a network.

    Attributes:
        fading: What the weight of hints is multiplied by, beside what the config says of a step.
    """

    def __init__(
        self,
        config: RunConfig,
        images: ImageSet,
        features: FeatureCache | None,
        hints: Hints | None,
    ) -> None:
        self.config = config
        self.images = images
        self.features = features
        self.hints = hints
        self.fading = 1.0

    def of_step(
        self,
        step: int,
        rank: int,
        networks: Sequence[PreparedNetwork],
        drawn: Sequence[Draw],
        predicted: Sequence[dict[str, Tensor]],
    ) -> list[NetworkLoss]:
        """Of each network; what is random follows from (seed, step, rank)."""
        source = f"{self.config.seed}/{step}/{rank}"
        rng = random.Random(f"{source}/images")
        hint_weight = self.fading * self.config.hint_weight_at(step)
        with own_random_numbers(f"{source}/noise"):
            return [
                self._of_network(*one, hint_weight, rng)
                for one in zip(networks, drawn, predicted, strict=True)
            ]

    def _of_network(
        self,
        network: PreparedNetwork,
        draw: Draw,
        predicted: dict[str, Tensor],
        hint_weight: float,
        rng: random.Random,
    ) -> NetworkLoss:
        config = self.config
        device = config.compute.device
        generator = torch.Generator().manual_seed(rng.getrandbits(62))
        batch = draw_batch(self.images, draw.images, config.data.padding, generator)
        hinted = hint_weight > 0 and network.takes_hints
        return network_loss(
            network,
            predicted,
            resized(batch.images, network.size),  # its plan moves them to the device
            batch.labels.to(device),
            Setting(draw.bits, config.hypernetwork.ranges, config.bits.rounding, config.compute),
            label_smoothing=config.label_smoothing,
            hints=self.hints,
            hint_weight=hint_weight,
            teacher_features=self._teacher_features(batch) if hinted else (),
            teacher_scores=self._teacher_scores(batch),
            rng=rng,
        )

    def _teacher_features(self, batch: Batch) -> list[Tensor]:
        if self.features is None:
            return []
        found = self.features.gather(batch.indices, batch.moves)
        return [stage.to(self.config.compute.device) for stage in found]

    def _teacher_scores(self, batch: Batch) -> Tensor | None:
        """For soft labels, which stay when hints have faded."""
        if self.features is None or self.hints is None or not self.hints.config.soft_labels:
            return None
        return self.features.scores[batch.indices].to(self.config.compute.device)


def resized(images: Tensor, side: int) -> Tensor:
    """(N, C, H, W) images at a side in pixels, channels_last; as they are where they have it."""
    if images.shape[2:] == (side, side):
        return images
    found = F.interpolate(images, (side, side), mode="bilinear", antialias=side < images.shape[2])
    return found.contiguous(memory_format=torch.channels_last)
