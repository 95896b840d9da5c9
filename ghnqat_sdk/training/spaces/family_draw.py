"""How a recipe for networks of a hand-made family becomes one plan; all odds are integers."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ghnqat_sdk.training.spaces.blocks import Style
from ghnqat_sdk.training.spaces.drawing import draw
from ghnqat_sdk.training.spaces.family_blocks import Kind
from ghnqat_sdk.training.spaces.family_network import Head, Plan, Stage, Stem

SMALL_IMAGE_HEAD = 640
"""Most channels of a head's convolution where the last image is large."""


class Layout(NamedTuple):
    """Channels of the stages as factors on the base, and their strides."""

    ratios: tuple[float, ...]
    strides: tuple[int, ...]


class Size(NamedTuple):
    """How often the image is halved at most, and how many of the last stages are left out."""

    halvings: int
    dropped: int = 0


def unvaried(rng: random.Random, kind: Kind, position: int, count: int) -> Kind:
    """The same kind of block in all stages."""
    return kind


@dataclass(frozen=True, eq=False)
class Recipe:
    """One way to write networks of a family.

    Stems and layouts are those of the published networks, most of which halve an image of 32 pixels
    to a single position.

    Attributes:
        family: Its family.
        weight: How many of a hundred networks are drawn by it.
        stems, layouts, kinds, heads: What is drawn once for a network.
        bases: Channels that the ratios of a layout may refer to; chosen by what the network costs.
        sizes: See `Size`; where fewer halvings are drawn, the earliest are left out.
        counts: Blocks in a stage.
        vary: (rng, kind, stage, number of stages) to the kind of block in that stage.
        norms, activations: Of the whole network.
        biased: Whether convolutions have a bias though a norm follows.
        most: Most channels of a block.
    """

    family: str
    weight: int
    stems: Mapping[Stem, int]
    layouts: Mapping[Layout, int]
    bases: tuple[int, ...]
    kinds: Mapping[Kind, int]
    sizes: Mapping[Size, int]
    counts: Mapping[int, int]
    heads: Mapping[Head, int] = field(default_factory=lambda: {Head(): 1})
    vary: Callable[[random.Random, Kind, int, int], Kind] = unvaried
    norms: Mapping[str, int] = field(default_factory=lambda: {"batch": 1})
    activations: Mapping[str, int] = field(default_factory=lambda: {"relu": 1})
    biased: bool = False
    most: int = 512


def fewer_halvings(stem: Stem, strides: tuple[int, ...], halvings: int) -> tuple[Stem, list[int]]:
    """Leaves out the earliest: the stem's pooling, its stride, then the first stages' strides.

    A stem that loses one has a kernel of 3, as people adapt such networks to small images.
    """
    spare = stem.halvings + strides.count(2) - halvings
    kept = list(strides)
    if spare > 0:
        stem = stem._replace(kernel=3)
    if spare > 0 and stem.pooled:
        stem = stem._replace(pooled=False)
        spare -= 1
    while spare > 0 and stem.stride > 1:
        stem = stem._replace(stride=stem.stride // 2)
        spare -= 1
    for _ in range(spare):
        kept[kept.index(2)] = 1
    return stem, kept


def draw_head(rng: random.Random, recipe: Recipe, halvings: int) -> Head:
    head = draw(rng, recipe.heads)
    if halvings > 3:
        return head
    return head._replace(convolution=min(head.convolution, SMALL_IMAGE_HEAD))


def draw_plan(rng: random.Random, recipe: Recipe) -> Plan:
    """Everything but the base, for which the recipe's smallest stands in."""
    layout = draw(rng, recipe.layouts)
    halvings, dropped = draw(rng, recipe.sizes)
    count = len(layout.ratios) - dropped
    stem, strides = fewer_halvings(draw(rng, recipe.stems), layout.strides[:count], halvings)
    kind = draw(rng, recipe.kinds)
    stages = [
        Stage(ratio, draw(rng, recipe.counts), stride, recipe.vary(rng, kind, position, count))
        for position, (ratio, stride) in enumerate(zip(layout.ratios, strides, strict=False))
    ]
    norm = draw(rng, recipe.norms)
    return Plan(
        family=recipe.family,
        style=Style(norm, draw(rng, recipe.activations), recipe.biased or norm == "none"),
        base=recipe.bases[0],
        most=recipe.most,
        stem=stem,
        stages=tuple(stages),
        head=draw_head(rng, recipe, halvings),
    )
