"""A trained hypernetwork for images of other classes: what depends on their number is emptied."""

from __future__ import annotations

import torch

from ghnqat_sdk.hypernetwork.ghn import GraphHypernetwork, HypernetworkConfig, TrainingImages


def with_new_classes(
    model: GraphHypernetwork, num_classes: int, images: TrainingImages
) -> GraphHypernetwork:
    """The same hypernetwork for other images: its class table is zero, everything else is kept.

    A table of zeros predicts heads without an opinion, whose first gradients change nothing else.

    Args:
        model: Stays as it is.
        num_classes: That its networks shall tell apart.
        images: What they are like.
    """
    changes = {"num_classes": num_classes, "images": images}
    config = model.config.model_copy(update=changes)
    with torch.random.fork_rng(devices=[]):
        adapted = GraphHypernetwork(config)
    new = _class_tensors(config)
    kept = {name: tensor for name, tensor in model.state_dict().items() if name not in new}
    adapted.load_state_dict(kept, strict=False)
    for name, tensor in adapted.state_dict().items():
        if name in new:
            tensor.zero_()
    return adapted


def _class_tensors(config: HypernetworkConfig) -> set[str]:
    """Names of the tensors whose shape follows from the number of classes."""
    numbers = (config.num_classes, config.num_classes + 1)
    configs = [config.model_copy(update={"num_classes": number}) for number in numbers]
    with torch.device("meta"):
        one, other = (GraphHypernetwork(each).state_dict() for each in configs)
    return {name for name in one if one[name].shape != other[name].shape}
