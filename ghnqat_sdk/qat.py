"""What QAT adds to a fake-quantized model: learned steps, frozen batch norms, dampened
oscillation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ghnqat_sdk.advice import require_module
from ghnqat_sdk.bits import FLOAT_BITS
from ghnqat_sdk.choices import require_switches
from ghnqat_sdk.copying import copy_module
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.graph.refusals import refuse_wrapped
from ghnqat_sdk.quantization.added import take_in_norms
from ghnqat_sdk.quantization.convert import fix_learned_steps
from ghnqat_sdk.quantization.layers import used_weight
from ghnqat_sdk.quantization.lookup import (
    layers_in_any,
    require_calibrated_layers,
    require_fake_quantized_layers,
    require_nearest,
)
from ghnqat_sdk.quantization.quantizers import FakeQuantizer, LearnedStepQuantizer
from ghnqat_sdk.quantization.state import states_of


def learn_steps(qmodel: nn.Module) -> list[nn.Parameter]:
    """Make the quantization steps of a calibrated model trainable, in place (LSQ, Esser et al.
    2020).

    A tensor that is 0 throughout has no step to start from: it keeps the range of its values.
    Activations start from their calibrated ranges, weights from those of their values; weights with
    a range for each output channel get a step for each. The `state_dict` gains a `log_scale` and a
    `zero_point` for each quantizer; `fix_steps` takes them away again.

    Returns:
        The steps of the whole model, for an optimizer; those of an earlier call as they stand.

    Raises:
        ArgumentError: the model is not fake-quantized, not calibrated, or rounds other than to the
            nearest level.
    """
    layers = require_calibrated_layers(qmodel, "learn_steps")
    what, otherwise = "Learned steps round to the nearest level", ", or train without learn_steps"
    require_nearest(layers, what, otherwise)
    steps: list[nn.Parameter] = []
    for layer in layers.values():
        for name, tensor in (("weight_quantizer", used_weight(layer)), ("input_quantizer", None)):
            learned = _learned(getattr(layer, name), tensor, layer.weight.device)
            if learned is not None:
                layer._modules[name] = learned.train(layer.training)
                steps.append(learned.log_scale)
    return steps


def _learned(
    quantizer: FakeQuantizer, tensor: Tensor | None, device: torch.device
) -> LearnedStepQuantizer | None:
    """The quantizer with a step that is trained; None where there is none to start from."""
    if isinstance(quantizer, LearnedStepQuantizer):
        return quantizer
    if quantizer.bits == FLOAT_BITS or (tensor is None and quantizer.frozen_range is None):
        return None
    low, high = quantizer.range_of(tensor)  # type: ignore[arg-type]
    wide = high > low
    if not (wide.any() if isinstance(wide, Tensor) else wide):
        return None
    with torch.inference_mode(False):  # its tensors could never be trained
        return LearnedStepQuantizer(quantizer, low, high).to(device)


def fix_steps(qmodel: nn.Module, *, inplace: bool = False) -> nn.Module:
    """A copy without learned steps: each becomes a fixed range, and the `state_dict` the float
    model's.

    Args:
        qmodel: After `learn_steps` and training.
        inplace: Change `qmodel` itself and return it.

    Raises:
        ArgumentError: `qmodel` is no nn.Module, wrapped or compiled, or `inplace` neither True nor
            False.
    """
    require_module(qmodel, "fix_steps(qmodel)")
    refuse_wrapped(qmodel, ArgumentError)
    require_switches(inplace=inplace)
    result = qmodel if inplace else copy_module(qmodel)
    fix_learned_steps(result)
    return result


def freeze_batch_norm(qmodel: nn.Module, frozen: bool = True) -> nn.Module:
    """Make norms use their calibrated statistics in training as well, and leave them as they are.

    Late in QAT at few bits, weights that jump between levels make the running statistics unreliable
    (Nagel et al. 2022). γ and β still train. `calibrate` afterwards re-estimates the statistics.

    Args:
        qmodel: From `predict_quantized_params` or `from_float`, calibrated.
        frozen: False undoes it.

    Returns:
        `qmodel` itself, as `qmodel.train()` does.

    Raises:
        ArgumentError: the model is not fake-quantized, or not calibrated; or `frozen` is neither
            True nor False.
    """
    require_switches(frozen=frozen)
    require = require_calibrated_layers if frozen else require_fake_quantized_layers
    require(qmodel, "freeze_batch_norm")
    take_in_norms(qmodel)
    for state in states_of(qmodel):
        state.frozen_norms = frozen
    return qmodel


def oscillation_loss(qmodel: nn.Module) -> Tensor:
    """Sum of squared distances of all weights from their levels, to be added to the loss (Nagel et
    al. 2022).

    A weight between two levels can oscillate from step to step; this draws it to its level, with
    gradients for the weights alone. Weights beyond the outermost levels add nothing. Usual factors
    grow from 0 to about 1e-3.

    Returns:
        A scalar tensor that takes part in autograd; 0 where all weights are float.

    Raises:
        ArgumentError: the model is not fake-quantized.
    """
    total: Tensor | None = None
    for layer in layers_in_any(qmodel, "oscillation_loss").values():
        if layer.weight_quantizer.bits == FLOAT_BITS:
            continue
        weight = used_weight(layer)
        levels = layer.weight_quantizer(weight).detach()
        # The distance from a clipped weight to its level is that of clipping, which the quantizer's
        # range decides.
        low, high = _outermost(levels, layer.weight_quantizer.range_of(weight)[0])
        distance = (weight.clamp(low, high) - levels).square().sum()
        total = distance if total is None else total + distance
    return total if total is not None else torch.zeros((), device="cpu")


def _outermost(levels: Tensor, low: float | Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest of all levels (O, ...); of each channel where `low` is for each."""
    by_channel = isinstance(low, Tensor) and low.numel() > 1
    rest = list(range(1 if by_channel else 0, levels.ndim))
    return levels.amin(rest, keepdim=True), levels.amax(rest, keepdim=True)
