"""The families of hand-made networks, and the recipes by which they are drawn."""

from __future__ import annotations

import random

from ghnqat_sdk.training.spaces.drawing import draw
from ghnqat_sdk.training.spaces.family_blocks import Kind
from ghnqat_sdk.training.spaces.family_draw import Layout, Recipe, Size
from ghnqat_sdk.training.spaces.family_network import Head, Stem

# ---------------------------------------------------------------- what differs between stages


def vary_expansion(rng: random.Random, kind: Kind, position: int, count: int) -> Kind:
    """MobileNetV2: none in the first stage, the same in all others."""
    return kind._replace(expansion=kind.expansion if position else 1)


def vary_mnasnet(rng: random.Random, kind: Kind, position: int, count: int) -> Kind:
    """Kernel and expansion."""
    return kind._replace(kernel=draw(rng, {3: 1, 5: 1}), expansion=draw(rng, {3: 40, 6: 60}))


def vary_both(rng: random.Random, kind: Kind, position: int, count: int) -> Kind:
    """Kernel and expansion, none in the first stage."""
    kernel = draw(rng, {3: 65, 5: 35})
    expansion = draw(rng, {3: 25, 4: 15, 6: 60})
    return kind._replace(kernel=kernel, expansion=expansion if position else 1)


def vary_mobilenet_v3(rng: random.Random, kind: Kind, position: int, count: int) -> Kind:
    """ReLU in the earlier half, gates in some stages."""
    gate = "mobilenet-v3" if rng.randrange(5) < 3 else ""
    early = "relu" if 2 * position < count else ""
    return vary_both(rng, kind, position, count)._replace(gate=gate, activation=early)


def vary_efficientnet(rng: random.Random, kind: Kind, position: int, count: int) -> Kind:
    """Gates, but in fused blocks, which are for the earlier half only."""
    varied = vary_both(rng, kind, position, count)
    if kind.block == "fused" and 2 * position < count:
        return varied
    return varied._replace(block="inverted", gate="efficientnet")


def vary_inception(rng: random.Random, kind: Kind, position: int, count: int) -> Kind:
    """Rows and columns only behind the first stage, as in Inception-v3."""
    return kind if position else kind._replace(block="inception")


# ---------------------------------------------------------------- what recipes share

SIZES = {Size(5): 40, Size(4): 20, Size(3): 14, Size(3, 1): 14, Size(2, 1): 12}
NORMS = {"batch": 92, "group": 8}
ACTIVATIONS = {"relu": 86, "leaky-relu": 5, "silu": 5, "gelu": 2, "hardswish": 2}
COUNTS = {1: 38, 2: 36, 3: 16, 4: 6, 6: 4}

IMAGENET = {Stem("conv", 7, 2, pooled=True): 80, Stem("deep", 3, 2, pooled=True): 20}
RESNET = {
    Layout((1, 2, 4, 8), (1, 2, 2, 2)): 70,
    Layout((1, 2, 4, 4), (1, 2, 2, 2)): 15,
    Layout((1, 1.5, 2, 4), (1, 2, 2, 2)): 15,
}
NARROW_IMAGENET = {stem._replace(ratio=0.25): odds for stem, odds in IMAGENET.items()}
BOTTLENECK_BASES = (64, 96, 128, 192, 256)

MOBILE = {
    Layout((1, 1.5, 2, 4, 6, 10, 20), (1, 2, 2, 2, 1, 2, 1)): 60,
    Layout((1, 1.5, 2.5, 5, 7, 12), (1, 2, 2, 2, 1, 2)): 40,
}
MOBILE_BASES = (16, 20, 24, 32, 40, 48, 64)
MOBILE_SIZES = {Size(5): 40, Size(4): 30, Size(3): 30}
MOBILE_COUNTS = {1: 45, 2: 35, 3: 15, 4: 5}
MOBILE_NORMS = {"batch": 94, "group": 6}
MOBILE_WIDTHS = {512: 10, 640: 10, 1024: 20, 1280: 60}
MOBILE_STEM = {Stem("conv", 3, 2, ratio=2): 1}

VGG = {
    Layout((1, 2, 4, 8, 8), (2, 2, 2, 2, 2)): 45,
    Layout((1, 3, 6, 12, 12), (2, 2, 2, 2, 2)): 20,
    Layout((1, 4, 8, 16, 32), (2, 2, 2, 2, 2)): 35,
}
VGG_SIZES = {Size(5): 45, Size(4, 1): 35, Size(3, 2): 20}
VGG_COUNTS = {1: 50, 2: 40, 3: 10}
VGG_BASES = (16, 24, 32, 48, 64)
VGG_HEADS = {
    Head(): 46,
    Head(hidden=(512,)): 6,
    Head(hidden=(512, 512)): 8,
    Head(hidden=(1024, 1024)): 8,
    Head(side=2, hidden=(512, 512)): 6,
    Head(side=4, hidden=(256, 256)): 6,
    Head(side=7, hidden=(256,)): 4,
    Head(side=7, hidden=(128, 128)): 6,
    Head(side=7, hidden=(256, 256)): 10,
}

