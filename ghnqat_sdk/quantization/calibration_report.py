"""What a calibration fixed, and which layers lost all that they get."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ghnqat_sdk.quantization.functional import fake_quantize, scale_and_zero_point
from ghnqat_sdk.quantization.observers import Method

_Ends = dict[str, tuple[float, float]]
"""Layer name to two ends."""


@dataclass(frozen=True)
class CalibrationReport:
    """What calibration fixed; printed as a table of layers.

    Attributes:
        method: How ranges were chosen.
        images: How many images it saw.
        bits: Layer name to the bits of its input.
        ranges: Layer name to the (low, high) range of its input; layers with float inputs are left
            out.
        norms: Names of the batch norms whose statistics were re-estimated.
        unreached: Fake-quantized layers and batch norms that no image reached, left as they were.
        collapsed: Layers whose inputs differ and are all quantized to one level: name to the
            smallest and the largest.
        stale: Modules of a predicted model whose running statistics were not re-estimated, and are
            of other weights: name to reason.
        batchwise: Batch norms without running statistics (`track_running_stats=False`): results
            depend on the batch after calibration as well.
    """

    method: Method
    images: int
    bits: dict[str, int]
    ranges: dict[str, tuple[float, float]]
    norms: tuple[str, ...]
    unreached: tuple[str, ...]
    collapsed: dict[str, tuple[float, float]] = field(default_factory=dict)
    stale: dict[str, str] = field(default_factory=dict)
    batchwise: tuple[str, ...] = ()

    @property
    def remarks(self) -> list[str]:
        """What to do about the first layer that collapsed, and the first with statistics of other
        weights; empty without either."""
        return [
            f"The running statistics of {name or 'the model'!r} are of other weights than the "
            f"predicted ones, and are not re-estimated: {why}. Write the norm as nn.BatchNorm2d, "
            "or a class derived from it."
            for name, why in list(self.stale.items())[:1]
        ] + [
            f"The inputs of {name!r} lie between {low:.4g} and {high:.4g}. 0 is always one of the "
            f"{2 ** self.bits[name]} levels that they are quantized to, and all of them come to "
            f"one level. Normalize them, so that they lie on both sides of 0, or give the layer "
            f'more bits: predict_quantized_params(..., bits={{"{name}": (8, 8), ...}}).'
            for name, (low, high) in list(self.collapsed.items())[:1]
        ]

    def __str__(self) -> str:
        lines = [f"{self.images} images, {len(self.norms)} batch norms, ranges by {self.method!r}"]
        width = max((len(name) for name in self.ranges), default=0)
        for name, (low, high) in self.ranges.items():
            scale, zero_point = scale_and_zero_point(low, high, self.bits[name])
            levels = f"scale {scale.item():.4g}  zero point {zero_point.item():.0f}"
            lines.append(
                f"  {name:{width}}  {self.bits[name]} bits  [{low:9.4g}, {high:9.4g}]  {levels}"
            )
        lines += [f"  {name}: no image reached it" for name in self.unreached]
        lines += [
            f"  {name}: statistics of other weights: {why}" for name, why in self.stale.items()
        ]
        lines += [f"  {name}: always uses the statistics of the batch" for name in self.batchwise]
        lines += [f"  {name}: all that reached it has one level" for name in self.collapsed]
        return "\n".join(lines)


def collapsed(extremes: _Ends, ranges: _Ends, bits: dict[str, int]) -> _Ends:
    """The smallest and the largest input of layers where they differ and come to one level."""

    def level(name: str, value: float) -> float:
        return fake_quantize(torch.tensor(value, device="cpu"), *ranges[name], bits[name]).item()

    return {
        name: (low, high)
        for name, (low, high) in extremes.items()
        if low < high and level(name, low) == level(name, high)
    }
