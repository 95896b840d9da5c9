"""Spaces and schedules of users that lack something."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from torch import nn
from toys import Toy, Toys


class NoLength:
    def __init__(self, split: str) -> None:
        pass


class OnlyTrain(Toys):
    def __init__(self, split: str) -> None:
        super().__init__({"train": "train"}[split])


class NoMacs(Toys):
    def __getitem__(self, index: int) -> Any:
        toy = Toy(self.split, index)
        names = ("key", "family", "norm", "simple", "parameter_count", "depth", "build")
        return SimpleNamespace(**{name: getattr(toy, name) for name in names})


class Unlike(Toys):
    """Toys that are equal to none."""

    def __getitem__(self, index: int) -> Any:
        return UnlikeToy(self.split, index)


class UnlikeToy(Toy):
    __hash__ = None

    def __eq__(self, other: object) -> bool:
        return False


class Torn(Toys):
    def __getitem__(self, index: int) -> Toy:
        raise KeyError(index)


@dataclass(frozen=True)
class Built(Toy):
    """A toy whose `build` calls a function."""

    made: Any = None

    def build(self, num_classes: int = 10) -> Any:
        return self.made(num_classes)


class Building(Toys):
    """Toys that build what a function of this name, in this module, makes."""

    def __init__(self, split: str, module: str) -> None:
        super().__init__(split)
        self.made = globals()[module]

    def __getitem__(self, index: int) -> Toy:
        return Built(self.split, index, self.made)


class Blocked(nn.Sequential):
    def block_ends(self) -> list[nn.Module]:
        return [nn.ReLU()]


def blockless(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, num_classes, 1))


def elsewhere(num_classes: int) -> nn.Module:
    return Blocked(nn.Conv2d(3, num_classes, 1))


def nothing(num_classes: int) -> None:
    return None


def broken(num_classes: int) -> nn.Module:
    raise RuntimeError("no memory of this")


def deaf(num_classes: int) -> nn.Module:
    return Toy("train", 0).build()


def number() -> float:
    return 0.5


def constantly(value: Any) -> Any:
    return lambda step: value


def not_finite() -> Any:
    return lambda step: float("nan")
