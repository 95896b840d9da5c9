"""The optimizer of a run, and which weights decay."""

from __future__ import annotations

from torch import nn
from torch.optim import AdamW, Optimizer

from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.training.config import RunConfig


def make_optimizer(model: nn.Module, config: RunConfig) -> Optimizer:
    """The optimizer that the config names.

    Raises:
        ArgumentError: SOAP without the package that has it.
    """
    groups = _parameter_groups(model, config.weight_decay)
    if config.optimizer == "adamw":
        return AdamW(groups, lr=config.learning_rate)
    try:
        from pytorch_optimizer import SOAP
    except ImportError as error:
        raise ArgumentError(
            'optimizer="soap" needs pytorch_optimizer, which is not installed. Write pip install "ghnqat-sdk[train]", '
            'or set optimizer="adamw".'
        ) from error
    return SOAP(groups, lr=config.learning_rate)


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Matrices decay; biases, gains and embeddings, which have few or rare gradients, do not."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    decayed = [p for p in model.parameters() if p.ndim > 1 and id(p) not in embeddings]
    kept = [p for p in model.parameters() if p.ndim <= 1 or id(p) in embeddings]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
