"""Models on their way through torchao's PT2E flow."""

import copy
import warnings

import pytest
import torch
from torch import nn

from ghnqat_sdk.quantization.calibrate import calibrate
from ghnqat_sdk.quantization.convert import to_fake_quantized, to_float
from ghnqat_sdk.quantization.ranges import ClippedRanges

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torchao's, about itself
    pytest.importorskip("torchao")
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

RANGES = ClippedRanges()
IMAGES = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Norms to fold after a convolution and a transposed one, one that stays, and a branch with two
    readers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.up, self.up_norm = nn.ConvTranspose2d(8, 6, 2, stride=2), nn.BatchNorm2d(6)
        self.deep = nn.Conv2d(6, 6, 3, stride=2, padding=1, groups=6)
        self.side, self.sum_norm = nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        return self.head(
            self.sum_norm(self.deep(self.up_norm(self.up(x))) + self.side(x)).mean((2, 3))
        )


def quantized(bits, ranges=RANGES) -> nn.Module:
    torch.manual_seed(0)
    model = Net()
    for norm in (model.norm, model.up_norm, model.sum_norm):
        nn.init.normal_(norm.weight)  # some of them negative
    to_fake_quantized(model, bits, ranges)
    calibrate(model, [IMAGES])
    return model.eval()


def converted(qmodel, quantizer) -> nn.Module:
    program = torch.export.export(to_float(copy.deepcopy(qmodel)).eval(), (IMAGES,))
    return convert_pt2e(prepare_pt2e(program.module(), quantizer))


def calibrated(model: nn.Module, bits, **rules) -> nn.Module:
    to_fake_quantized(model, bits, RANGES, **rules)
    calibrate(model, [IMAGES])
    return model.eval()


def upsampling(*after: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    up = nn.ConvTranspose2d(6, 4, 2, stride=2, groups=2)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), up, *after)
    to_fake_quantized(model, (4, 8), ClippedRanges())
    calibrate(model, [IMAGES])
    return model.eval()
