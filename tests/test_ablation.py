"""benchmarks/ablation.py: what its variants differ in, and that they train and go on."""

import pytest
import torch

from ghnqat_sdk.data import load_images
from ghnqat_sdk.training.teacher import Teacher, TeacherConfig, save_teacher

TINY = [
    'hypernetwork.encoder={"type": "transformer", "width": 16, "layers": 1, "heads": 2}',
    "hypernetwork.decoder.hidden=16",
    "hypernetwork.decoder.tile=8",
    'networks=[{"space": "families", "max_macs": 5e6}]',
    'bits.settings=[{"bits": [4, 4]}]',
    "sampling.meta_batch=1",
    "sampling.image_batch=8",
    "validation.networks=1",
    "validation.images=20",
    "compute.compile=false",
]


@pytest.fixture
def ablation(benchmark_module):
    return benchmark_module("ablation")


def test_variants_differ_in_banks_and_hints_alone(ablation):
    config = ablation.configured("all-bits", ["seed=3"])
    found = {}
    for name in ablation.VARIANTS:
        changed = ablation.variant(config, name)
        found[name] = changed.hypernetwork.decoder.banks, changed.hints is not None
        decoder = changed.hypernetwork.decoder.model_copy(update={"banks": 16})
        changes = {"decoder": decoder}
        hypernetwork = changed.hypernetwork.model_copy(update=changes)
        same = {"hypernetwork": hypernetwork, "hints": config.hints}
        assert changed.model_copy(update=same) == config
    assert found == {
        "base": (0, False),
        "banks": (16, False),
        "hints": (0, True),
        "both": (16, True),
    }


def test_a_variant_trains_and_goes_on(ablation, data, tmp_path):
    train, validation = load_images(data, "train"), load_images(data, "val")
    with torch.random.fork_rng():
        teacher = Teacher(TeacherConfig(width=4, blocks=(0, 0, 0)), train.classes)
    save_teacher(teacher, tmp_path / "teacher", accuracy=10.0, data=train.digest())
    paths = [f"hints.{name}={tmp_path / name}" for name in ("teacher", "features")]
    config = ablation.variant(ablation.configured("all-bits", [*TINY, *paths]), "both")
    entries = {}
    for name, steps in (("first", 1), ("again", 1), ("more", 2)):
        entries[name] = ablation.trained(config, tmp_path / "both", train, validation, steps)
    assert entries["first"] == entries["again"]
    assert entries["more"]["step"] == 2
    header, _, *rows = ablation.table(entries).splitlines()
    assert header == "| | families W4/A4 | mean | images | processor, s |"
    assert [row.split(" | ")[0] for row in rows] == ["| first", "| again", "| more"]
    assert " | 16 | " in rows[2]


def test_stage_networks_are_affordable_the_same_each_time_and_know_their_blocks(benchmark_module):
    stages = benchmark_module("stage_networks")
    space = stages.StageNetworks("train")
    assert {space[index].norm for index in range(40)} == {"batch", "none"}
    for index in range(5):
        found = space[index]
        stages.network.cache_clear()
        assert space[index].plan == found.plan
        assert found.plan != stages.StageNetworks("val")[index].plan
        assert found.macs <= stages.MOST_MACS
        model = found.build()
        assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
        assert 3 <= len(model.block_ends()) <= 10
        assert sum(p.numel() for p in model.parameters()) == found.parameter_count
