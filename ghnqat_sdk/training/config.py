"""A training run as one saved value: nested, one part for each owner, and complete."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator

from ghnqat_sdk.bits import parse_bits
from ghnqat_sdk.configs import Limit, Part, Seed
from ghnqat_sdk.data import DataConfig
from ghnqat_sdk.errors import ArgumentError, problems
from ghnqat_sdk.hypernetwork.ghn import HypernetworkConfig, TrainingImages
from ghnqat_sdk.plugins import with_imports
from ghnqat_sdk.quantization.roundings import NEAREST, Rounding, without_switch
from ghnqat_sdk.training.compute import ComputeConfig
from ghnqat_sdk.training.folder import RECIPES, recipe_names
from ghnqat_sdk.training.hints import HintConfig
from ghnqat_sdk.training.optimizers import AdamWConfig, OptimizerConfig
from ghnqat_sdk.training.sampler import Sampler, SamplingConfig
from ghnqat_sdk.training.schedules import DecayConfig, ScheduleConfig, StableSchedule
from ghnqat_sdk.training.shares import DeepNetsShare, SpaceShare

FORMAT = 2
"""Version of the layout of a run's config."""


class BitsShare(Part):
    """One bit-width setting and how often a network is trained at it."""

    bits: tuple[int, int]
    """(weight, activation), 32 for float."""
    share: float = Field(default=1.0, ge=0)
    """Relative frequency."""

    @field_validator("bits")
    @classmethod
    def _supported(cls, bits: tuple[int, int]) -> tuple[int, int]:
        return parse_bits(bits)


class BitsConfig(Part):
    """At which bit-widths networks are trained."""

    settings: tuple[BitsShare, ...] = (BitsShare(bits=(4, 4)),)
    """Drawn for each network."""
    float_until: int = Field(default=0, ge=0)
    """Steps, from the first on, in which every network is trained in float."""
    rounding: Rounding = NEAREST
    """How values come to the levels of their range."""

    _older = model_validator(mode="before")(without_switch)

    @model_validator(mode="after")
    def _some_share(self) -> BitsConfig:
        if sum(setting.share for setting in self.settings) <= 0:
            raise ValueError("at least one of bits.settings needs a share above 0")
        return self


class ValidationConfig(Part):
    """What is measured while training, on validation networks and images."""

    every: int = Field(default=1_000, ge=1)
    """Steps between validations."""
    networks: int = Field(default=12, ge=1)
    """Of each space."""
    images: int = Field(default=512, ge=2)
    max_macs: Limit = 60e6
    """Networks that cost more multiply-accumulates for one image are passed over."""


class RunConfig(Part):
    """One training run, complete: the same config gives the same weights on the same machine."""

    format: Literal[2] = 2
    """Version of this layout."""
    recipe: str = "custom"
    """Name of the recipe that it came from."""
    description: str = ""
    """What the run is for, in a sentence."""
    seed: Seed = 0
    data: DataConfig = DataConfig(padding=0)
    initial: str | None = None
    """Weights to start from: anything that `load_pretrained` takes."""
    hypernetwork: Annotated[HypernetworkConfig, AfterValidator(with_imports)] = HypernetworkConfig()
    networks: tuple[SpaceShare, ...] = (DeepNetsShare(),)
    sampling: SamplingConfig = SamplingConfig()
    bits: Annotated[BitsConfig, AfterValidator(with_imports)] = BitsConfig()
    hints: HintConfig | None = None
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    optimizer: OptimizerConfig = AdamWConfig()
    schedule: ScheduleConfig = StableSchedule()
    decay: DecayConfig | None = None
    clip_norm: Limit = 5.0
    """Largest norm of the gradient of one step."""
    network_clip_norm: float = Field(default=1.0, gt=0)
    """Largest norm of one network's gradient with respect to its predicted parameters."""
    relative_norm: bool = False
    """Whether `network_clip_norm` is the relative norm, see `training.balance`, to which each
    network's gradient is scaled, so that all of them count the same."""
    average: float = Field(default=0.998, ge=0, lt=1)
    """Decay of the running average of the weights, which is what validation and users get."""
    compute: ComputeConfig = ComputeConfig()
    validation: ValidationConfig = ValidationConfig()
    checkpoint_every: int = Field(default=500, ge=1)
    """Steps between checkpoints."""

    @model_validator(mode="after")
    def _some_networks(self) -> RunConfig:
        if sum(share.share for share in self.networks) <= 0:
            raise ValueError("at least one of networks needs a share above 0")
        return self

    @model_validator(mode="after")
    def _images_as_loaded(self) -> RunConfig:
        for name in ("size", "mean", "std"):
            loaded, described = getattr(self.data, name), getattr(self.hypernetwork.images, name)
            if described not in (loaded, TrainingImages.model_fields[name].default):
                raise ValueError(
                    f"hypernetwork.images.{name} is {described}, where images are loaded with "
                    f"data.{name}, {loaded}; write data.{name} alone, the other follows"
                )
        return self

    @property
    def largest_size(self) -> int | None:
        """Of images that are resized for networks of some share; None where none are enlarged."""
        sizes = [share.size for share in self.networks if share.size and share.share > 0]
        largest = max(sizes, default=0)
        return largest if largest > self.data.size else None

    def build_sampler(self) -> Sampler:
        """What each step sees.

        Raises:
            ArgumentError: no network of a space meets its limits.
        """
        settings = [(setting.bits, setting.share) for setting in self.bits.settings]
        until = self.bits.float_until
        return Sampler(self.seed, self.networks, self.sampling, settings, until)

    def learning_rate_at(self, step: int) -> float:
        """Of a step, counted from zero."""
        rate = self.optimizer.learning_rate * self.schedule.factor(step)
        return rate if self.decay is None else rate * self.decay.rate(step)

    def hint_weight_at(self, step: int) -> float:
        """Of the hint loss beside the cross-entropy; 0 without hints."""
        if self.hints is None:
            return 0.0
        fade = 1.0 if self.decay is None else self.decay.hint(step)
        return self.hints.weight * fade

    def gradient_scale_at(self, step: int) -> float:
        """How many times larger gradients are than those of the cross-entropy alone, and so what
        limits of their norms are multiplied by: the hint loss is added so many times."""
        return 1 + self.hint_weight_at(step)


def load_recipe(name: str) -> RunConfig:
    """The run that a recipe's name stands for.

    Raises:
        ArgumentError: an unknown name.
    """
    if name not in recipe_names():
        raise ArgumentError(
            f"recipe={name!r} is unknown. Write one of {', '.join(recipe_names())}."
        )
    return load_config(RECIPES / f"{name}.json")


def load_config(path: str | Path) -> RunConfig:
    """A run's config from a JSON file.

    Raises:
        ArgumentError: no such file, or no config of this layout in it.
    """
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise ArgumentError(
            f"The config {str(path)!r} cannot be read: {error}. Write a path of a run.json, or a "
            f"recipe's name: {', '.join(recipe_names())}."
        ) from error
    try:
        return RunConfig.model_validate_json(text)
    except ValidationError as error:
        raise ArgumentError(
            f"{str(path)!r} is no config of layout {FORMAT}: {problems(error, most=1)}. Start from "
            f"a recipe: ghnqat-train recipes all-bits"
        ) from error
