"""validation.py, families.py and networks.py of benchmarks: what is measured, how it is grouped."""

import pytest
import torch

from ghnqat_sdk import save_pretrained


@pytest.fixture
def networks(benchmark_module):
    return benchmark_module("networks")


@pytest.fixture
def families(benchmark_module):
    return benchmark_module("families")


def test_table_has_the_means_of_each_space_norm_and_family_and_every_torchvision_network(networks):
    figures = {
        "families/val/0": [10.0, 5.0],
        "families/val/4": [20.0, 6.0],
        "families/val/30": [60.0, 7.0],
        "torchvision/resnet18": [40.0, 30.0],
        "torchvision/vgg11": [20.0, 10.0],
    }
    lines = networks.table(figures, ["W4/A4", "W2/A2"]).splitlines()
    assert lines[0] == "| | networks | W4/A4 | W2/A2 |"
    assert lines[2:] == [
        "| families | 3 | 30.0 ± 15.3; 10.0 | 6.0 ± 0.6; 5.0 |",
        "| torchvision | 2 | 30.0 ± 10.0; 20.0 | 20.0 ± 10.0; 10.0 |",
        "| families, norm batch | 3 | 30.0 ± 15.3; 10.0 | 6.0 ± 0.6; 5.0 |",
        "| families, family plain | 2 | 35.0 ± 25.0; 10.0 | 6.0 ± 1.0; 5.0 |",
        "| families, family preact | 1 | 20.0 | 6.0 |",
        "| torchvision/resnet18 | 1 | 40.0 | 30.0 |",
        "| torchvision/vgg11 | 1 | 20.0 | 10.0 |",
    ]


def test_cheap_networks_are_the_first_of_at_most_some_macs(networks):
    names = networks.cheap("deepnets/id", 2, 12e6)
    assert names == ("deepnets/id/20", "deepnets/id/104")
    assert all(networks.named(name).macs <= 12e6 for name in names)


def test_validation_measures_each_network_at_each_setting(benchmark_module, small, data, tmp_path):
    validation = benchmark_module("validation")
    folder = save_pretrained(small, tmp_path)
    figures = validation.measure("families/val/52", [(4, 4), (32, 32)], folder, str(data), 32)
    assert len(figures) == 2
    assert all(0 <= top1 <= 100 for top1 in figures)


@pytest.mark.parametrize(
    ("name", "is_cnn"),
    [
        ("shufflenet_v2_x0_5", True),
        ("regnet_x_400mf", True),  # reads values while it is built
        ("squeezenet1_1", True),
        ("alexnet", False),
        ("inception_v3", False),
        ("swin_t", False),
        ("vit_b_16", False),
    ],
)
def test_torchvisions_cnns_are_those_that_run_at_32_pixels(networks, name, is_cnn):
    assert networks.runs_as_cnn(name) == is_cnn


def test_a_regnet_on_the_meta_device_has_no_values(networks):
    with torch.device("meta"):
        model = networks.named("torchvision/regnet_x_400mf").build(10)
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_a_measured_network_is_found_by_its_task(families, small, data, tmp_path, benchmark_module):
    folder = save_pretrained(small, tmp_path)
    nets = ["torchvision/shufflenet_v2_x0_5", "families/test/52", "families/test/7"]
    tasks = [families.Task("w", 20, 0, "W4/A4", net) for net in nets]
    lines = tmp_path / "results" / "lines"
    for task in tasks[:2]:
        benchmark_module("common").append(lines, families.measure(task, folder, str(data)))
    known = families.read(lines)
    assert list(known) == tasks[:2]
    figures = families.figures_of(known, tasks, ["W4/A4"])
    assert list(figures) == nets[:2]
    assert all(0 <= top1 <= 100 for (top1,) in figures.values())
    assert families.figures_of(known, tasks, ["W4/A4", "W2/A2"]) == {}
