"""An exported file as a classifier of image files, by what the file says of itself."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ghnqat_sdk.data.pictures import decode_images
from ghnqat_sdk.errors import ArgumentError, ExportError
from ghnqat_sdk.export.facts import are_probabilities, facts_of, require_facts
from ghnqat_sdk.export.runtime import new_session, runtime_package

_RUNS = 30


class OnnxClassifier:
    """A file from `export_onnx(qmodel, path, batch, images=images)`, in ONNX Runtime.

    Args:
        path: Of the file.
        threads: That one image is computed with.

    Attributes:
        facts: What the file says of its images.

    Raises:
        ArgumentError: ONNX Runtime is not installed, there is no such file, it says nothing of the
            images that it takes, or takes something else than one image.
        ExportError: ONNX Runtime cannot run the file.
    """

    def __init__(self, path: str | Path, *, threads: int = 1) -> None:
        self.path = Path(path)
        self._session = _session(self.path, threads)
        written = self._session.get_modelmeta().custom_metadata_map
        require_facts(self.path, written)
        given = _input_of_images(self.path, self._session.get_inputs())
        self._input = given.name
        self.facts = facts_of(self.path, written, given.shape)

    def read(self, *images: str | Path, white: float | None = None) -> Tensor:
        """Image files as inputs of the model: (N, C, H, W), resized and normalized.

        Args:
            images: The files.
            white: The value of white in grey files of more than 8 bits, as 4095 of 12; by default
                as in `load_images`, of all these files.

        Raises:
            DataError: one is no image.
            ArgumentError: it is not known what is white.
        """
        channels, height, width = self.facts.input_size
        paths = [Path(image) for image in images]
        pixels = decode_images(paths, (height, width), channels, white, "OnnxClassifier.read")
        mean, std = (torch.tensor(x).view(-1, 1, 1) for x in (self.facts.mean, self.facts.std))
        return (pixels.float() / 255 - mean) / std

    def probabilities(self, x: Tensor) -> Tensor:
        """(K,) of the classes, for one input (1, C, H, W).

        Raises:
            ExportError: ONNX Runtime cannot run the file on it, or gives no score for each class.
        """
        try:
            output = self._session.run(None, {self._input: x.numpy()})[0]
            scores = torch.as_tensor(output).float()
        except Exception as error:
            raise ExportError(f"ONNX Runtime cannot run {str(self.path)!r}: {error}") from error
        if scores.shape != (1, len(self.facts.classes)):
            raise ExportError(
                f"{str(self.path)!r} gives an output of shape {tuple(scores.shape)}; expected a "
                f"score for each of its {len(self.facts.classes)} classes."
            )
        as_is = self.facts.scores == "probabilities"
        if self.facts.scores is None:
            as_is = are_probabilities(scores)
        return scores[0] if as_is else scores[0].softmax(0)

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


def _input_of_images(path: Path, inputs: list[Any]) -> Any:
    """The only input of a file that takes one image at a time.

    Raises:
        ArgumentError: it takes something else.
    """
    first = inputs[0] if len(inputs) == 1 else None
    if first is None or first.type != "tensor(float)" or len(first.shape) != 4:
        found = " and ".join(f"{each.type} {each.shape}" for each in inputs) or "nothing"
        raise ArgumentError(
            f"{str(path)!r} takes {found}; expected images alone, floats (N, C, H, W). Run it in "
            "ONNX Runtime itself."
        )
    if isinstance(first.shape[0], int) and first.shape[0] != 1:
        raise ArgumentError(
            f"{str(path)!r} takes {first.shape[0]} images at once; expected one, or any number. "
            "Run it in ONNX Runtime itself."
        )
    return first
