"""The teacher: an ordinary network whose features hint at what predicted networks should compute.

After FitNets (Romero et al. 2015), across networks. `features.py` keeps its features on disk.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ghnqat_sdk.configs import Seed
from ghnqat_sdk.data import DataConfig, ImageSet, draw_moves, move_images
from ghnqat_sdk.errors import ArgumentError, CheckpointError
from ghnqat_sdk.files import digest, make_folder, write_atomically
from ghnqat_sdk.training.compute import has_bfloat16

FORMAT = 1
BATCH = 500
_WARMUP = 0.15

_Count = Annotated[int, Field(ge=0)]


class TeacherConfig(DataConfig):
    """A teacher, how it is trained, and on what images: of the size and statistics of the runs that
    it is for."""

    width: int = Field(default=32, ge=1, le=1024)
    """Channels of the stem; the stages have 2, 4 and 6 times as many."""
    blocks: tuple[_Count, _Count, _Count] = (1, 2, 2)
    """Residual blocks of each stage, after the convolution that halves its side."""
    epochs: int = Field(default=20, ge=1)
    batch: int = Field(default=128, ge=2)
    learning_rate: float = Field(default=0.25, gt=0)
    """At its peak, after 15 % of the steps; it rises from zero and falls to zero."""
    weight_decay: float = Field(default=5e-4, ge=0)
    label_smoothing: float = Field(default=0.05, ge=0, lt=1)
    seed: Seed = 0


class Residual(nn.Module):
    """x + two convolutions of x: (N, C, H, W) to the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.a = _unit(channels, channels)
        self.b = _unit(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.a(x))


class Teacher(nn.Module):
    """Normalized images (N, 3, H, W) to logits (N, classes), through three stages of halved sides.

    Attributes:
        channels: Of the three stages' feature maps.
    """

    def __init__(self, config: TeacherConfig, classes: Sequence[str]) -> None:
        super().__init__()
        self.config = config
        self.classes = tuple(classes)
        self.channels = (2 * config.width, 4 * config.width, 6 * config.width)
        inputs = (config.width, *self.channels)
        self.stem = _unit(3, config.width)
        self.stages = nn.ModuleList(map(_stage, inputs, self.channels, config.blocks))
        self.classifier = nn.Linear(self.channels[-1], len(self.classes))

    def sides(self, side: int = 32) -> tuple[int, int, int]:
        """Of the three stages' feature maps of images (N, 3, side, side)."""
        return -(-side // 2), -(-side // 4), -(-side // 8)

    def stages_of(self, x: Tensor) -> tuple[Tensor, ...]:
        """(N, 3, H, W) to the feature maps of the three stages, each (N, channels, side, side)."""
        maps = accumulate(self.stages, lambda x, stage: stage(x), initial=self.stem(x))
        return tuple(maps)[1:]

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.stages_of(x)[-1].mean((2, 3)))

    @torch.no_grad()
    def scores(self, features: Tensor) -> Tensor:
        """Logits (N, classes) from features (N, side, side, channels) of the last stage."""
        return self.classifier(features.float().mean((1, 2)))


