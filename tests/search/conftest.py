import pytest
import torch
from torch import nn

from ghnqat_sdk.data import ImageSet
from ghnqat_sdk.hypernetwork.ghn import GraphHypernetwork, TrainingImages
from ghnqat_sdk.training.new_classes import with_new_classes


@pytest.fixture
def images() -> ImageSet:
    """Brighter in the channel of their class."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    noise = torch.randint(100, (90, 3, 8, 8), generator=generator)
    bright = 80 * nn.functional.one_hot(labels, 3)[:, :, None, None]
    return ImageSet.of((noise + bright).to(torch.uint8), labels)


@pytest.fixture
def familiar(small, images) -> GraphHypernetwork:
    """A hypernetwork that knows the classes of the images."""
    known = TrainingImages(size=8, mean=images.mean, std=images.std, classes=images.classes)
    return with_new_classes(small, 3, known)
