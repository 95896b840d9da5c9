"""What is asked of an export to ONNX, checked before anything slow starts."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from ghnqat_sdk.data import ImageSet
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.export.program import Inputs
from ghnqat_sdk.export.report import SMALLEST
from ghnqat_sdk.export.runtime import packages
from ghnqat_sdk.files import is_nameable

Storage = Literal["int8", "int4", "int2"]
_NARROWEST: dict[str, int] = {"int8": 8, "int4": 4, "int2": 2}
_LOWEST_OPSET, _OF_TWO_BITS = 21, 25
"""Older ones lack what PyTorch writes, and integers of two bits."""


def checked_path(path: Any) -> Path:
    if not isinstance(path, (str, os.PathLike)) or Path(path).suffix != ".onnx":
        raise ArgumentError(
            f"path={path!r} does not end in .onnx. Write export_onnx(qmodel, 'model.onnx', batch)."
        )
    if not is_nameable(path):
        raise ArgumentError(
            f"path={path!r} has a null character or half of a surrogate pair, which no file's name "
            "can have. Write export_onnx(qmodel, 'model.onnx', batch)."
        )
    return Path(path)


def checked_edges(float_edges: Any) -> tuple[str, ...]:
    """Names or patterns of values; whether there are such values is known once torch has exported
    the model."""
    if isinstance(float_edges, str):
        raise ArgumentError(f"float_edges={float_edges!r} is one name. Write [{float_edges!r}].")
    listed = isinstance(float_edges, Collection)
    if not listed or not all(isinstance(name, str) for name in float_edges):
        raise ArgumentError(
            f"float_edges={float_edges!r} is no list of names. Write names that report.edges has, "
            "as float_edges=['relu', 'layer1*'], or leave it out."
        )
    return tuple(float_edges)


def checked_opset(storage: Any, opset: Any, layers: Mapping[str, Any]) -> int:
    """The opset to write; the lowest for the storage of these layers if None."""
    onnx, _ = packages()
    if not isinstance(storage, str) or storage not in _NARROWEST:
        raise ArgumentError(f"storage={storage!r} is unknown. Write one of 'int8', 'int4', 'int2'.")
    two_bits = storage == "int2" and any(
        layer.weight_quantizer.bits == 2 and layer.weight.numel() >= SMALLEST
        for layer in layers.values()
    )
    lowest = _OF_TWO_BITS if two_bits else _LOWEST_OPSET
    highest = onnx.defs.onnx_opset_version()
    if opset is None:
        return lowest
    if type(opset) is not int or not lowest <= opset <= highest:
        raise ArgumentError(
            f"opset={opset!r} is not one that {storage!r} can be written with. Write a whole "
            f"number from {lowest} to {highest}, or leave it out."
        )
    return opset


def bits_of_packed(storage: Storage, opset: int) -> int:
    """The fewest bits that a packed weight can have; 8 where none is packed."""
    return max(_NARROWEST[storage], 2 if opset >= _OF_TWO_BITS else 4)


def arguments_on_cpu(batch: Any) -> Inputs:
    """Keyword or positional arguments."""
    several = batch if isinstance(batch, (dict, tuple, list)) else (batch,)
    values = list(several.values()) if isinstance(several, dict) else list(several)
    if not all(isinstance(x, Tensor) and x.ndim for x in values):
        raise ArgumentError(
            f"export_onnx got a batch of type {type(batch).__name__}; expected a tensor (N, C, H, "
            "W), a tuple of them, or a dict. Write export_onnx(qmodel, 'model.onnx', images)."
        )
    if not values or not all(x.numel() for x in values):
        shapes = ", ".join(str(tuple(x.shape)) for x in values) or "no tensor"
        raise ArgumentError(
            f"export_onnx got a batch without images ({shapes}); expected one at least. Pass some "
            "hundred calibration images (N, C, H, W)."
        )
    if any(x.is_meta for x in values):
        raise ArgumentError(
            "export_onnx got a batch on the meta device, which has no values to check outputs and "
            "choose ranges with. Pass some hundred calibration images."
        )
    plain = [x.detach().cpu().contiguous() for x in values]
    if not all(x.isfinite().all() for x in plain):
        raise ArgumentError(
            "export_onnx got a batch with NaN or infinity, which leave no range for the values "
            "between layers. Pass images that are normalized as those in training."
        )
    return dict(zip(several, plain, strict=True)) if isinstance(several, dict) else tuple(plain)


def require_float32(model: nn.Module, inputs: Inputs) -> None:
    """Raise for a model, or inputs, in another floating-point type than ONNX files of integers are
    written in."""
    tensors = [*model.parameters(), *model.buffers()]
    tensors += inputs.values() if isinstance(inputs, dict) else inputs
    others = {str(x.dtype) for x in tensors if x.is_floating_point()} - {"torch.float32"}
    if others:
        raise ArgumentError(
            f"export_onnx got a model or a batch in {', '.join(sorted(others))}; expected float32. "
            "Write export_onnx(copy.deepcopy(qmodel).float(), 'model.onnx', images.float())."
        )


def require_narrow(storage: Storage, layers: Mapping[str, Any]) -> None:
    """Raise where no layer has a weight of so few bits as are to be stored."""
    most = _NARROWEST[storage]
    bits = {layer.weight_quantizer.bits for layer in layers.values()}
    if storage != "int8" and min(bits) > most:
        raise ArgumentError(
            f"storage={storage!r} packs weights of up to {most} bits, and the model's have "
            f"{', '.join(map(str, sorted(bits)))}. Write storage='int8', or predict with "
            f"bits=({most}, 8)."
        )


def require_images_like(images: Any, inputs: Inputs, outputs: Sequence[Tensor]) -> None:
    """Raise for images whose statistics or classes are not those of the model's first input and
    output: the file would say what it cannot be run with."""
    if images is None:
        return
    if not isinstance(images, ImageSet):
        raise ArgumentError(
            f"images is a {type(images).__name__}; expected an ImageSet, whose statistics and "
            "classes are written into the file. Write images=load_images(folder, 'train')."
        )
    first = next(iter(inputs.values() if isinstance(inputs, dict) else inputs))
    channels, classes = len(images.mean), len(images.classes)
    if first.ndim == 4 and first.shape[1] != channels:
        raise ArgumentError(
            f"images have {channels} channels, and the batch has {first.shape[1]}. Pass images "
            "like those that the model is for."
        )
    if outputs[0].ndim == 2 and outputs[0].shape[1] != classes:
        raise ArgumentError(
            f"images are of {classes} classes, and the model gives {outputs[0].shape[1]} scores. "
            "Pass images of the classes that the model was trained on."
        )
