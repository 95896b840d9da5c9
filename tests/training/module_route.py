"""The other route to a plan's scores and gradients: the fake-quantized module, run functionally."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ghnqat_sdk.bits import Bits
from ghnqat_sdk.graph.annotate import input_layers
from ghnqat_sdk.graph.layers import quantizable_layers
from ghnqat_sdk.graph.trace import trace
from ghnqat_sdk.quantization.convert import to_fake_quantized
from ghnqat_sdk.quantization.ranges import ClippedRanges
from ghnqat_sdk.training.compute import ComputeConfig, Setting
from ghnqat_sdk.training.plan import ForwardPlan

EXACT = ComputeConfig(dense="float32")
RANGES = ClippedRanges()


def setting(bits: Bits, compute: ComputeConfig = EXACT, **changes) -> Setting:
    return Setting(**{"bits": bits, "ranges": RANGES, "compute": compute} | changes)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def images(count: int, seed: int = 0) -> Tensor:
    return numbers(count, 3, 32, 32, seed=seed).contiguous(memory_format=torch.channels_last)


def drawn_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Values that keep the size of activations, for every parameter of a module."""
    drawn = {}
    for seed, (name, parameter) in enumerate(model.named_parameters()):
        value = numbers(*parameter.shape, seed=seed)
        if value.ndim > 1:
            value = value * (2 / value[0].numel()) ** 0.5
        else:
            value = 0.1 * value + (0.0 if name.endswith("bias") else 1.0)
        if value.ndim == 4:
            value = value.contiguous(memory_format=torch.channels_last)
        drawn[name] = value.requires_grad_()
    return drawn


def readers_of_images(model: nn.Module, x: Tensor) -> set[str]:
    return input_layers(trace(model, x), quantizable_layers(model))


def module_scores(
    model: nn.Module, parameters: Mapping[str, Tensor], x: Tensor, how: Setting
) -> tuple[Tensor, list[Tensor]]:
    """Scores, and the outputs of the blocks as forward hooks see them, before calibration."""
    model = copy.deepcopy(model)
    first = readers_of_images(model, x)
    to_fake_quantized(model, how.bits, how.ranges, rounding=how.rounding, inputs=first, warn=False)
    seen: list[Tensor] = []
    for block in model.block_ends():
        block.register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))
    return torch.func.functional_call(model.eval(), parameters, x), seen


def relative(ours: Tensor, theirs: Tensor, least: float = 1e-9) -> float:
    """Norm of the difference by that of the second."""
    return ((ours.float() - theirs).norm() / theirs.norm().clamp(min=least)).item()


def gradients(scores: Tensor, parameters: Mapping[str, Tensor]) -> list[Tensor]:
    along = numbers(*scores.shape, seed=99)
    return list(torch.autograd.grad(scores, list(parameters.values()), along))


def difference(model: nn.Module, x: Tensor, how: Setting) -> tuple[float, float]:
    """Of a plan from the module: in scores and taps, and in gradients; the largest of each."""
    parameters = drawn_parameters(model)
    scores, taps = ForwardPlan(model, readers_of_images(model, x)).run(parameters, x, how)
    # On AVX2, torch's weight gradient of a strided 1 x 1 convolution of an image in channels_last
    # corrupts memory.
    expected, seen = module_scores(model, parameters, x.contiguous(), how)
    assert (scores.shape, scores.dtype) == (expected.shape, torch.float32)
    assert [tap.shape for tap in taps] == [block.shape for block in seen]
    far = [relative(ours, theirs) for ours, theirs in zip(taps, seen, strict=True)]
    found, wanted = gradients(scores, parameters), gradients(expected, parameters)
    least = 1e-3 * max(gradient.norm().item() for gradient in wanted)
    apart = [relative(ours, theirs, least) for ours, theirs in zip(found, wanted, strict=True)]
    return max([relative(scores, expected), *far]), max(apart)


def agrees(
    model: nn.Module,
    how: Setting,
    tolerance: float,
    of_gradients: float | None = None,
    count: int = 4,
) -> bool:
    """Whether a plan does what the module does, on one of some batches.

    A number at the kink of an activation, or half way between two levels, may fall on either side,
    and everything behind it changes: hardly in each of them, where there are few.
    """
    limits = tolerance, tolerance if of_gradients is None else of_gradients
    found = (difference(model, images(count, seed), how) for seed in range(8))
    return any(values < limits[0] and gradients < limits[1] for values, gradients in found)
