"""Networks that tests of exports share."""

import torch
from torch import nn


class Net(nn.Module):
    """Norms after a convolution, after a grouped one, after a sum (which stays), and after a linear
    layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.deep_norm = nn.BatchNorm2d(8)
        self.sum_norm = nn.BatchNorm2d(8)
        self.hidden = nn.Linear(8, 80)
        self.hidden_norm = nn.BatchNorm1d(80)
        self.head = nn.Linear(80, 5)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.sum_norm(x + self.deep_norm(self.deep(x))))
        return self.head(torch.relu(self.hidden_norm(self.hidden(x.mean((2, 3))))))


class Pointwise(nn.Module):
    """The smallest network with a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return self.conv(x).mean((2, 3))
