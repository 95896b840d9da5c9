"""Networks that are ranked, and how their names are read off a ranking."""

from torch import nn

from ghnqat_sdk.search.ranked import RankedNetwork


def cnn(width: int, classes: int = 3) -> nn.Module:
    body = [nn.Conv2d(3, width, 3, stride=2), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


def names(networks: tuple[RankedNetwork, ...]) -> str:
    return "".join(network.name for network in networks)


class Using(nn.Module):
    """A network and a function of its scores and a setting."""

    def __init__(self, function, setting) -> None:
        super().__init__()
        self.body = cnn(4)
        self.function, self.setting = function, setting

    def forward(self, x):
        return self.function(self.body(x), self.setting)


class Giving(nn.Module):
    """The scores of a network, as `wrapped` returns them."""

    def __init__(self, wrapped, classes: int = 3) -> None:
        super().__init__()
        self.body = cnn(4, classes)
        self.wrapped = wrapped

    def extra_repr(self) -> str:
        return f"{object()}, {self.wrapped}"

    def forward(self, x):
        return self.wrapped(self.body(x))