def train_teacher(
    config: TeacherConfig,
    train: ImageSet,
    validation: ImageSet,
    *,
    report: Callable[[int, float], object],
) -> Teacher:
    """Train a teacher on (N, 3, H, W) images, with random numbers of its own.

    After the last epoch its weights are rounded to half precision: a file keeps exactly these.

    Args:
        config: The teacher; size and statistics become those of the images.
        train, validation: Images of the same classes.
        report: Called after each epoch, counted from 1, with its validation accuracy in percent.
    """
    generator = torch.Generator().manual_seed(config.seed)
    teacher = _untrained(_seeing(config, train), train.classes)
    optimizer = torch.optim.SGD(
        teacher.parameters(), momentum=0.9, weight_decay=config.weight_decay, nesterov=True
    )
    steps = max(1, len(train) // config.batch)
    for epoch in range(config.epochs):
        order = torch.randperm(len(train), generator=generator)
        for step, chosen in enumerate(order[: steps * config.batch].split(config.batch)):
            done = (epoch + step / steps) / config.epochs
            rate = config.learning_rate * min(done / _WARMUP, (1 - done) / (1 - _WARMUP))
            optimizer.param_groups[0]["lr"] = rate
            _train_on(train.take(chosen), teacher, optimizer, generator)
        if epoch + 1 == config.epochs:
            round_to_half(teacher)
        report(epoch + 1, teacher_accuracy(teacher, validation))
    return teacher.eval()


def teacher_accuracy(teacher: Teacher, images: ImageSet) -> float:
    """Top-1 in percent."""
    with evaluating(teacher):
        hits = [teacher(x).argmax(1) == labels for x, labels in images.batches(BATCH)]
    return 100 * torch.cat(hits).double().mean().item()


def round_to_half(teacher: Teacher) -> None:
    """Round weights and statistics to half precision, as a file keeps them; they stay float32."""
    teacher.load_state_dict(_halves(teacher))


def teacher_digest(teacher: Teacher) -> str:
    """16 hexadecimal digits of the weights as a file keeps them."""
    return digest(_halves(teacher))[:16]


def save_teacher(teacher: Teacher, path: str | Path, *, accuracy: float, data: str) -> None:
    """Write one safetensors file, with the validation accuracy and the digest of the training data.

    Raises:
        ArgumentError: the weights are not finite in half precision.
        CheckpointError: the file cannot be written; the one before stays.
    """
    path = Path(path)
    tensors = _halves(teacher)
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        rate = teacher.config.learning_rate / 2
        raise ArgumentError(
            f"The teacher's weights are not finite in half precision: it diverged. Train it again "
            f'with {{"learning_rate": {rate:g}}}: ghnqat-train teacher --config FILE.'
        )
    facts = {
        "format": FORMAT,
        "config": teacher.config.model_dump(),
        "classes": teacher.classes,
        "accuracy": accuracy,
        "data": data,
    }
    content = save(tensors, {"teacher": json.dumps(facts), "sha256": digest(tensors)})
    try:
        make_folder(path.parent)
        write_atomically(path, content)
    except OSError as error:
        raise CheckpointError(
            f"Cannot write {str(path)!r} ({error}). Make room, or name another file."
        ) from error


def load_teacher(path: str | Path, classes: Sequence[str]) -> Teacher:
    """What `save_teacher` wrote, in evaluation mode, for images of `classes`.

    Raises:
        CheckpointError: the file is missing, damaged, or of another format.
        ArgumentError: the teacher knows other classes.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            teacher = _rebuilt(tensors, file.metadata() or {})
    except (SafetensorError, OSError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{str(path)!r} is no whole teacher ({error!r:.300}). Restore the file, or make one: "
            f"ghnqat-train teacher --output {path}"
        ) from error
    if teacher.classes != tuple(classes):
        raise ArgumentError(
            f"The teacher in {str(path)!r} knows {', '.join(teacher.classes)}; the images are of "
            f"{', '.join(classes)}. Train one on them: ghnqat-train teacher --data FOLDER."
        )
    return teacher


def check_teacher_fits(teacher: Teacher, images: ImageSet) -> None:
    """Refuse a teacher of images of another size or normalized otherwise.

    Raises:
        ArgumentError: so it is.
    """
    expected = _seeing(teacher.config, images)
    if teacher.config != expected:
        raise ArgumentError(
            f"The teacher knows images of {_described(teacher.config)}; these are of "
            f"{_described(expected)}. Train one on them: ghnqat-train teacher --config FILE, with "
            f"their size, mean and std in it."
        )


def _unit(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def _stage(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
    residuals = [Residual(outputs) for _ in range(blocks)]
    return nn.Sequential(_unit(inputs, outputs, 2), *residuals)


def _described(images: DataConfig) -> str:
    return f"{images.size} pixels, mean {images.mean}, std {images.std}"


def _seeing(config: TeacherConfig, images: ImageSet) -> TeacherConfig:
    """The config with the size and the statistics of these images."""
    seen = {"size": images.images.shape[-1], "mean": images.mean, "std": images.std}
    return config.model_copy(update=seen)


def _untrained(config: TeacherConfig, classes: Sequence[str]) -> Teacher:
    """A teacher with the random weights of its seed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        teacher = Teacher(config, classes)
    return teacher.to(memory_format=torch.channels_last)


def _train_on(
    images: ImageSet, teacher: Teacher, optimizer: torch.optim.Optimizer, generator: torch.Generator
) -> None:
    """One step on randomly moved images."""
    config = teacher.config
    moves = draw_moves(len(images), config.padding, generator)
    views = move_images(images.normalize(images.images), moves)
    with _half_where_fast():
        logits = teacher.train()(views)
        loss = F.cross_entropy(logits, images.labels, label_smoothing=config.label_smoothing)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _half_where_fast() -> torch.autocast:
    """bfloat16 products where the processor has them, float32 elsewhere."""
    return torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16())


@contextmanager
def evaluating(teacher: Teacher) -> Iterator[None]:
    """Evaluation mode without gradients, in bfloat16 where that is fast; the mode comes back."""
    training = teacher.training
    teacher.eval()
    try:
        with torch.no_grad(), _half_where_fast():
            yield
    finally:
        teacher.train(training)


def _halves(teacher: Teacher) -> dict[str, Tensor]:
    """The state in half precision; counters stay integers."""
    state = teacher.state_dict().items()
    return {n: (t.half() if t.is_floating_point() else t).contiguous() for n, t in state}


def _rebuilt(tensors: dict[str, Tensor], metadata: dict[str, str]) -> Teacher:
    """The teacher of a file's contents; errors of any kind where they do not fit together."""
    if metadata["sha256"] != digest(tensors):
        raise ValueError("its contents do not match its checksum")
    facts = json.loads(metadata["teacher"])
    if facts["format"] != FORMAT:
        raise ValueError(f"its format is {facts['format']!r}, expected {FORMAT}")
    with torch.device("meta"):
        teacher = Teacher(TeacherConfig.model_validate(facts["config"]), facts["classes"])
    state = {n: t.float() if t.is_floating_point() else t for n, t in tensors.items()}
    teacher.load_state_dict(state, assign=True)
    return teacher.to(memory_format=torch.channels_last).eval()
