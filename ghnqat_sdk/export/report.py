"""What was exported, and how ONNX Runtime's outputs compare with the model's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ghnqat_sdk.errors import ExportError

SMALLEST = 512
"""Values of a weight that is packed: the nodes that undo it take some hundred bytes."""
_DIFFERENT = 0.1  # of the output's mean square; rounding differently now and then stays far below


@dataclass
class Roundings:
    """What it cost to store weights of 8 bits, counted from their zero point, in signed bytes.

    Weights of fewer bits fit as they are.

    Attributes:
        channels: Output channels with stored weights.
        rounded: Those of them with a level beyond ±127, whose weights were rounded again to a
            coarser step.
        largest: Largest change of a weight, as a share of the largest weight of its channel.
    """

    channels: int = 0
    rounded: int = 0
    largest: float = 0.0


@dataclass
class Packing:
    """What became of weights that were to be packed.

    Attributes:
        weights: In signed bytes before.
        packed: Those of them that lie several to a byte now.
    """

    weights: int = 0
    packed: int = 0


@dataclass(frozen=True)
class Agreement:
    """Outputs of ONNX Runtime beside the model's, on the batch.

    Attributes:
        largest_difference: Between two outputs.
        largest_output: Largest absolute output, to compare with.
        same_class: Share of the images whose largest output is the same, from 0 to 1.
        relative_error: Sum of squared differences over that of squared outputs; where the model has
            several outputs, of the worst of them.
        images: In the batch.
    """

    largest_difference: float
    largest_output: float
    same_class: float
    relative_error: float
    images: int

    @classmethod
    def of(cls, got: list[Tensor], expected: list[Tensor]) -> Agreement:
        """Compare outputs (N, ...), one or several; the first of them has the classes.

        Raises:
            ExportError: other shapes.
        """
        shapes = [[tuple(each.shape) for each in outputs] for outputs in (got, expected)]
        if shapes[0] != shapes[1]:
            raise ExportError(
                f"ONNX Runtime gives outputs of shapes {shapes[0]}; the model gives {shapes[1]}."
            )
        got, expected = ([each.float() for each in outputs] for outputs in (got, expected))
        pairs = list(zip(got, expected, strict=True))
        count = len(expected[0]) if expected[0].ndim else 1
        chosen = [each[0].reshape(count, -1).argmax(1) for each in (got, expected)]
        errors = [_relative_error(*pair) for pair in pairs]
        return cls(
            largest_difference=max((one - other).abs().max().item() for one, other in pairs),
            largest_output=max(wanted.abs().max().item() for wanted in expected),
            same_class=(chosen[0] == chosen[1]).float().mean().item(),
            relative_error=torch.tensor(errors).max().item(),  # NaN where one is
            images=count,
        )

    @property
    def close(self) -> bool:
        """Whether the outputs are those of one model; not where they hold NaN."""
        return self.relative_error <= _DIFFERENT

    def __str__(self) -> str:
        return (
            f"ONNX Runtime on {self.images} images: largest difference "
            f"{self.largest_difference:.2g} where the largest output is {self.largest_output:.2g}, "
            f"the same class for {100 * self.same_class:.1f} %"
        )


def _relative_error(got: Tensor, expected: Tensor) -> float:
    return (got - expected).square().sum().item() / max(expected.square().sum().item(), 1e-30)


@dataclass(frozen=True)
class OnnxReport:
    """What was written.

    Attributes:
        path: Of the file.
        size: Of the file, in bytes.
        float_size: Of the same model in float, in bytes.
        agreement: ONNX Runtime's outputs beside the model's, on the batch.
        convolutions: In the model.
        integer_convolutions: Those that ONNX Runtime computes in integers, by the graph that it
            runs.
        simulated: Layers with quantized weights that it computes in float.
        in_float: Layers whose weights are float.
        folded: Batch norms that became part of a layer.
        kept: Batch norms that follow no layer and stay.
        edges: Values that are 8-bit integers at run time, name to (low, high) range; `float_edges`
            takes such names.
        roundings: What it cost to store 8-bit weights in signed bytes.
        packing: How many weights lie several to a byte, where that was asked for.
        opset: Of ONNX.
        dynamic: What may vary from run to run, of "batch", "height" and "width".
        milliseconds: Median time of one row of the batch with one thread, (in float, as written),
            if asked for.
    """

    path: Path
    size: int
    float_size: int
    agreement: Agreement
    convolutions: int
    integer_convolutions: int
    simulated: int
    in_float: int
    folded: int
    kept: int
    edges: dict[str, tuple[float, float]]
    roundings: Roundings
    packing: Packing
    opset: int
    dynamic: tuple[str, ...]
    milliseconds: tuple[float, float] | None = None

    def __str__(self) -> str:
        smaller = self.float_size / self.size
        lines = [
            f"{self.path}: {self.size:,} bytes ({smaller:.1f} times smaller than in float), opset "
            f"{self.opset}, any {', '.join(self.dynamic) or 'size that it was exported with'}",
            f"  in integers: {self.integer_convolutions} of {self.convolutions} convolutions",
        ]
        if self.simulated:
            lines.append(
                f"  simulated in float: {self.simulated} layers (integer kernels read and give 8 "
                "bits, and there are none for transposed convolutions)"
            )
        if self.in_float:
            lines.append(f"  in float: {self.in_float} layers, by their bits")
        if self.roundings.rounded:
            lines.append(
                f"  8-bit weights of {self.roundings.rounded} of {self.roundings.channels} "
                "channels rounded again, by "
                f"at most {100 * self.roundings.largest:.2g} % of the channel's largest"
            )
        if self.packing.weights:
            lines.append(
                f"  packed: {self.packing.packed} of {self.packing.weights} weights (others have "
                f"fewer than {SMALLEST} values, or too many levels)"
            )
        lines += [f"  batch norms: {self.folded} folded, {self.kept} kept", f"  {self.agreement}"]
        if self.milliseconds is not None:
            before, after = self.milliseconds
            lines.append(f"  one image on one thread: {after:.2f} ms, {before:.2f} ms in float")
        return "\n".join(lines)
