"""A training run as one saved value, and the named recipes that make one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.hypernetwork.decoder import DecoderConfig
from ghnqat_sdk.hypernetwork.ghn import HypernetworkConfig
from ghnqat_sdk.quantization.bits import parse_bits
from ghnqat_sdk.quantization.quantizers import MinMaxRanges


class BitsShare(BaseModel):
    """One bit-width setting and how often a network is trained at it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    bits: tuple[int, int]
    """(weight, activation), 32 for float."""
    share: Annotated[float, Field(gt=0)] = 1.0
    """Relative frequency."""

    @field_validator("bits")
    @classmethod
    def _supported(cls, bits: tuple[int, int]) -> tuple[int, int]:
        return parse_bits(bits)


class RunConfig(BaseModel):
    """One training run, complete: the same config gives the same weights on the same machine."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    recipe: str = "custom"
    """Name of the recipe that it came from."""
    hypernetwork: HypernetworkConfig = HypernetworkConfig()
    seed: int = 0
    steps: int = Field(10_000, ge=1)
    """Optimizer steps."""
    meta_batch: int = Field(4, ge=1)
    """Architectures in each step of each process."""
    image_batch: int = Field(64, ge=2)
    """Images for each architecture."""
    batch_macs: float | None = Field(None, gt=0)
    """Multiply-accumulates of one network's batch: costlier networks see fewer images, an eighth of them at least."""
    max_macs: float = Field(12e6, gt=0)
    """Architectures that cost more multiply-accumulates for one image are passed over."""
    pool: int = Field(250_000, ge=1, le=250_000)
    """Training architectures that are used: indices 0 … pool - 1."""
    norm_weights: dict[Literal["batch", "group", "none"], Annotated[float, Field(gt=0)]] = {}
    """How much more often architectures of a norm are drawn than the pool has them, relative to the others; 1 for a
    norm that is missing."""
    bits: tuple[BitsShare, ...] = (BitsShare(bits=(4, 4)),)
    """Settings drawn for each network, once the float phase is over."""
    float_phase: float = Field(0.0, ge=0, le=1)
    """Share of the steps, from the first on, in which every network is trained in float."""
    simple_phase: float = Field(0.0, ge=0, le=1)
    """Share of the steps, from the first on, in which only simple architectures are drawn (`Architecture.simple`)."""
    crop_phase: float = Field(0.0, ge=0, le=1)
    """Share of the steps, from the first on, in which networks with a pooled head see crops instead of whole images."""
    crop: int = Field(24, ge=8, le=32)
    """Side of these crops in pixels."""
    padding: int = Field(4, ge=0, le=16)
    """Zeros around an image, in pixels, before it is cropped; with 0, whole images are only flipped."""
    noise: bool = False
    """NoiseQuant instead of SimQuant."""
    optimizer: Literal["adamw", "soap"] = "adamw"
    """AdamW, or Adam in the eigenbasis of Shampoo's preconditioner (SOAP, Vyas et al. 2024; needs the train extra)."""
    learning_rate: float = Field(1e-3, gt=0)
    warmup_steps: int = Field(200, ge=0)
    """Linear warm-up; a cosine to zero follows."""
    weight_decay: float = Field(1e-2, ge=0)
    clip_norm: float = Field(5.0, gt=0)
    """Largest norm of the gradient of one step."""
    network_clip_norm: float = Field(2.0, gt=0)
    """Largest norm of one network's gradient with respect to its predicted parameters."""
    ema_decay: float = Field(0.999, ge=0, lt=1)
    """Decay of the running average of the weights, which is what validation and users get."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    penalty: float = Field(0.0, ge=0)
    """Weight of the mean squared size of the predicted tensors before scaling (GHN-3's regularization)."""
    checkpoint_every: int = Field(500, ge=1)
    """Steps between checkpoints."""
    validate_every: int = Field(2_000, ge=1)
    """Steps between validations."""
    validation_graphs: int = Field(16, ge=1)
    validation_images: int = Field(512, ge=2)


_ALL_BITS = (
    BitsShare(bits=(2, 2), share=0.25),
    BitsShare(bits=(4, 4), share=0.3),
    BitsShare(bits=(4, 8), share=0.15),
    BitsShare(bits=(8, 8), share=0.1),
    BitsShare(bits=(32, 32), share=0.2),
)
_CLIPPED = HypernetworkConfig(decoder=DecoderConfig(second=256))
_MIN_MAX = _CLIPPED.model_copy(update={"ranges": MinMaxRanges()})


def ghn_qat_w4a4() -> RunConfig:
    """The paper's SimQuant at W4/A4: one bit-width, min-max ranges."""
    return RunConfig(recipe="ghn-qat-w4a4", hypernetwork=_MIN_MAX, bits=(BitsShare(bits=(4, 4)),))


def ghn_q() -> RunConfig:
    """GHN-Q, the paper's baseline: trained in float, quantized only when it is used."""
    return RunConfig(recipe="ghn-q", hypernetwork=_MIN_MAX, bits=(BitsShare(bits=(32, 32)),))


def noisequant_w2a2() -> RunConfig:
    """The paper's NoiseQuant at W2/A2: rounding modelled as uniform noise."""
    return RunConfig(recipe="noisequant-w2a2", hypernetwork=_MIN_MAX, bits=(BitsShare(bits=(2, 2)),), noise=True)


def all_bits() -> RunConfig:
    """One hypernetwork for all bit-widths, clipped ranges; the recipe of the weights that ship."""
    return RunConfig(
        recipe="all-bits",
        hypernetwork=_CLIPPED,
        bits=_ALL_BITS,
        max_macs=8e6,
        simple_phase=0.1,
        float_phase=0.25,
        learning_rate=2e-3,
        network_clip_norm=0.5,
    )


RECIPES: dict[str, Callable[[], RunConfig]] = {
    "ghn-qat-w4a4": ghn_qat_w4a4,
    "ghn-q": ghn_q,
    "noisequant-w2a2": noisequant_w2a2,
    "all-bits": all_bits,
}


def make_recipe(name: str) -> RunConfig:
    """The run that a recipe's name stands for.

    Raises:
        ArgumentError: an unknown name.
    """
    if name not in RECIPES:
        raise ArgumentError(f"recipe={name!r} is unknown. Write one of {', '.join(RECIPES)}.")
    return RECIPES[name]()
