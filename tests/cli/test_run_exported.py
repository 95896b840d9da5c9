"""`ghnqat run`: image files in, classes out."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("onnxruntime")

from ghnqat_sdk.cli.main import main
from ghnqat_sdk.data import load_images
from ghnqat_sdk.export import export_onnx
from ghnqat_sdk.quantization.calibrate import calibrate
from ghnqat_sdk.quantization.convert import from_float


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[Path, Path, nn.Module]:
    """A file, the same without a word of its images, and the model."""
    folder = tmp_path_factory.mktemp("exported")
    pictures = load_images(Path(__file__).parents[1] / "data" / "cifar10", "train")
    images = pictures.normalize(pictures.images[:64])
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))
    qmodel = from_float(model, bits=(4, 8))
    calibrate(qmodel, [images])
    export_onnx(qmodel.eval(), folder / "model.onnx", images, images=pictures)
    export_onnx(qmodel, folder / "bare.onnx", images)
    return folder / "model.onnx", folder / "bare.onnx", qmodel


@pytest.fixture
def pictures(data) -> list[str]:
    return [str(path) for path in sorted(Path(data, "test", "cat").glob("*.jpg"))[:5]]


def test_classes_are_those_of_the_model(exported, pictures, data, capsys):
    file, _, qmodel = exported
    assert main(["run", str(file), *pictures, "--top", "3", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    test = load_images(data, "test")
    cats = test.take((test.labels == test.classes.index("cat")).nonzero().flatten()[:5])
    with torch.no_grad():
        expected = qmodel(cats.normalize(cats.images)).softmax(1)
    for found, row, path in zip(facts["images"], expected, pictures, strict=True):
        assert found["image"] == path
        assert len(found["classes"]) == 3
        for each in found["classes"]:
            share = row[test.classes.index(each["class"])].item()
            assert each["probability"] == pytest.approx(share, abs=0.03)
    assert "milliseconds" not in facts


def test_a_line_for_each_image_and_the_time_if_asked_for(exported, pictures, capsys):
    assert main(["run", str(exported[0]), *pictures[:2], "--time"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == pictures[:2]
    assert all(line.endswith(" %") for line in lines)
    assert last.startswith("one image: ")
    assert "1 thread" in last
    assert main(["run", str(exported[0]), pictures[0], "--time", "--threads", "2", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["milliseconds"] > 0
    assert facts["threads"] == 2


def test_what_cannot_be_meant_or_is_damaged_is_one_line(
    exported, pictures, tmp_path, capsys, monkeypatch
):
    no_image, no_model = tmp_path / "notes.txt", tmp_path / "no.onnx"
    no_image.write_text("no image")
    no_model.write_text("no model")
    for line, status, advice in [
        (["missing.onnx", pictures[0]], 2, "is no file"),
        ([str(exported[0]), "missing.jpg"], 2, "is no file"),
        ([str(exported[0]), str(no_image)], 1, "not a readable image"),
        ([str(exported[1]), pictures[0]], 2, "no mean, std, classes in its metadata"),
        ([str(no_model), pictures[0]], 1, "Name a file that export_onnx wrote"),
    ]:
        assert main(["run", *line]) == status
        error = capsys.readouterr().err
        assert advice in error
        assert error.count("\n") == 1
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["run", str(exported[0]), pictures[0]]) == 2
    assert 'pip install "ghnqat-sdk[onnx]"' in capsys.readouterr().err
