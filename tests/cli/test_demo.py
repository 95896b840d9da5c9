"""`ghnqat demo`, from the images that ship to the plot."""

import json
import sys

import pytest
import torch

from ghnqat_sdk.cli.main import main
from ghnqat_sdk.data import load_images
from ghnqat_sdk.demo.comparison import Score, compare_starts
from ghnqat_sdk.demo.images import IMAGES_FILE, demo_images
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.graph.layers import he_start
from ghnqat_sdk.hypernetwork.pretrained import save_pretrained
from ghnqat_sdk.training.spaces.deepnets import DeepNets


@pytest.fixture
def demo(small, tmp_path, monkeypatch):
    """Run the command with the small hypernetwork, in an empty folder."""
    checkpoint = save_pretrained(small, tmp_path / "checkpoint")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return lambda *more: main(
        ["demo", "deepnets/id/20", "--hypernetwork", str(checkpoint), *map(str, more)]
    )


def test_the_images_that_ship_are_those_of_the_tests(benchmark_module, data):
    files = benchmark_module("demo_images").image_files()
    assert len(files) == 400
    contents = b"".join(file.read_bytes() for file in files)
    assert contents in IMAGES_FILE.read_bytes()
    assert IMAGES_FILE.stat().st_size < 400_000
    test = load_images(data, "test")
    first = torch.cat([(test.labels == label).nonzero().flatten()[:20] for label in range(10)])
    assert torch.equal(demo_images("test").images, test.images[first])
    assert torch.equal(demo_images("test").labels, test.labels[first])
    assert demo_images("train").classes == test.classes


def test_training_and_test_images_differ():
    one, other = (demo_images(split).images.flatten(1).tolist() for split in ("train", "test"))
    assert not {tuple(image) for image in one} & {tuple(image) for image in other}


def test_both_starts_are_printed_with_the_number_of_images(demo, capsys, tmp_path):
    assert demo("--bits", "4,8") == 0
    heading, predicted, random, plot = capsys.readouterr().out.splitlines()
    assert "deepnets/id/20 at W4/A8" in heading
    assert "calibrated on 200 images, tested on 200 others" in heading
    for line, start in ((predicted, "predicted start"), (random, "random (He) start")):
        assert line.startswith(start)
        assert "of 200 images, 95 % interval" in line
    assert plot == "plot: ghnqat-demo/starts.png"
    assert (tmp_path / "here" / "ghnqat-demo" / "starts.png").read_bytes()[:4] == b"\x89PNG"


def test_json_holds_what_is_printed(demo, capsys, small, tmp_path):
    assert demo("--first-last-bits", "8", "--output", tmp_path / "out", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["model"], facts["bits"]) == ("deepnets/id/20", [4, 4])
    assert facts["plot"] == str(tmp_path / "out" / "starts.png")
    assert facts["images"] == {"calibration": 200, "test": 200}
    model = DeepNets("id")[20].build(10)
    expected = compare_starts(model, (4, 4), small, first_last_bits=8)
    assert facts["predicted"]["correct"] == list(expected.predicted.correct)
    assert facts["random"]["accuracy"] == expected.random.accuracy


def test_without_matplotlib_the_demo_says_how_to_get_it(demo, capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("ghnqat_sdk.cli.demo_command.find_spec", lambda name: None)
    assert demo() == 0
    assert 'pip install "ghnqat-sdk[plot]"' in capsys.readouterr().out
    assert list((tmp_path / "here").iterdir()) == []


def test_a_model_that_cannot_run_on_small_images_is_refused(demo, capsys, tmp_path):
    (tmp_path / "here" / "for_demo.py").write_text(
        "from torch import nn\ndef big(): return nn.Sequential(nn.Conv2d(3, 4, 99))\ndef seven(): "
        "return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 7))\n"
    )
    checkpoint = str(tmp_path / "checkpoint")
    for name, reason in (
        ("big", "The shape of the demo's images, 2,3,32,32 does not fit"),
        ("seven", "tells 7 classes"),
    ):
        assert main(["demo", f"for_demo:{name}", "--hypernetwork", checkpoint]) == 2
        assert reason in capsys.readouterr().err
    assert not (tmp_path / "here" / "ghnqat-demo").exists()


def test_a_he_start_has_the_deviation_of_its_fan_in_and_touches_nothing_else():
    model = torch.nn.Sequential(torch.nn.Conv2d(64, 128, 3), torch.nn.BatchNorm2d(128))
    before, numbers = model[0].weight.clone(), torch.get_rng_state()
    start = he_start(model, seed=0)
    assert start[0].weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)
    assert start[0].bias.count_nonzero() == 0
    assert torch.equal(model[0].weight, before)
    assert torch.equal(start[1].weight, model[1].weight)
    assert torch.equal(torch.get_rng_state(), numbers)


def test_a_he_start_is_made_of_any_model_that_can_be_predicted():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))
    model.history = 2 * torch.ones(3, requires_grad=True)  # copy.deepcopy refuses it
    assert not torch.equal(he_start(model, seed=0)[0].weight, model[0].weight)


def test_the_interval_is_wilsons():
    low, high = Score((5, 5), (10, 10)).interval
    assert (round(low, 1), round(high, 1)) == (29.9, 70.1)
    assert Score((0,), (20,)).interval[0] == 0.0


def test_a_hypernetwork_of_other_classes_is_refused(small):
    small.config = small.config.model_copy(update={"num_classes": 7})
    with pytest.raises(ArgumentError, match="tells 7 classes, and the images are of 10"):
        compare_starts(DeepNets("id")[20].build(10), (4, 4), small)
