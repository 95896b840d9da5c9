"""How a network is run while it is trained: where, in which types, at which bits."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ghnqat_sdk.bits import FLOAT_BITS, Pair
from ghnqat_sdk.configs import Part
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.quantization.ranges import Kind, RangeRule
from ghnqat_sdk.quantization.roundings import NEAREST, NearestRounding, RoundingRule
from ghnqat_sdk.training.kernels import round_activations, round_weight
from ghnqat_sdk.training.rounding import NO_LEVELS, ActivationRounding

Precision = Literal["float32", "bfloat16"]


class ComputeConfig(Part):
    """How networks are run while training; what is predicted is float32 all the same."""

    device: str = "cpu"
    """Where the hypernetwork and the networks are: "cpu", "cuda", or "cuda:1"."""
    dense: Precision = "bfloat16"
    """Of activations and of what layers multiply; float32 where a CPU has no bfloat16."""
    decoder: Precision = "bfloat16"
    """Of the decoder's products."""
    compile: bool = True
    """Use compiled kernels for what lies between convolutions, where there is a compiler."""

    def dtype(self, what: Literal["dense", "decoder"]) -> torch.dtype:
        """The type that this machine uses."""
        wanted = getattr(torch, getattr(self, what))
        fast = has_bfloat16() or self.device != "cpu"
        return wanted if wanted is torch.float32 or fast else torch.float32

    def check(self) -> None:
        """Raises an ArgumentError where the device cannot be used."""
        try:
            torch.empty(1, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise ArgumentError(
                f"compute.device={self.device!r} cannot be used here: "
                f'{str(error).splitlines()[0]}. Write "cpu", or install a torch that knows the '
                f"device."
            ) from error


def has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 numbers, and so gains from them."""
    return bool(torch.cpu._is_avx512_bf16_supported())


class Setting(NamedTuple):
    """How a plan is run.

    Attributes:
        bits: (weight, activation) of every layer.
        ranges: How ranges follow from tensors.
        rounding: How values come to the levels of their range.
        compute: Types of products.
    """

    bits: Pair
    ranges: RangeRule
    rounding: RoundingRule = NEAREST
    compute: ComputeConfig = ComputeConfig()

    @property
    def compiled(self) -> bool:
        """Whether compiled kernels are used."""
        return self.compute.compile

    @property
    def _nearest(self) -> bool:
        """Whether values go to the nearest level, which is all that kernels can."""
        return isinstance(self.rounding, NearestRounding)

    @property
    def kernel_rounding(self) -> ActivationRounding | None:
        """What follows an activation, or None where its range needs more than the extremes."""
        bits = self.bits[1]
        if bits == FLOAT_BITS:
            return ActivationRounding()
        share = self.ranges.share_of_extremes(bits) if self._nearest else None
        return None if share is None else ActivationRounding(2**bits - 1, share)

    def rounded(self, x: Tensor, kind: Kind) -> Tensor:
        """What a layer reads (...), fake-quantized: an "activation", or an "input" of the model."""
        if kind == "input":
            return self._by_rule(x.float(), kind, self.bits[1]).to(x.dtype)
        if self.kernel_rounding is None:
            return self._by_rule(x, kind, self.bits[1])
        if self.kernel_rounding.levels == NO_LEVELS:
            return x
        return round_activations(x, self.kernel_rounding, self.compiled)

    def rounded_weight(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """A weight (...), fake-quantized, in the type of the product."""
        bits = self.bits[0]
        if bits == FLOAT_BITS:
            return weight.to(dtype)
        sigmas = self.ranges.sigmas_kept(bits) if self._nearest else None
        if sigmas is None:
            return self._by_rule(weight, "weight", bits).to(dtype)
        return round_weight(weight, sigmas, 2**bits - 1, dtype, self.compiled)

    def _by_rule(self, x: Tensor, kind: Kind, bits: int) -> Tensor:
        low, high = self.ranges.of(x, kind, bits)
        return self.rounding.quantize(x, low, high, bits)
