"""A custom space of networks that take milliseconds: `CustomShare(factory="toys.Toys")`."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.training.spaces.protocol import Key, Norm


class ToyNet(nn.Module):
    """Convolutions of one width, each of which is a block, and a classifier."""

    def __init__(self, width: int, depth: int, norm: Norm, num_classes: int) -> None:
        super().__init__()
        inputs = [3] + [width] * (depth - 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(count, width, 3, 2 if index < 2 else 1, 1, bias=norm == "none"),
                nn.BatchNorm2d(width) if norm == "batch" else nn.Identity(),
                nn.ReLU(),
            )
            for index, count in enumerate(inputs)
        )
        self.classifier = nn.Linear(width, num_classes)

    def block_ends(self) -> list[nn.Module]:
        return list(self.blocks)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.classifier(x.mean((2, 3)))


@dataclass(frozen=True)
class Toy:
    """See `Architecture`; every third has no norm, and those of two layers are simple."""

    split: str
    index: int

    @property
    def key(self) -> Key:
        return ("toys", self.split, self.index)

    @property
    def family(self) -> str:
        return "toy"

    @property
    def norm(self) -> Norm:
        return "none" if self.index % 3 == 2 else "batch"

    @property
    def width(self) -> int:
        return 4 + 4 * (self.index % 4)

    @property
    def layers(self) -> int:
        return 2 + self.index % 2

    @property
    def simple(self) -> bool:
        return self.layers == 2

    @property
    def depth(self) -> int:
        return self.layers + 1

    @property
    def macs(self) -> int:
        convolutions = 27 * 256 + 9 * self.width * 64 * (self.layers - 1)
        return self.width * convolutions + 10 * self.width

    @property
    def parameter_count(self) -> int:
        of_layers = 27 * self.width + 9 * self.width**2 * (self.layers - 1)
        vectors = self.width * self.layers * (1 if self.norm == "none" else 2)
        return of_layers + vectors + 10 * self.width + 10

    def build(self, num_classes: int = 10) -> nn.Module:
        return ToyNet(self.width, self.layers, self.norm, num_classes)


class Toys:
    """See `Space`: 60 networks."""

    def __init__(self, split: str) -> None:
        if split not in ("train", "val"):
            raise ArgumentError(f"split={split!r} is unknown. Write 'train' or 'val'.")
        self.split = split

    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int) -> Toy:
        return Toy(self.split, index)


class Unbuildable(Toys):
    """Toys whose modules cannot be made."""

    def __getitem__(self, index: int) -> Toy:
        return UnbuildableToy(self.split, index)


class UnbuildableToy(Toy):
    def build(self, num_classes: int = 10) -> nn.Module:
        raise ValueError("no such layer")


class Nothing(Toys):
    """A space without a network."""

    def __len__(self) -> int:
        return 0