# ---------------------------------------------------------------- the recipes

RECIPES: tuple[Recipe, ...] = (
    Recipe(
        "plain", 6, {Stem("none"): 1}, VGG, VGG_BASES, {Kind("plain"): 1}, VGG_SIZES, VGG_COUNTS,
        heads=VGG_HEADS, norms={"batch": 96, "group": 4}, activations=ACTIVATIONS, biased=True,
    ),
    Recipe(
        "plain", 2, {Stem("none"): 1}, VGG, VGG_BASES, {Kind("plain"): 1}, VGG_SIZES, VGG_COUNTS,
        heads=VGG_HEADS, norms={"none": 1},
    ),
    Recipe(
        "residual", 13, IMAGENET, RESNET, (24, 32, 48, 64, 96), {Kind("basic"): 1}, SIZES,
        COUNTS, norms=NORMS, activations=ACTIVATIONS,
    ),
    Recipe(
        "bottleneck", 10, NARROW_IMAGENET, RESNET, BOTTLENECK_BASES,
        {Kind("bottleneck", expansion=4): 80, Kind("bottleneck", expansion=2): 20}, SIZES, COUNTS,
        norms=NORMS, activations=ACTIVATIONS, most=1024,
    ),
    Recipe(
        "regnet", 5, {Stem("conv", 3, 2, ratio=0.66): 1},
        {
            Layout((1, 2, 4, 8), (2, 2, 2, 2)): 40,
            Layout((1, 2, 5, 10), (2, 2, 2, 2)): 30,
            Layout((1, 1.5, 3, 6), (2, 2, 2, 2)): 30,
        },
        (24, 32, 48, 64, 96, 128),
        {
            Kind("regnet", group_width=width, gate=gate): 1
            for width in (8, 16, 24) for gate in ("", "regnet", "regnet")
        },
        SIZES, COUNTS, norms=NORMS,
    ),
    Recipe(
        "regnet", 2, NARROW_IMAGENET, RESNET, BOTTLENECK_BASES,
        {Kind("bottleneck", expansion=2, group_width=width): 1 for width in (4, 8)}, SIZES, COUNTS,
        norms=NORMS, most=1024,
    ),
    Recipe(
        "preact", 3, {Stem("bare", 7, 2, pooled=True): 1}, RESNET, (24, 32, 48, 64, 96),
        {Kind("preactivated"): 1}, SIZES, COUNTS, heads={Head(activates=True): 1}, norms=NORMS,
        activations=ACTIVATIONS,
    ),
    Recipe(
        "preact", 2, {Stem("bare", 7, 2, pooled=True, ratio=0.25): 1}, RESNET, BOTTLENECK_BASES,
        {Kind("preactivated", expansion=4): 1}, SIZES, COUNTS, heads={Head(activates=True): 1},
        norms=NORMS, activations=ACTIVATIONS, most=1024,
    ),
    Recipe(
        "wide", 4, {Stem("bare", 3, 2, ratio=0.5): 1, Stem("bare", 3, 2, ratio=0.25): 1},
        {Layout((1, 2, 4), (1, 2, 2)): 60, Layout((1, 2, 4, 8), (1, 2, 2, 2)): 40},
        (32, 48, 64, 96, 128), {Kind("preactivated"): 1}, {Size(4): 70, Size(2): 30}, COUNTS,
        heads={Head(activates=True): 1}, norms=NORMS,
    ),
    Recipe(
        "densenet", 6, {Stem("conv", 7, 2, pooled=True, ratio=2): 1},
        {Layout((1, 1, 1, 1), (1, 2, 2, 2)): 1}, (16, 24, 32, 48), {Kind("dense"): 1}, SIZES,
        {2: 15, 3: 25, 4: 30, 6: 22, 8: 8}, heads={Head(activates=True): 1},
    ),
    Recipe(
        "mobilenet_v1", 5, {Stem("conv", 3, 2, ratio=0.5): 1},
        {
            Layout((1, 2, 4, 8, 16), (1, 2, 2, 2, 2)): 70,
            Layout((1, 2, 4, 8, 8), (1, 2, 2, 2, 2)): 30,
        },
        (24, 32, 48, 64, 96, 128), {Kind("separable"): 85, Kind("separable", kernel=5): 15},
        {Size(5): 42, Size(4): 22, Size(3): 18, Size(3, 1): 18}, {1: 35, 2: 40, 3: 15, 5: 10},
        norms=MOBILE_NORMS, activations={"relu": 65, "relu6": 35}, most=1024,
    ),
    Recipe(
        "inverted", 6, MOBILE_STEM, MOBILE, MOBILE_BASES,
        {
            Kind("inverted", expansion=6): 70,
            Kind("inverted", expansion=4): 15,
            Kind("inverted", expansion=3): 15,
        },
        MOBILE_SIZES, MOBILE_COUNTS,
        heads={Head(convolution=width): odds for width, odds in MOBILE_WIDTHS.items()},
        vary=vary_expansion, norms=MOBILE_NORMS, activations={"relu6": 1},
    ),
    Recipe(
        "inverted", 5, {Stem("separable", 3, 2): 1},
        {Layout((1.5, 2.5, 5, 6, 12, 20), (2, 2, 2, 1, 2, 1)): 1}, MOBILE_BASES,
        {Kind("inverted"): 1}, MOBILE_SIZES, MOBILE_COUNTS,
        heads={Head("mean", convolution=width): odds for width, odds in MOBILE_WIDTHS.items()},
        vary=vary_mnasnet, norms=MOBILE_NORMS,
    ),
    Recipe(
        "inverted_se", 4, {Stem("conv", 3, 2): 1},
        {
            Layout((1, 1.5, 2.5, 5, 7, 10), (1, 2, 2, 2, 1, 2)): 60,
            Layout((1, 1.5, 2.5, 3, 6), (2, 2, 2, 1, 2)): 40,
        },
        MOBILE_BASES, {Kind("inverted"): 1}, MOBILE_SIZES, MOBILE_COUNTS,
        heads={
            Head(convolution=width, hidden=(hidden,)): 1
            for width in (512, 640, 1024) for hidden in (1024, 1280)
        },
        vary=vary_mobilenet_v3, norms=MOBILE_NORMS, activations={"hardswish": 1},
    ),
    Recipe(
        "inverted_se", 4, MOBILE_STEM, MOBILE, MOBILE_BASES,
        {Kind("inverted"): 70, Kind("fused"): 30}, MOBILE_SIZES, MOBILE_COUNTS,
        heads={Head(convolution=width): odds for width, odds in MOBILE_WIDTHS.items()},
        vary=vary_efficientnet, norms=MOBILE_NORMS, activations={"silu": 1},
    ),
    Recipe(
        "shufflenet", 5, {Stem("conv", 3, 2, pooled=True, ratio=0.5): 1},
        {Layout((1, 2, 4), (2, 2, 2)): 1}, (48, 64, 96, 128, 192, 256), {Kind("shuffled"): 1},
        {Size(5): 46, Size(4): 22, Size(3): 22, Size(2, 1): 10}, {2: 20, 3: 25, 4: 40, 6: 15},
        heads={Head("mean", convolution=width): 1 for width in (512, 1024, 1024)},
    ),
    Recipe(
        "squeezenet", 3,
        {
            Stem("unpadded", 3, 2, pooled=True, ratio=0.5): 70,
            Stem("unpadded", 7, 2, pooled=True, ratio=0.75): 30,
        },
        {Layout((1, 2, 3, 4), (1, 2, 2, 1)): 1}, (64, 96, 128, 160, 192), {Kind("fire"): 1},
        {Size(4): 45, Size(3): 35, Size(2): 20}, {1: 30, 2: 60, 3: 10}, heads={Head("conv"): 1},
        norms={"none": 1},
    ),
    Recipe(
        "squeezenet", 1, {Stem("unpadded", 3, 2, pooled=True, ratio=0.5): 1},
        {Layout((1, 2, 3, 4), (1, 2, 2, 1)): 1}, (64, 96, 128, 160, 192), {Kind("fire"): 1},
        {Size(4): 45, Size(3): 35, Size(2): 20}, {1: 30, 2: 60, 3: 10}, heads={Head("conv"): 1},
    ),
    Recipe(
        "googlenet", 5, {Stem("inception", 7, 2, pooled=True, ratio=0.75): 1},
        {Layout((1, 2, 4), (2, 2, 2)): 1}, (128, 192, 256),
        {
            Kind("inception"): 60,
            Kind("inception", kernel=5): 15,
            Kind("factorized"): 25,
        },
        {Size(5): 42, Size(4): 28, Size(3): 30}, {1: 30, 2: 50, 3: 15, 5: 5}, vary=vary_inception,
    ),
    Recipe(
        "convnext", 4, {Stem("patch", stride=4): 1}, {Layout((1, 2, 4, 8), (1, 2, 2, 2)): 1},
        (32, 48, 64, 96, 128), {Kind("convnext", kernel=7): 90, Kind("convnext", kernel=5): 10},
        {Size(5): 40, Size(4): 30, Size(3, 1): 30}, {1: 25, 2: 40, 3: 25, 5: 10},
        heads={Head("norm"): 1}, norms={"layer": 1}, activations={"gelu": 1}, biased=True,
    ),
    Recipe(
        "repvgg", 5, {Stem("repvgg", 3, 2): 1}, {Layout((1, 2, 4, 8), (2, 2, 2, 2)): 1},
        (24, 32, 48, 64, 96), {Kind("repvgg"): 1}, SIZES, COUNTS,
    ),
)  # fmt: skip

FAMILIES: tuple[str, ...] = tuple(dict.fromkeys(recipe.family for recipe in RECIPES))
