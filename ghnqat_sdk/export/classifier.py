"""An exported file as a classifier of image files, by what the file says of itself."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from ghnqat_sdk.data.brightness import as_bytes
from ghnqat_sdk.data.pictures import MODES, decode_image
from ghnqat_sdk.errors import ArgumentError, ExportError
from ghnqat_sdk.export.runtime import new_session, runtime_package

_RUNS = 30
_DEEP_WHITE = 65535  # of a grey file of 16 bits, since one image alone does not tell


class Facts(BaseModel):
    """What `export_onnx` writes into a file of the images that it takes.

    Raises:
        ValidationError: facts that do not fit together are missing or of other types.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)
    input_size: tuple[int, int, int]
    """Channels, height and width."""
    mean: tuple[float, ...] = Field(min_length=1)
    std: tuple[float, ...] = Field(min_length=1)
    """Of each channel, where white is 1."""
    classes: tuple[str, ...] = Field(min_length=2)


class OnnxClassifier:
    """A file from `export_onnx(qmodel, path, batch, images=images)`, in ONNX Runtime.

    Args:
        path: Of the file.
        threads: That one image is computed with.

    Attributes:
        facts: What the file says of its images.

    Raises:
        ArgumentError: ONNX Runtime is not installed, there is no such file, or it says nothing of
            the images that it takes.
        ExportError: ONNX Runtime cannot run the file.
    """

    def __init__(self, path: str | Path, *, threads: int = 1) -> None:
        self.path = Path(path)
        self._session = _session(self.path, threads)
        self._input = self._session.get_inputs()[0].name
        self.facts = _facts(self.path, self._session.get_modelmeta().custom_metadata_map)

    def read(self, image: str | Path) -> Tensor:
        """An image file as the input of the model: (1, C, H, W), resized and normalized.

        Raises:
            DataError: it is no image.
        """
        channels, height, width = self.facts.input_size
        pixels = decode_image(Path(image), (height, width), MODES[channels])
        if pixels.dtype != torch.uint8:
            pixels = as_bytes(pixels, _DEEP_WHITE)
        pixels = pixels.float() / 255
        mean, std = (torch.tensor(x).view(-1, 1, 1) for x in (self.facts.mean, self.facts.std))
        return ((pixels - mean) / std)[None]

    def probabilities(self, x: Tensor) -> Tensor:
        """(K,) of the classes, for one input (1, C, H, W).

        Raises:
            ExportError: ONNX Runtime cannot run the file on it, or gives no score for each class.
        """
        try:
            output = self._session.run(None, {self._input: x.numpy()})[0]
        except Exception as error:
            raise ExportError(f"ONNX Runtime cannot run {str(self.path)!r}: {error}") from error
        scores = torch.as_tensor(output).float()
        if scores.shape != (1, len(self.facts.classes)):
            raise ExportError(
                f"{str(self.path)!r} gives an output of shape {tuple(scores.shape)}; expected a "
                f"score for each of its {len(self.facts.classes)} classes."
            )
        return scores[0].softmax(0)

    def top(self, x: Tensor, count: int) -> list[tuple[str, float]]:
        """The `count` likeliest classes of one input, each with its probability."""
        chosen = self.probabilities(x).topk(min(count, len(self.facts.classes)))
        numbers = zip(chosen.indices.tolist(), chosen.values.tolist(), strict=True)
        return [(self.facts.classes[index], share) for index, share in numbers]

    def milliseconds(self, x: Tensor) -> float:
        """Median time of one input (1, C, H, W), without reading it."""
        self.probabilities(x)  # the first run allocates
        taken = []
        for _ in range(_RUNS):
            started = time.perf_counter()
            self._session.run(None, {self._input: x.numpy()})
            taken.append(1000 * (time.perf_counter() - started))
        return statistics.median(taken)


def _session(path: Path, threads: int) -> Any:
    runtime_package()
    if not path.is_file():
        raise ArgumentError(f"{str(path)!r} is no file. Write the path of an exported model.")
    try:
        return new_session(str(path), threads=threads)
    except Exception as error:
        raise ExportError(
            f"ONNX Runtime cannot load {str(path)!r}: {error}. Name a file that export_onnx wrote."
        ) from error


def _facts(path: Path, written: dict[str, str]) -> Facts:
    try:
        known = {name: json.loads(written[name]) for name in Facts.model_fields if name in written}
        facts = Facts.model_validate(known)
    except (ValueError, ValidationError) as error:
        raise ArgumentError(
            f"{str(path)!r} does not say what images it takes ({_missing(written)}). Export it "
            "with export_onnx(qmodel, 'model.onnx', batch, images=images)."
        ) from error
    lengths: Sequence[int] = (facts.input_size[0], len(facts.mean), len(facts.std))
    if len({*lengths}) > 1 or lengths[0] not in MODES:
        raise ArgumentError(
            f"{str(path)!r} takes {lengths[0]} channels, with {lengths[1]} means and {lengths[2]} "
            f"deviations; images have {', '.join(map(str, MODES))}. Run it in ONNX Runtime itself."
        )
    return facts


def _missing(written: dict[str, str]) -> str:
    missing = [name for name in Facts.model_fields if name not in written]
    return f"no {', '.join(missing)} in its metadata" if missing else "its metadata is damaged"
