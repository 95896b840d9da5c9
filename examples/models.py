"""Two CNNs for 32 × 32 images as a user would write them, and the small data set that ships with
the tests."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ghnqat_sdk.data import ImageSet

SAMPLE_IMAGES = Path(__file__).resolve().parents[1] / "tests" / "data" / "cifar10"


def conv_norm(cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(cout))


class BasicBlock(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = conv_norm(cin, cout, 3, stride), conv_norm(cout, cout, 3)
        self.shortcut = nn.Identity() if cin == cout else conv_norm(cin, cout, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(torch.relu(self.first(x))) + self.shortcut(x))


class ResNet20(nn.Module):
    """He et al. 2016, section 4.2: three stages of three blocks with 16, 32 and 64 channels."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = conv_norm(3, 16, 3)
        blocks, cin = [], 16
        for cout, stride in ((16, 1), (32, 2), (64, 2)):
            for position in range(3):
                blocks.append(BasicBlock(cin, cout, stride if position == 0 else 1))
                cin = cout
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(cin, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(torch.relu(self.stem(x)))
        return self.classifier(x.mean(dim=(2, 3)))


class InvertedResidual(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = cin * expansion
        self.expand, self.project = conv_norm(cin, wide, 1), conv_norm(wide, cout, 1)
        self.depthwise = conv_norm(wide, wide, 3, stride, groups=wide)
        self.residual = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.relu6(self.expand(x))
        y = self.project(nn.functional.relu6(self.depthwise(y)))
        return x + y if self.residual else y


class SmallMobileNetV2(nn.Module):
    """Sandler et al. 2018 with half of the blocks, and strides for 32 × 32 images."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = conv_norm(3, 24, 3)
        blocks, cin = [], 24
        for cout, count, stride in ((24, 2, 1), (32, 2, 2), (64, 3, 2), (96, 2, 1)):
            for position in range(count):
                blocks.append(
                    InvertedResidual(cin, cout, stride if position == 0 else 1, expansion=4)
                )
                cin = cout
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(cin, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(nn.functional.relu6(self.stem(x)))
        return self.classifier(torch.flatten(self.pool(x), 1))


@torch.inference_mode()
def accuracy(model: nn.Module, images: ImageSet) -> float:
    """Top-1 in percent."""
    model.eval()
    hits = sum(int((model(x).argmax(1) == y).sum()) for x, y in images.batches(100))
    return 100 * hits / len(images)
