"""What is wrong with a command line is said in its own words, and early where that can be."""

import json

import pytest

import ghnqat_sdk.data
from ghnqat_sdk.cli.main import main
from ghnqat_sdk.hypernetwork.ghn import GraphHypernetwork
from ghnqat_sdk.hypernetwork.pretrained import save_pretrained

NET = """
from torch import nn

def net(num_classes=10):
    pool = nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(nn.Conv2d(3, 8, 3), pool, nn.Flatten(), nn.Linear(8, num_classes))
"""


@pytest.fixture
def run(small, tmp_path, monkeypatch):
    """A command on `wording:net` with the small hypernetwork; gives its exit status."""
    (tmp_path / "wording.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    checkpoint = str(save_pretrained(small, tmp_path / "checkpoint"))

    def call(command: str, *words: str) -> int:
        return main([command, "wording:net", *words, "--hypernetwork", checkpoint])

    return call


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (
            ["predict", "--bits", "0=8,8"],
            "no entry for 3. Add one for all others, as the last: '*=",
        ),
        (["predict", "--bits", "no=8,8"], "Write, for example, --bits 'stem*=8,8;*=4,4'\n"),
        (["inspect", "--bits", "0=8,8"], "as the last: '*=4,4'\n"),
        (["predict", "--input", "3,32,32"], "one image, without N. Write --input 2,3,32,32\n"),
        (
            ["inspect", "--bits", "4,4", "--input", "3,32,32"],
            "one image, without N. Write --input 2,3,32,32\n",
        ),
        (["predict", "--head", "fit", "--data", "{data}", "--images", "8"], "a larger --images\n"),
        (["rank", "wording:net", "--data", "{data}"], "'wording:net' comes twice. Write each"),
        (
            ["rank", "families/val/3", "--space", "families", "--split", "val", "--data", "{data}"],
            "'families/val/3' comes twice",
        ),
    ],
)
def test_advice_is_for_a_command_line(run, data, capsys, words, advice):
    assert run(*(word.format(data=data) for word in words)) == 2
    line = capsys.readouterr().err
    assert advice in line
    assert line.count("\n") == 1


def test_a_network_that_a_ranking_leaves_out_is_explained_likewise(data, small, tmp_path, capsys):
    checkpoint = str(save_pretrained(small, tmp_path / "checkpoint"))
    words = ["deepnets/id/20", "--bits", "no=8,8", "--images", "20", "--data", str(data)]
    assert main(["rank", *words, "--hypernetwork", checkpoint]) == 1
    assert "Write, for example, --bits 'stem*=8,8;*=4,4'\n" in capsys.readouterr().out


@pytest.mark.parametrize("classes", ["7", "12"])
def test_classes_are_those_of_the_folder(run, data, capsys, monkeypatch, classes):
    monkeypatch.setattr("ghnqat_sdk.data.load_images", pytest.fail)
    assert run("predict", "--head", "fit", "--data", str(data), "--classes", classes) == 2
    line = capsys.readouterr().err
    assert f"--classes {classes} is not the number of classes" in line
    assert "Write --classes 10, or leave it out" in line


def test_hidden_folders_are_no_classes(run, data, tmp_path, capsys):
    (tmp_path / "two" / "train" / ".thumbnails").mkdir(parents=True)
    (tmp_path / "two" / "train" / "__MACOSX").mkdir()
    for name in ("cat", "truck"):
        (tmp_path / "two" / "train" / name).symlink_to(data / "train" / name)
    assert run("predict", "--head", "fit", "--data", "two", "--classes", "2") == 0
    assert "2 classes from 36 images" in capsys.readouterr().out


def test_images_are_of_the_size_that_the_hypernetwork_knows(
    run, small, data, tmp_path, monkeypatch
):
    images = small.config.images.model_copy(update={"size": 24})
    other = GraphHypernetwork(small.config.model_copy(update={"images": images}))
    save_pretrained(other, tmp_path / "checkpoint")
    sizes = []
    real = ghnqat_sdk.data.load_images

    def noted(root, split, size, **settings):
        sizes.append(size)
        return real(root, split, size, **settings)

    monkeypatch.setattr("ghnqat_sdk.data.load_images", noted)
    assert run("predict", "--head", "fit", "--data", str(data)) == 0
    assert run("predict", "--head", "fit", "--data", str(data), "--size", "16") == 0
    assert sizes == [24, 16]


@pytest.mark.parametrize(("words", "told"), [([], None), (["--first-last-bits", "8"], 8)])
def test_a_prediction_tells_the_bits_of_the_first_and_last_layers(run, capsys, words, told):
    assert run("predict", *words, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["bits"], report["first_last_bits"]) == ([4, 4], told)


@pytest.mark.filterwarnings("always::ghnqat_sdk.errors.RandomHeadWarning")
def test_a_warning_is_one_line(run, capsys):
    assert run("predict", "--classes", "7") == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ghnqat: ")
