import pytest
import torch


@pytest.fixture
def images():
    return 2 + 3 * torch.randn(256, 3, 8, 8, generator=torch.Generator().manual_seed(0))
