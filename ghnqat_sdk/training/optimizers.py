"""Optimizers, each a config beside what it makes.

A run's config chooses one by `type`; "custom" is one that is written elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import nn
from torch.optim import AdamW, Optimizer

from ghnqat_sdk.configs import Part
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.plugins import ImportedCustom

_Rate = Annotated[float, Field(gt=0)]
_Beta = Annotated[float, Field(ge=0, lt=1)]


class AdamWConfig(Part):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""

    same_everywhere: ClassVar[bool] = True
    """Whether it makes the same steps in all processes, to the last digit."""
    type: Literal["adamw"] = "adamw"
    learning_rate: _Rate = 1e-3
    weight_decay: float = Field(default=1e-2, ge=0)
    betas: tuple[_Beta, _Beta] = (0.9, 0.999)

    @property
    def name(self) -> str:
        """What its saved state belongs to."""
        return self.type

    def build(self, modules: Sequence[nn.Module]) -> Optimizer:
        """For all parameters of `modules`."""
        groups = parameter_groups(modules, self.weight_decay)
        return AdamW(groups, lr=self.learning_rate, betas=self.betas, fused=True)


class SoapConfig(Part):
    """Adam in the eigenbasis of Shampoo's preconditioner (SOAP, Vyas et al. 2024).

    It needs the train extra.
    """

    same_everywhere: ClassVar[bool] = False  # decompositions round differently
    type: Literal["soap"] = "soap"
    learning_rate: _Rate = 1e-3
    weight_decay: float = Field(default=1e-2, ge=0)

    @property
    def name(self) -> str:
        """What its saved state belongs to."""
        return self.type

    def build(self, modules: Sequence[nn.Module]) -> Optimizer:
        """For all parameters of `modules`.

        Raises:
            ArgumentError: the package that has SOAP is not installed.
        """
        try:
            from pytorch_optimizer import SOAP
        except ImportError as error:
            raise ArgumentError(
                'The optimizer "soap" needs pytorch_optimizer, which is not installed. Write '
                'pip install "ghnqat-sdk[train]", or choose {"type": "adamw"}.'
            ) from error
        return SOAP(parameter_groups(modules, self.weight_decay), lr=self.learning_rate)


class CustomOptimizer(ImportedCustom):
    """Any subclass of `torch.optim.Optimizer`: `factory(groups, lr=learning_rate, **settings)`."""

    same_everywhere: ClassVar[bool] = False
    type: Literal["custom"] = "custom"
    expected: ClassVar[str] = (
        "An optimizer is made by factory(groups, lr=learning_rate, **settings), of two groups of "
        "parameters, each with its weight_decay."
    )
    learning_rate: _Rate = 1e-3
    weight_decay: float = Field(default=1e-2, ge=0)
    """Of the parameters that decay; see `parameter_groups`."""

    @property
    def name(self) -> str:
        """What its saved state belongs to."""
        return self.factory

    def build(self, modules: Sequence[nn.Module]) -> Optimizer:
        """For all parameters of `modules`.

        Raises:
            ArgumentError: it is no optimizer, or does not take the settings.
        """
        groups = parameter_groups(modules, self.weight_decay)
        return self.make(Optimizer, groups, lr=self.learning_rate)


OptimizerConfig = Annotated[AdamWConfig | SoapConfig | CustomOptimizer, Field(discriminator="type")]


def parameter_groups(modules: Sequence[nn.Module], weight_decay: float) -> list[dict[str, object]]:
    """Matrices decay; biases, gains and embeddings, which have few or rare gradients, do not."""
    parts = [part for module in modules for part in module.modules()]
    embeddings = {id(part.weight) for part in parts if isinstance(part, nn.Embedding)}
    parameters = [p for module in modules for p in module.parameters()]
    decayed = [p for p in parameters if p.ndim > 1 and id(p) not in embeddings]
    kept = [p for p in parameters if p.ndim <= 1 or id(p) in embeddings]
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
