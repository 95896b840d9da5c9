"""Features of the teacher over a set of images: computed once, kept on disk, moved with them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ghnqat_sdk.data import ImageSet, Moves, take_cells
from ghnqat_sdk.errors import CheckpointError
from ghnqat_sdk.files import make_folder, write_atomically
from ghnqat_sdk.training.teacher import BATCH, Teacher, evaluating, teacher_digest

FORMAT = 1
FEATURES_FILE = "features.json"


@dataclass(frozen=True, eq=False)
class FeatureCache:
    """Features of all images of a set, in files that are mapped into memory.

    Attributes:
        stages: (N, side, side, channels) float16 of each stage.
        image_side: In pixels.
        teacher: Its digest.
        classify: Its logits (n, classes) from features of the last stage.
    """

    stages: tuple[Tensor, ...]
    image_side: int
    teacher: str
    classify: Callable[[Tensor], Tensor]

    @classmethod
    def open(
        cls,
        folder: str | Path,
        teacher: Teacher,
        images: ImageSet,
        *,
        report: Callable[[int, int], object] | None = None,
    ) -> FeatureCache:
        """The features of `images` (N, 3, side, side), computed first where `folder` lacks them.

        Of several processes, let one `build` where it is not `is_current`, before any opens.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        if not cls.is_current(folder, teacher, images):
            cls.build(folder, teacher, images, report=report)
        stages = []
        for path, shape in _stage_files(folder, teacher, images).items():
            flat = torch.from_file(str(path), size=math.prod(shape), dtype=torch.float16)
            stages.append(flat.view(shape))
        side = images.images.shape[-1]
        return cls(tuple(stages), side, teacher_digest(teacher), teacher.scores)

    def to(self, device: torch.device | str) -> FeatureCache:
        """The same features in the memory of a device."""

        def classify(maps: Tensor) -> Tensor:
            return self.classify(maps.cpu()).to(device)

        stages = tuple(stage.to(device) for stage in self.stages)
        return replace(self, stages=stages, classify=classify)

    @cached_property
    def scores(self) -> Tensor:
        """(N, classes) of the teacher, worked out when first asked for."""
        return torch.cat([self.classify(maps) for maps in self.stages[-1].split(BATCH)])

    @staticmethod
    def is_current(folder: str | Path, teacher: Teacher, images: ImageSet) -> bool:
        """Whether `folder` holds all features of these images by this teacher."""
        files = _stage_files(folder, teacher, images)
        try:
            facts = (Path(folder) / FEATURES_FILE).read_bytes()
            sizes = [path.stat().st_size for path in files]
        except OSError:
            return False
        whole = sizes == [2 * math.prod(shape) for shape in files.values()]
        return whole and facts == _facts(teacher, images)

    @staticmethod
    def build(
        folder: str | Path,
        teacher: Teacher,
        images: ImageSet,
        *,
        report: Callable[[int, int], object] | None = None,
    ) -> None:
        """Compute the features of `images`, in place of what is in `folder`; a failure leaves none.

        `report` gets how many images are done, of how many.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        files = _stage_files(folder, teacher, images)
        finished = Path(folder) / FEATURES_FILE
        try:
            make_folder(finished.parent)
            _remove([finished, *files])
            _write_features(list(files), teacher, images, report or (lambda *_: None))
            write_atomically(finished, _facts(teacher, images))
        except OSError as error:
            with suppress(OSError, ValueError):  # of a path that no file can have
                _remove([finished, *files])
            size = sum(2e-6 * math.prod(shape) for shape in files.values())
            raise CheckpointError(
                f"{size:,.1f} MB of features cannot be written to {str(folder)!r} ({error}). Make "
                f"room, or name another folder."
            ) from error

    def gather(self, indices: Tensor, moves: Moves) -> list[Tensor]:
        """Features of images `indices` (n,), moved as the images by whole cells; borders repeat.

        Returns:
            (n, side, side, channels) float32 of each stage.
        """
        gathered = []
        for stage in self.stages:
            side = stage.shape[1]
            rows, columns = moves.sources(side, side, self.image_side / side)
            inside = (rows.clamp_(0, side - 1), columns.clamp_(0, side - 1))
            gathered.append(take_cells(stage, indices, *inside).float())
        return gathered


def _stage_files(folder: str | Path, teacher: Teacher, images: ImageSet) -> dict[Path, list[int]]:
    """The file of each stage, with the shape (N, side, side, channels) of what is in it."""
    sides = teacher.sides(images.images.shape[-1])
    shapes = zip(sides, teacher.channels, strict=True)
    names = (Path(folder) / f"stage{number}.float16" for number in range(3))
    return {path: [len(images), s, s, c] for path, (s, c) in zip(names, shapes, strict=True)}


def _facts(teacher: Teacher, images: ImageSet) -> bytes:
    """Contents of the file that says whose features lie beside it."""
    facts = {
        "format": FORMAT,
        "data": images.digest(),
        "teacher": teacher_digest(teacher),
        "shapes": list(_stage_files("", teacher, images).values()),
        "dtype": "float16",
    }
    return json.dumps(facts, indent=2).encode()


def _write_features(
    paths: Sequence[Path], teacher: Teacher, images: ImageSet, report: Callable[[int, int], object]
) -> None:
    with ExitStack() as stack, evaluating(teacher):
        files = [stack.enter_context(path.open("wb")) for path in paths]
        done = 0
        for batch, labels in images.batches(BATCH):
            for file, maps in zip(files, teacher.stages_of(batch), strict=True):
                file.write(maps.permute(0, 2, 3, 1).half().contiguous().numpy().data)
            done += len(labels)
            report(done, len(images))
        for file in files:
            file.flush()
            os.fsync(file.fileno())


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
