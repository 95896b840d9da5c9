import torch
from torch import nn

from ghnqat_sdk.quantization.convert import to_fake_quantized
from ghnqat_sdk.quantization.ranges import MinMaxRanges


def make(bits=(4, 4), ranges=None) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3),
        nn.BatchNorm2d(6),
        nn.Flatten(),
        nn.Linear(96, 5),
    )
    to_fake_quantized(model, bits, ranges or MinMaxRanges(), warn=False)
    return model
