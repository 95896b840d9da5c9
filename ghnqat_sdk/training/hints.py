"""Hints: features of a teacher that blocks of a predicted network are compared with.

`Hints` holds what the comparison learns, a projection for each stage of the teacher; the loss that
it adds is a network's `hint`, and it fades where weights are decayed (`DecayConfig.hints`).

Letters: N images, C channels of a block's output, W those that are looked at, T a teacher's.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ghnqat_sdk.configs import Part
from ghnqat_sdk.graph.channels import Runs, numbers_of
from ghnqat_sdk.training.pooling import corner

_POSITIONS = 4096
"""Of the feature maps of a block that a hint looks at; fewer images where they have more."""


class HintConfig(Part):
    """A teacher's features as hints after blocks (FitNets, Romero et al. 2015, across networks)."""

    teacher: str = "teacher.safetensors"
    """File that `ghnqat-train teacher` made."""
    features: str = "features"
    """Folder for its features over the training images."""
    weight: float = Field(default=6.0, gt=0)
    """Of the hint loss beside the cross-entropy."""
    channels: int = Field(default=64, ge=1)
    """First channels of a block's output that are looked at."""
    without: float = Field(default=3.0, gt=0)
    """Weight of the cross-entropy of networks that get no hints: the others would outweigh them."""
    blocks: int = Field(default=4, ge=1)
    """Blocks of one network, drawn anew for each batch, that get a hint."""
    soft_labels: float = Field(default=0.0, ge=0, le=1)
    """Share of the cross-entropy that takes the teacher's probabilities for labels (Hinton et al.
    2015): what they say of other classes makes gradients of few images less noisy."""

    def weight_without(self, hint_weight: float) -> float:
        """Of the cross-entropy of networks without hints, while those of others fade."""
        fading = hint_weight / self.weight
        return 1 + (self.without - 1) * fading


class Hints(nn.Module):
    """One learned projection for each teacher stage, shared by all networks.

    It maps the first channels of a block's output to the teacher's; the loss is 1 less the
    correlation, channel by channel over images and positions, of what it shows and the teacher's
    features: half the mean squared difference of both after standardization. What it buys: channel
    k means the same in every network, so that gradients of different networks add up.

    Args:
        config: How many channels and blocks are looked at.
        channels: Of the features of each of the teacher's stages.
        follows: Whether the hypernetwork follows channels through concatenations: then the first
            channels are those of each part of a block's output, added up.
    """

    def __init__(self, config: HintConfig, channels: Sequence[int], follows: bool = False) -> None:
        super().__init__()
        self.config = config
        self.follows = follows
        width = config.channels
        self.projections = nn.ParameterList(
            nn.Parameter(torch.randn(count, width) / math.sqrt(width)) for count in channels
        )

    def loss(
        self,
        taps: Sequence[Tensor],
        teacher_features: Sequence[Tensor],
        projections: Sequence[Tensor],
        rng: random.Random,
        joined: Sequence[Runs] = (),
    ) -> Tensor:
        """Weighted mean over some of a network's blocks.

        A network's blocks are dealt to teacher stages by where they stand; within a stage the
        weight grows linearly to the stage's end.

        Args:
            taps: (N, C, h, w) outputs of blocks.
            teacher_features: (N, side, side, channels) features of each stage.
            projections: Of each stage.
            rng: Chooses blocks.
            joined: Where the channels of each tap come from, see `Node.reads`.
        """
        chosen = rng.sample(range(len(taps)), min(self.config.blocks, len(taps)))
        total = taps[0].new_zeros((), dtype=torch.float32)
        weights = 0.0
        for stage, weight, shown, target in self.dealt(taps, teacher_features, chosen, joined):
            total = total + weight * correlation_loss(shown, target, projections[stage])
            weights += weight
        return total / weights

    def dealt(
        self,
        taps: Sequence[Tensor],
        teacher_features: Sequence[Tensor],
        chosen: Iterable[int],
        joined: Sequence[Runs] = (),
    ) -> Iterator[tuple[int, float, Tensor, Tensor]]:
        """Stage, weight, first channels (n, W, h, w) and target (n, s, s, T) of blocks `chosen`.

        The rest as in `loss`.
        """
        places = [len(teacher_features) * (index + 1) / len(taps) for index in range(len(taps))]
        targets = _Targets(teacher_features)
        for index in chosen:
            stage = min(len(teacher_features) - 1, math.ceil(places[index] - 1e-9) - 1)
            target = targets.of(stage, taps[index].shape[2])
            reads = joined[index] if joined and self.follows else ()
            shown = self._shown(taps[index], len(target), reads)
            yield stage, places[index] - stage, shown, target

    def _shown(self, tap: Tensor, images: int, reads: Runs) -> Tensor:
        """(n, W, h, w) of a block's output: its first channels, of each of its parts together."""
        if not reads:
            return corner(tap, images, self.config.channels)
        first = corner(tap, images, tap.shape[1]).permute(0, 2, 3, 1)
        fold = _fold(reads, self.config.channels).to(first)
        return (first @ fold).permute(0, 3, 1, 2)

    def add_gradients(self, gradients: Sequence[Tensor | None], share: float) -> None:
        """Add a share of what one network gave; `gradients` are empty where it had no hints.

        By hand: they come from the networks' losses, which the backward pass of the hypernetwork
        does not reach.
        """
        for projection, gradient in zip(self.projections, gradients, strict=False):
            if gradient is not None:
                projection.grad += gradient * share


