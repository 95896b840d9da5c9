"""What a file says of the images that it takes and of its scores: written and read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from ghnqat_sdk.data import ImageSet
from ghnqat_sdk.data.pictures import MODES
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.export.onnx_graph import Graph

_MOST_VALUES = 100_000_000
"""In one image: more are none that a network takes."""
_NEAR = 1e-3
"""How far a sum of probabilities may be from 1."""
_KEEP_VALUES = {"DequantizeLinear", "Flatten", "Identity", "QuantizeLinear", "Reshape", "Squeeze"}
_ADVICE = "Export it with export_onnx(qmodel, 'model.onnx', batch, images=images)."

_Size = Annotated[int, Field(ge=1)]
_Mean = Annotated[float, Field(ge=-1e6, le=1e6)]
_Deviation = Annotated[float, Field(ge=1e-6, le=1e6)]
Scores = Literal["logits", "probabilities"]


class Facts(BaseModel):
    """What `export_onnx` writes into a file of the images that it takes.

    Raises:
        ValidationError: facts that do not fit together are missing, of other types, or out of
            bounds.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)
    input_size: tuple[_Size, _Size, _Size]
    """Channels, height and width."""
    mean: tuple[_Mean, ...] = Field(min_length=1)
    std: tuple[_Deviation, ...] = Field(min_length=1)
    """Of each channel, where white is 1."""
    classes: tuple[str, ...] = Field(min_length=2)
    scores: Scores | None = None
    """What the file gives for each class; logits may have any constant added. Older files do not
    say."""

    @field_validator("input_size")
    @classmethod
    def _can_be_held(cls, size: tuple[int, int, int]) -> tuple[int, int, int]:
        if math.prod(size) > _MOST_VALUES:
            raise ValueError(f"more than {_MOST_VALUES} values")
        return size


def write_facts(
    graph: Graph, inputs: list[Tensor], outputs: list[Tensor], images: ImageSet | None
) -> None:
    """Into the graph of a model that gives these outputs for these inputs (N, C, H, W)."""
    from onnx import helper

    facts: dict[str, Any] = {"input_size": list(inputs[0].shape[1:])}
    if images is not None:
        as_is = are_probabilities(outputs[0]) or _ends_in_sigmoid(graph)
        scores: Scores = "probabilities" if as_is else "logits"
        facts |= {"mean": images.mean, "std": images.std, "classes": images.classes}
        facts |= {"scores": scores}
    props = {name: json.dumps(value) for name, value in facts.items()}
    helper.set_model_props(graph.model, props)


def are_probabilities(scores: Tensor) -> bool:
    """Whether scores (N, K) are shares that sum to 1, by whatever way a model makes them."""
    sums = scores.sum(-1) if scores.ndim == 2 else scores.new_zeros(1)
    return bool((scores >= 0).all() and ((sums - 1).abs() < _NEAR).all())


def _ends_in_sigmoid(graph: Graph) -> bool:
    """Whether the first output is one probability for each class, independent of the others."""
    makers = graph.makers()
    node = makers.get(graph.outputs[0])
    while node is not None and node.op_type in _KEEP_VALUES:
        node = makers.get(node.input[0])
    return node is not None and node.op_type == "Sigmoid"


def require_facts(path: Path, written: dict[str, str]) -> None:
    """Raise for a file that lacks one of those that are needed.

    Raises:
        ArgumentError: it does.
    """
    needed = [name for name, field in Facts.model_fields.items() if field.is_required()]
    if missing := [name for name in needed if name not in written]:
        raise _unknown(path, f"no {', '.join(missing)} in its metadata")


def facts_of(path: Path, written: dict[str, str], shape: list[Any]) -> Facts:
    """The facts in the metadata of a file whose input has this shape, with an int for every size
    that is fixed.

    Raises:
        ArgumentError: they are damaged, or of images with other channels than files have.
    """
    try:
        known = {name: json.loads(written[name]) for name in Facts.model_fields if name in written}
        facts = Facts.model_validate(known)
    except (ValueError, RecursionError) as error:
        raise _unknown(path, "its metadata is damaged") from error
    pairs = zip(shape[1:], facts.input_size, strict=True)
    if any(isinstance(fixed, int) and fixed != size for fixed, size in pairs):
        raise _unknown(path, "its metadata is damaged")
    lengths = (facts.input_size[0], len(facts.mean), len(facts.std))
    if len({*lengths}) > 1 or lengths[0] not in MODES:
        raise ArgumentError(
            f"{str(path)!r} takes {lengths[0]} channels, with {lengths[1]} means and {lengths[2]} "
            f"deviations; images have {', '.join(map(str, MODES))}. Run it in ONNX Runtime itself."
        )
    return facts


def _unknown(path: Path, reason: str) -> ArgumentError:
    return ArgumentError(f"{str(path)!r} does not say what images it takes ({reason}). {_ADVICE}")
