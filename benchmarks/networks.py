"""Networks by name: deepnets/id/3, families/test/7, and torchvision/resnet18 at 32 × 32 pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any
from unittest.mock import patch

import torch
import torchvision
from common import head, row
from torch import nn
from torchvision.models import MNASNet

from ghnqat_sdk import TraceError, trace
from ghnqat_sdk.training.evaluation import Statistic
from ghnqat_sdk.training.spaces.deepnets import DeepNets
from ghnqat_sdk.training.spaces.families import Families
from ghnqat_sdk.training.spaces.protocol import Architecture, Space

SPACES: dict[str, Callable[[str], Space]] = {"deepnets": DeepNets, "families": Families}
ATTENTION = {"attention", "multi_head_attention", "matmul"}


@dataclass(frozen=True)
class Torchvision:
    """A torchvision classifier, built as an architecture of a space is."""

    name: str

    def build(self, num_classes: int = 10) -> nn.Module:
        """With random weights; on the meta device if that is the default one."""
        settings: dict[str, Any] = {"weights": None, "num_classes": num_classes}
        with regnet_widths_on_cpu():
            try:
                model = torchvision.models.get_model(self.name, init_weights=False, **settings)
            except TypeError:  # most have no such argument
                model = torchvision.models.get_model(self.name, **settings)
        if isinstance(model, MNASNet):
            model.__class__ = AnyMNASNet
        return model


class AnyMNASNet(MNASNet):
    """Loads parameters of which nothing says by which version of torchvision they were saved."""

    _load_from_state_dict = nn.Module._load_from_state_dict


@contextmanager
def regnet_widths_on_cpu() -> Iterator[None]:
    """RegNets compute their widths with tensors, which have no values on the meta device."""
    from torchvision.models.regnet import BlockParams

    compute = BlockParams.from_init_params

    def on_cpu(*args: Any, **kwargs: Any) -> Any:
        with torch.device("cpu"):
            return compute(*args, **kwargs)

    with patch.object(BlockParams, "from_init_params", on_cpu):
        yield


def classifier(name: str, num_classes: int = 10) -> nn.Module:
    """With random weights, by a name such as torchvision/resnet18 or timm/ghostnet_100."""
    library, _, rest = name.partition("/")
    if library == "timm":
        import timm

        model: nn.Module = timm.create_model(rest, num_classes=num_classes)
        return model
    return Torchvision(rest).build(num_classes)


def named(name: str) -> Architecture:
    """What can be evaluated by such a name; of a torchvision classifier, only `build`."""
    space, _, rest = name.partition("/")
    if space == "torchvision":
        return Torchvision(rest)  # type: ignore[return-value]
    split, _, index = rest.partition("/")
    return SPACES[space](split)[int(index)]


@cache
def torchvision_cnns() -> tuple[str, ...]:
    """Names of torchvision's classifiers without attention that run at 32 × 32 pixels."""
    known = torchvision.models.list_models(module=torchvision.models)
    return tuple(f"torchvision/{name}" for name in known if runs_as_cnn(name))


def runs_as_cnn(name: str) -> bool:
    with torch.device("meta"):
        model, images = Torchvision(name).build(), torch.empty(2, 3, 32, 32)
    try:
        graph = trace(model, images)
    except TraceError:
        return False
    return not ATTENTION & {node.op for node in graph.nodes}


@cache
def cheap(place: str, count: int, most: float, norm: str | None = None) -> tuple[str, ...]:
    """The first networks of a split, such as deepnets/id, of at most so many MACs, with any norm or
    with this one."""
    space = SPACES[place.partition("/")[0]](place.partition("/")[2])
    affordable = (
        i for i in range(len(space)) if space[i].macs <= most and norm in (None, space[i].norm)
    )
    return tuple(f"{place}/{i}" for i in islice(affordable, count))


def grouped(names: Sequence[str]) -> dict[str, list[str]]:
    """Names by group: each space, its norms and its families; torchvision, and each of its own."""
    groups: dict[str, list[str]] = {}
    for name in names:
        space = name.partition("/")[0]
        groups.setdefault(space, []).append(name)
    for space, members in list(groups.items()):
        if space == "torchvision":
            groups |= {name: [name] for name in members}
            continue
        for kind in ("norm", "family"):
            of = {name: str(getattr(named(name), kind)) for name in members}
            for value in sorted(set(of.values())):
                groups[f"{space}, {kind} {value}"] = [name for name in members if of[name] == value]
    return groups


def table(figures: dict[str, list[float]], columns: Sequence[str]) -> str:
    """Mean ± standard error and least figure of each group, one column after another."""
    lines = [head(["", "networks", *columns])]
    for group, names in grouped(list(figures)).items():
        rows = [figures[name] for name in names]
        cells = map(cell, zip(*rows, strict=True))
        lines.append(row([group, len(names), *cells]))
    return "\n".join(lines)


def cell(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.1f}"
    of = Statistic.of(values)
    return f"{of.mean:.1f} ± {of.sem:.1f}; {min(values):.1f}"
