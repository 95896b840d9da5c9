"""Asymmetric, uniform quantization as pure functions: scale, zero point, straight-through rounding.

Ranges are pairs (low, high) of 0-d float32 tensors or Python floats, for a tensor x of any shape
(...), or of tensors (O, 1, ...), one number for each of the O rows of x (O, ...): the output
channels of a weight. A NaN in x or in its range comes out as NaN: it is never rounded to a number.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Range = tuple[Tensor, Tensor] | tuple[float, float]


def scale_and_zero_point(
    low: Tensor | float, high: Tensor | float, bits: int
) -> tuple[Tensor, Tensor]:
    """The affine map of [low, high] to the integers 0 … 2^bits - 1.

    The range is widened to hold 0, so that zero padding and ReLU zeros stay exact (Jacob et al.
    2018); an empty range gets scale 1.

    Returns:
        scale: Float32 of the shape of the ends, positive: real value = scale · (integer - zero
            point).
        zero point: Alike, holding an integer in 0 … 2^bits - 1.
    """
    levels = 2**bits - 1
    low = torch.clamp(_number(low), max=0.0)
    high = torch.clamp(_number(high), min=0.0)
    scale = (high - low) / levels
    scale = torch.where(scale < torch.finfo(torch.float32).tiny, torch.ones_like(scale), scale)
    zero_point = torch.clamp(torch.round(-low / scale), 0, levels)
    return scale, zero_point


def _number(end: Tensor | float) -> Tensor:
    """An end of a range in float32: where it is, or on the CPU, whose numbers mix with tensors
    anywhere."""
    device = end.device if isinstance(end, Tensor) else "cpu"
    return torch.as_tensor(end, dtype=torch.float32, device=device)


def fake_quantize(x: Tensor, low: Tensor | float, high: Tensor | float, bits: int) -> Tensor:
    """Round x (...) to the 2^bits levels of [low, high], with a straight-through gradient inside.

    scale · (clamp(round(x / scale) + zero point, 0, 2^bits - 1) - zero point); equal to
    `torch.fake_quantize_per_tensor_affine` with the scale and zero point of
    `scale_and_zero_point`, its gradient included. Where `low` or `high` require a gradient they
    receive that of the values clipped to them (PACT, Choi et al. 2018). This is SimQuant of the
    GHN-QAT paper.

    Returns:
        A tensor like x: same shape, dtype and memory layout.
    """
    step, zero = scale_and_zero_point(_detach(low), _detach(high), bits)
    if torch.jit.is_tracing():
        return _torchs_own(x, step, zero, bits)
    return _FakeQuantize.apply(x, low, high, *_numbers(x, 1.0 / step, step, zero), 2**bits - 1)


def learned_step_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor | int, bits: int, *, batched: bool = False
) -> Tensor:
    """Round x (...) to the 2^bits levels of a learned step, with a gradient for it (LSQ, Esser et
    al. 2020).

    The gradient of x passes straight through where x rounds to a level. That of the scale is the
    level less x / scale inside, the level outside, times 1 / sqrt(values · (2^bits - 1)), where the
    values are counted that share the scale. The values are those of `fake_quantize` with the range
    of these levels, up to the last bit.

    Args:
        x: Any shape.
        scale: 0-d or (O, 1, ...), positive.
        zero_point: Level of 0, fixed; of the scale's shape where it is a tensor.
        bits: Of the levels.
        batched: Whether x is a batch (N, ...), of which the values of one row are counted, so that
            gradients of its parts add up to that of the whole.
    """
    levels = 2**bits - 1
    zero = torch.as_tensor(zero_point, dtype=torch.float32, device=scale.device)
    ends = -zero * scale.detach(), (levels - zero) * scale.detach()
    step, _ = scale_and_zero_point(*ends, bits)
    if torch.jit.is_tracing():
        return _torchs_own(x, step, zero, bits)
    if torch.compiler.is_exporting():  # older ones trace backward passes, and cannot this one
        return _rounded(x, 1.0 / step, step, -zero, levels - zero)
    return _LearnedStep.apply(x, scale, *_numbers(x, 1.0 / step, step, zero), levels, batched)


def _torchs_own(x: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """The same values by torch's op, which a traced program can hold and save."""
    wide, zero = x.float(), zero_point.int()
    scale, zero = scale.float().to(x.device), zero.to(x.device)
    if scale.numel() > 1:
        ends = scale.flatten(), zero.flatten(), 0, 0, 2**bits - 1
        return torch.fake_quantize_per_channel_affine(wide, *ends).to(x.dtype)
    scale, zero = scale.reshape(()), zero.reshape(())
    return torch.fake_quantize_per_tensor_affine(wide, scale, zero, 0, 2**bits - 1).to(x.dtype)


def uniform_noise(
    x: Tensor,
    low: Tensor | float,
    high: Tensor | float,
    bits: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """x (...) clipped to [low, high] plus uniform noise of one quantization step, U(-scale/2,
    scale/2).

    NoiseQuant of the GHN-QAT paper: rounding modelled as additive noise, differentiable inside the
    range.
    """
    scale, zero_point = scale_and_zero_point(_detach(low), _detach(high), bits)
    scale, zero_point = scale.to(x), zero_point.to(x)
    clipped = torch.clamp(x, -zero_point * scale, (2**bits - 1 - zero_point) * scale)
    noise = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device) - 0.5
    return clipped + noise * scale


def _numbers(x: Tensor, *numbers: Tensor) -> tuple[Any, ...]:
    """Tensors for arithmetic with x: scalars make elementwise CPU kernels five times as fast as 0-d
    tensors do."""
    single = all(number.ndim == 0 for number in numbers)
    readable = not (torch.compiler.is_compiling() or any(map(_is_batched, numbers)))
    if single and readable and x.device.type == "cpu":
        return tuple(number.item() for number in numbers)
    return tuple(number.to(x.device) for number in numbers)