@functools.lru_cache(maxsize=256)
def _fold(reads: Runs, most: int) -> Tensor:
    """(C, W) ones where a channel of a joined tensor is one of the first channels of a part."""
    channels = numbers_of(reads)
    width = min(most, int(channels.max()) + 1)
    return (channels.unsqueeze(1) == torch.arange(width)).float()


class _Targets:
    """A teacher's features, pooled and standardized for each size once."""

    def __init__(self, teacher_features: Sequence[Tensor]) -> None:
        self.teacher_features = teacher_features
        self.made: dict[tuple[int, int], Tensor] = {}

    def of(self, stage: int, side: int) -> Tensor:
        """(n, s, s, T) of some images: mean 0 and variance 1 by channel, s at most `side`."""
        whole = self.teacher_features[stage]
        side = min(side, whole.shape[1])
        key = stage, side
        if key not in self.made:
            count = max(16, _POSITIONS // side**2)
            features = whole[:count]
            if side != whole.shape[1]:
                pooled = F.adaptive_avg_pool2d(features.permute(0, 3, 1, 2), side)
                features = pooled.permute(0, 2, 3, 1)
            self.made[key] = _standardized(features.flatten(0, 2)).view(features.shape)
        return self.made[key]


def _standardized(features: Tensor) -> Tensor:
    """(M, T) with mean 0 and variance 1 by channel; `torch.std_mean` takes twenty times as long."""
    centred = features - features.mean(0)
    return centred / ((centred * centred).mean(0).sqrt() + 1e-3)


def correlation_loss(shown: Tensor, target: Tensor, projection: Tensor) -> Tensor:
    """1 less the mean correlation of projected channels and a teacher's.

    The projected maps are never made: their variances and covariances follow from the channels'.

    Args:
        shown: (n, C, h, w) first images and channels of a block's output.
        target: (n, s, s, T) standardized features of these images.
        projection: (T, W), of which the first C columns are used.
    """
    channels, features = compared(shown, target)
    projection = projection[:, : channels.shape[1]]
    positions = len(channels)
    cross = (features.mT @ channels) / positions  # (T, C)
    variance = (channels.mT @ channels) / positions  # (C, C)
    covariances = (projection * cross).sum(1)
    variances = ((projection @ variance) * projection).sum(1)
    return 1 - (covariances * torch.rsqrt(variances.clamp(min=0) + 1e-5)).mean()


def compared(shown: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Channels (M, C), of mean 0, and features (M, T) at the same images and positions."""
    side = target.shape[1]
    if shown.shape[2] != side or shown.shape[3] != side:
        shown = F.adaptive_avg_pool2d(shown, side)
    channels = shown.permute(0, 2, 3, 1).flatten(0, 2).float()
    return channels - channels.mean(0), target.flatten(0, 2)
