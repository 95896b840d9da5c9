from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ghnqat_sdk.quantization.calibrate import calibrate
from ghnqat_sdk.quantization.convert import to_fake_quantized
from ghnqat_sdk.quantization.ranges import ClippedRanges

Quantized = Callable[..., nn.Module]
RANGES = ClippedRanges()


@pytest.fixture(autouse=True)
def same_networks() -> None:
    """Networks of a test have the same weights in every run."""
    torch.manual_seed(0)


@pytest.fixture
def images() -> Tensor:
    """Of different contrast, so that their means differ."""
    noise = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return noise * torch.linspace(0.3, 2.0, 16).view(-1, 1, 1, 1)


@pytest.fixture
def quantized(images: Tensor) -> Quantized:
    """Makes a model fake-quantized and calibrated, with batch norms that do something."""

    def make(model: nn.Module, bits=(8, 8), ranges=RANGES) -> nn.Module:
        torch.manual_seed(0)
        for norm in [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]:
            nn.init.normal_(norm.weight)  # some of them negative
            nn.init.normal_(norm.bias)
        to_fake_quantized(model, bits, ranges)
        calibrate(model, [images, images + 0.1])
        return model.eval()

    return make


@pytest.fixture
def no_search(monkeypatch) -> None:
    """Spares the search for torchao's own QAT of convolutions and norms, which finds none here."""
    from torchao.quantization.pt2e import qat_utils

    monkeypatch.setattr(qat_utils, "_fold_conv_bn_qat_helper", lambda model, *_, **__: model)