def _is_transformed(x: Tensor) -> bool:
    """Whether x belongs to a transformation of torch.func."""
    compiling = torch.compiler.is_compiling()
    return not compiling and torch._C._functorch.is_functorch_wrapped_tensor(x)


def _is_batched(number: Tensor) -> bool:
    """Whether `torch.vmap` runs for many values of it at once, which have no one number."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(number):
        if functorch.is_batchedtensor(number):
            return True
        number = functorch.get_unwrapped(number)
    return False


def _kept(ctx: Any, tensors: tuple[Tensor, ...], **numbers: Any) -> None:
    """Keep tensors, and numbers that may be tensors, for the backward pass."""
    ctx.plain = {name: x for name, x in numbers.items() if not isinstance(x, Tensor)}
    ctx.names = [name for name in numbers if name not in ctx.plain]
    ctx.save_for_backward(*tensors, *(numbers[name] for name in ctx.names))


def _numbers_of(ctx: Any, saved: tuple[Tensor, ...]) -> dict[str, Any]:
    """The numbers that `_kept` kept; `saved` are those that are tensors."""
    return ctx.plain | dict(zip(ctx.names, saved, strict=True))


def _rounded(x: Tensor, inverse: Any, scale: Any, lowest: Any, highest: Any) -> Tensor:
    """x (...) on the levels `lowest` … `highest`, counted from zero, of a scale and its inverse."""
    # Half-precision inputs are rounded in float32: bfloat16 cannot hold 8-bit levels and their
    # fractions.
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    # In place saves memory; torch.vmap has no rule for it.
    clamp = Tensor.clamp if _is_transformed(x) else Tensor.clamp_
    return clamp((wide * inverse).round_(), lowest, highest).mul_(scale).to(x.dtype)


class _LearnedStep(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        scale: Tensor,
        inverse: Any,
        number: Any,
        zero_point: Any,
        levels: int,
        batched: bool,
    ) -> Tensor:
        return _rounded(x, inverse, number, -zero_point, levels - zero_point)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, scale, _, number, zero_point, levels, ctx.batched = inputs
        low, high = (-zero_point - 0.5) * number, (levels - zero_point + 0.5) * number
        _kept(ctx, (x, output, scale), low=low, high=high)
        ctx.levels = levels

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, quantized, scale, *saved = ctx.saved_tensors
        grad_x = _inside(grad, x, **_numbers_of(ctx, saved))
        # The scale's gradient: level - x / scale inside, the level outside. The level is
        # quantized / scale everywhere, and grad_x is 0 outside.
        if scale.numel() == 1:
            total = (_dot(grad, quantized) - _dot(grad_x, x)).view_as(scale)
        else:
            total = _summed(grad * quantized - grad_x * x, scale.shape)
        rows = len(x) if ctx.batched and x.ndim > 1 else 1
        weight = (x.numel() / rows / scale.numel() * ctx.levels) ** -0.5
        return grad_x, (total.to(scale.dtype) / scale * weight), *[None] * 5


def _inside(grad: Tensor, x: Tensor, low: Any, high: Any) -> Tensor:
    """`grad` where x lies between, 0 elsewhere."""
    if isinstance(low, float):
        return torch.ops.aten.hardtanh_backward(grad, x, low, high)
    return torch.where((x >= low) & (x <= high), grad, 0.0)


def _dot(one: Tensor, other: Tensor) -> Tensor:
    """Sum of products in float32 or wider, without a tensor of products where both lie in memory
    alike."""
    if one.dtype not in (torch.float32, torch.float64):
        return (one.float() * other.float()).sum()
    if one.ndim == 4 and one.is_contiguous(memory_format=torch.channels_last):
        one, other = one.permute(0, 2, 3, 1), other.permute(0, 2, 3, 1)
    return torch.dot(one.reshape(-1), other.reshape(-1))


def _summed(x: Tensor, shape: torch.Size) -> Tensor:
    """Sum over what `shape`, () or (O, 1, ...), does not tell apart, in float32."""
    return (x.sum_to_size(shape) if shape else x.sum()).float()


def _detach(value: Tensor | float) -> Tensor | float:
    return value.detach() if isinstance(value, Tensor) else value


class _FakeQuantize(torch.autograd.Function):
    """One pass forward and one masked pass backward; saves x alone."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        low: Tensor | float,
        high: Tensor | float,
        inverse: Any,
        scale: Any,
        zero_point: Any,
        levels: int,
    ) -> Tensor:
        return _rounded(x, inverse, scale, -zero_point, levels - zero_point)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, end, _, _, scale, zero_point, levels = inputs
        ctx.shape = end.shape if isinstance(end, Tensor) else torch.Size()
        # Values that round into 0 … levels are inside, so the limits lie half a step beyond the
        # outermost levels.
        low, high = (-zero_point - 0.5) * scale, (levels - zero_point + 0.5) * scale
        _kept(ctx, (x,), low=low, high=high)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *saved = ctx.saved_tensors
        low, high = _numbers_of(ctx, saved).values()
        grad_x = grad_low = grad_high = None
        if ctx.needs_input_grad[0]:
            grad_x = _inside(grad, x, low, high)
        if ctx.needs_input_grad[1]:
            grad_low = torch.where(x < low, grad, 0.0)
            grad_low = _summed(grad_low, ctx.shape)
        if ctx.needs_input_grad[2]:
            grad_high = torch.where(x > high, grad, 0.0)
            grad_high = _summed(grad_high, ctx.shape)
        return grad_x, grad_low, grad_high, None, None, None, None
