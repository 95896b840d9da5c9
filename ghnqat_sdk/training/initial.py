"""The hypernetwork and hints before the first step: untrained or given, and fit for the images."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import skip_init

from ghnqat_sdk.data import ImageSet
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.hypernetwork.ghn import GraphHypernetwork, TrainingImages
from ghnqat_sdk.hypernetwork.pretrained import load_pretrained
from ghnqat_sdk.training.checkpoint import give_weights
from ghnqat_sdk.training.config import RunConfig
from ghnqat_sdk.training.features import FeatureCache
from ghnqat_sdk.training.hints import Hints
from ghnqat_sdk.training.prepared import network_for


def check_parts(config: RunConfig) -> None:
    """Whether what a config names can be made and used, which asks for no images: classes of a
    user's own above all.

    Raises:
        ArgumentError: a schedule, an optimizer, a space or its first network that cannot.
        TraceError: a network that cannot be traced.
    """
    config.learning_rate_at(0)
    config.optimizer.build([skip_init(nn.Linear, 1, 1)])
    first = config.build_sampler().network(0, False)
    network_for(first, config.hypernetwork.num_classes, config.data.size)
    for share in config.networks:
        share.build("val")[0]


def check_fit(config: RunConfig, train: ImageSet, features: FeatureCache | None) -> None:
    """Whether a run can start with these images and features.

    Raises:
        ArgumentError: images of another number of classes than the config's, hints without
            features, or a device that cannot be used.
    """
    if len(train.classes) != config.hypernetwork.num_classes:
        raise ArgumentError(
            f"The images are of {len(train.classes)} classes, and the config's "
            f"hypernetwork.num_classes is {config.hypernetwork.num_classes}. Change it in the "
            f"config, or give other images."
        )
    if config.hints is not None and features is None:
        raise ArgumentError(
            "The config has hints, and no teacher's features were given. Pass "
            "features=FeatureCache.open(folder, teacher, train), or set hints to null."
        )
    config.compute.check()


def described(train: ImageSet) -> TrainingImages:
    """What a hypernetwork remembers of the images that it is trained on."""
    size = train.images.shape[-1]
    return TrainingImages(size=size, mean=train.mean, std=train.std, classes=train.classes)


def initial_parts(
    config: RunConfig, train: ImageSet, features: FeatureCache | None
) -> tuple[GraphHypernetwork, Hints | None]:
    """The hypernetwork and its hints before the first step, on the device of the run; it remembers
    what the images were like.

    Raises:
        ArgumentError: initial weights of another architecture.
    """
    images = described(train).model_copy(update={"largest": config.largest_size})
    made = config.hypernetwork.model_copy(update={"images": images})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = GraphHypernetwork(made).to(config.compute.device)
        hints = None
        if config.hints is not None and features is not None:
            channels = [stage.shape[-1] for stage in features.stages]
            hints = Hints(config.hints, channels, config.hypernetwork.decoder.follows)
            hints.to(config.compute.device)
    if config.initial is not None:
        _copy_weights(model, load_pretrained(config.initial))
    return model, hints


def _copy_weights(model: GraphHypernetwork, initial: GraphHypernetwork) -> None:
    try:
        give_weights(model, initial.state_dict())
    except ValueError as error:
        raise ArgumentError(
            f"The initial weights belong to another architecture: {error}. Use a config whose "
            f"'hypernetwork' equals that of the initial weights."
        ) from error
