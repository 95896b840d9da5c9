"""What torchao's PT2E flow makes of batch norms before it quantizes, and where that goes wrong."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ghnqat_sdk.bits import FLOAT_BITS
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.quantization.computed import storing
from ghnqat_sdk.quantization.convert import to_float
from ghnqat_sdk.quantization.lookup import fake_quantized_layers
from ghnqat_sdk.quantization.norms import CalibratedNorm
from ghnqat_sdk.quantization.quantizers import FakeQuantizer

_CLOSE = 1e-3  # of the largest output: folding changes the order of sums alone

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def require_foldable(qmodel: nn.Module) -> None:
    """Raise for what torchao stops at with an error of its own: another floating-point type, a
    weight that is computed, a batch norm after a transposed convolution with groups."""
    others = {str(x.dtype) for x in qmodel.parameters() if x.is_floating_point()}
    if others - {"torch.float32"}:
        raise ArgumentError(
            f"pt2e_quantizer got a model in {', '.join(sorted(others))}; expected float32. Write "
            "pt2e_quantizer(copy.deepcopy(qmodel).float())."
        )
    for name, layer in fake_quantized_layers(qmodel).items():
        if layer.weight_quantizer.bits != FLOAT_BITS and "weight" not in layer._parameters:
            raise computed_weight(name, layer)
    modules = [each for each in qmodel.named_modules() if not isinstance(each[1], FakeQuantizer)]
    for (name, layer), (norm_name, norm) in pairwise(modules):
        if not getattr(layer, "transposed", False) or layer.groups == 1:
            continue
        if isinstance(norm, CalibratedNorm) and _channels_of(norm) == layer.out_channels:
            raise ArgumentError(
                f"torchao cannot fold the batch norm {norm_name!r} into {name!r}, a transposed "
                f"convolution with {layer.groups} groups. Use groups=1 there, or write "
                "export_onnx(qmodel, 'model.onnx', images)."
            )


def _channels_of(norm: Any) -> int | None:
    return getattr(norm, "num_features", None)


def computed_weight(name: str, layer: Any) -> ArgumentError:
    """What is wrong with a weight that its layer has not stored."""
    call = storing(name, layer)
    return ArgumentError(
        f"The weight of {name!r} is computed whenever the layer is called, and PT2E quantizes "
        "stored weights alone. Write export_onnx(qmodel, 'model.onnx', images)"
        + (f"; or, before pt2e_quantizer, {call}." if call else ".")
    )


@torch.no_grad()
def outputs_of_exported(model: Any) -> tuple[Arguments, list[Tensor]]:
    """Random arguments of the sizes that a model was exported with, and its outputs for them."""
    inputs = [node for node in model.graph.nodes if node.op == "placeholder"]
    values = [_random_like(node.meta["val"]) for node in inputs]
    arguments = pytree.tree_unflatten(values, model._in_spec)
    return arguments, _tensors(model(*arguments[0], **arguments[1]))


def _random_like(value: Any) -> Any:
    """A tensor of the size and type of another, which may hold nothing; the caller's random numbers
    stay."""
    if not isinstance(value, Tensor):
        return value
    shape = [size if isinstance(size, int) else size.node.hint for size in value.shape]
    if not value.is_floating_point():
        return torch.zeros(shape, dtype=value.dtype, device=value.device)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator).to(value.device, value.dtype)


@torch.no_grad()
def require_same_outputs(qmodel: nn.Module, arguments: Arguments, outputs: list[Tensor]) -> None:
    """Raise where the float twin gives other outputs than the exported model, into which torchao
    has folded batch norms: it does so although others read what a layer gives."""
    twin = to_float(qmodel).eval()
    expected = _tensors(twin(*arguments[0], **arguments[1]))
    if not all(_close(*pair) for pair in zip(outputs, expected, strict=True)):
        raise ArgumentError(
            "torchao has folded batch norms into this model in a way that changes its outputs, as "
            "where the output of a layer is read with its batch norm and without it. Write "
            "export_onnx(qmodel, 'model.onnx', images), which folds none of those."
        )


def _close(x: Tensor, y: Tensor) -> bool:
    most = y.abs().max().item()
    return torch.allclose(x, y, rtol=0, atol=_CLOSE * most, equal_nan=True)


def _tensors(outputs: Any) -> list[Tensor]:
    leaves = pytree.tree_leaves(outputs)
    return [x.float() for x in leaves if isinstance(x, Tensor) and x.numel()]
