import pytest
import torch
from torch import nn

from ghnqat_sdk.data import ImageSet


@pytest.fixture
def images() -> ImageSet:
    """Brighter in the channel of their class."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    noise = torch.randint(100, (90, 3, 8, 8), generator=generator)
    bright = 80 * nn.functional.one_hot(labels, 3)[:, :, None, None]
    return ImageSet.of((noise + bright).to(torch.uint8), labels)
