from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ghnqat_sdk.data import ImageSet, load_images
from ghnqat_sdk.hypernetwork.decoder import DecoderConfig
from ghnqat_sdk.hypernetwork.encoders import TransformerConfig
from ghnqat_sdk.hypernetwork.ghn import HypernetworkConfig
from ghnqat_sdk.training.config import BitsConfig, BitsShare, RunConfig, ValidationConfig
from ghnqat_sdk.training.features import FeatureCache
from ghnqat_sdk.training.hints import HintConfig
from ghnqat_sdk.training.run import Run
from ghnqat_sdk.training.sampler import SamplingConfig
from ghnqat_sdk.training.schedules import StableSchedule
from ghnqat_sdk.training.shares import CustomShare
from ghnqat_sdk.training.teacher import Teacher, TeacherConfig, save_teacher

TINY = RunConfig(
    hypernetwork=HypernetworkConfig(
        encoder=TransformerConfig(width=16, layers=1, heads=2),
        decoder=DecoderConfig(hidden=16, tile=16, kernel=3, banks=4, bank_kernel=3),
    ),
    networks=(CustomShare(factory="toys.Toys"),),
    sampling=SamplingConfig(meta_batch=2, image_batch=8, least_images=4, window=6, uses=4),
    bits=BitsConfig(
        settings=(BitsShare(bits=(4, 4)), BitsShare(bits=(2, 2)), BitsShare(bits=(32, 32))),
        float_until=2,
    ),
    schedule=StableSchedule(warmup=2),
    average=0.9,
    validation=ValidationConfig(every=4, networks=1, images=20),
    checkpoint_every=2,
)


@pytest.fixture(autouse=True)
def _small_numbers_stay():
    """Training commands take small numbers for zero, for speed; other tests must not."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def tiny() -> RunConfig:
    """A complete run of milliseconds a step, on the networks of toys.py."""
    return TINY


@pytest.fixture
def images(data) -> dict[str, ImageSet]:
    return {split: load_images(data, split) for split in ("train", "val")}


@pytest.fixture
def teacher_file(images, tmp_path) -> Path:
    """A tiny untrained teacher on disk."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher = Teacher(TeacherConfig(width=4, blocks=(0, 0, 0)), images["train"].classes)
    path = tmp_path / "teacher.safetensors"
    save_teacher(teacher, path, accuracy=10.0, data=images["train"].digest())
    return path


@pytest.fixture
def hinted(tiny, teacher_file, tmp_path) -> RunConfig:
    """The same with hints of that teacher."""
    hints = HintConfig(teacher=str(teacher_file), features=str(tmp_path / "features"), channels=8)
    return tiny.model_copy(update={"hints": hints})


MakeRun = Callable[..., Run]


@pytest.fixture
def make_run(images, tiny, tmp_path) -> MakeRun:
    """A run in a folder of this name under `tmp_path`, its config changed by keyword."""

    def make(
        name: str = "run",
        config: RunConfig = tiny,
        *,
        features: FeatureCache | None = None,
        **changes: Any,
    ) -> Run:
        config = config.model_copy(update=changes)
        return Run(config, tmp_path / name, images["train"], images["val"], features=features)

    return make


@pytest.fixture
def same() -> Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], bool]:
    """Whether two sets of tensors have the same names and bits."""

    def compare(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
        return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)

    return compare


@pytest.fixture
def contents() -> Callable[[Path], dict[str, bytes]]:
    """Every file in a folder, by its path there."""

    def read(folder: Path) -> dict[str, bytes]:
        files = (path for path in sorted(folder.rglob("*")) if path.is_file())
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}

    return read
