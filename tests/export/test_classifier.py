"""What an exported file says of itself, and image files that are classified by it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ghnqat_sdk.cli.main import main
from ghnqat_sdk.data import ImageSet
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.export import export_onnx
from ghnqat_sdk.export.classifier import OnnxClassifier

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

FACTS = {
    "input_size": [3, 8, 8],
    "mean": [0.0, 0.0, 0.0],
    "std": [0.1, 0.1, 0.1],
    "classes": ["red", "green", "blue"],
}
IMAGE = ["batch", 3, "height", "width"]
COLOUR = torch.tensor([[4.0, 2.0, 1.0]])


def write_file(path: Path, last: str = "Identity", shapes=(IMAGE,), **changed: object) -> Path:
    """A file whose scores are the mean of each channel of its first input, and what `last` makes of
    them. Facts that are None are left out, and those that are text are written as they are."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    names = ["x", "more"][: len(shapes)]
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["means"]),
        helper.make_node("Flatten", ["means"], ["flat"]),
        helper.make_node(last, ["flat"], ["y"]),
    ]
    if not names or len(shapes[0]) != 4:
        value = onnx.numpy_helper.from_array(np.zeros((1, 3), np.float32))
        nodes = [helper.make_node("Constant", [], ["y"], value=value)]
    pairs = zip(names, shapes, strict=True)
    inputs = [helper.make_tensor_value_info(name, kind, shape) for name, shape in pairs]
    output = helper.make_tensor_value_info("y", kind, None)
    graph = helper.make_graph(nodes, "means", inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    facts = {name: value for name, value in (FACTS | changed).items() if value is not None}
    props = {n: v if isinstance(v, str) else json.dumps(v) for n, v in facts.items()}
    helper.set_model_props(model, props)
    onnx.save(model, path)
    return path


@pytest.fixture
def picture(tmp_path) -> str:
    Image.new("RGB", (8, 8), (102, 51, 25)).save(tmp_path / "reddish.png")
    return str(tmp_path / "reddish.png")


@pytest.mark.parametrize(
    ("last", "scores", "expected"),
    [
        ("Identity", "logits", COLOUR.softmax(1)),
        ("Softmax", "probabilities", COLOUR.softmax(1)),
        ("LogSoftmax", "logits", COLOUR.softmax(1)),
        ("Sigmoid", "probabilities", COLOUR.sigmoid()),
        ("Identity", None, COLOUR.softmax(1)),
        ("Softmax", None, COLOUR.softmax(1)),
        ("LogSoftmax", None, COLOUR.softmax(1)),
    ],
)
def test_probabilities_are_those_of_the_file(last, scores, expected, picture, tmp_path):
    classifier = OnnxClassifier(
        write_file(tmp_path / "m.onnx", last, scores=scores and f'"{scores}"')
    )
    found = classifier.probabilities(classifier.read(picture))
    torch.testing.assert_close(found, expected[0], atol=1e-2, rtol=0)


@pytest.mark.parametrize(
    ("last", "scores"),
    [
        (nn.Softmax(1), "probabilities"),
        (nn.Sequential(nn.Sigmoid(), nn.Flatten()), "probabilities"),
        (nn.LogSoftmax(1), "logits"),
        (nn.Identity(), "logits"),
    ],
)
def test_an_export_says_what_its_scores_are(last, scores, quantized, images, tmp_path):
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4), last)
    pictures = ImageSet.of(torch.rand(8, 3, 8, 8), torch.arange(8) % 4)
    export_onnx(quantized(model), tmp_path / "m.onnx", images, images=pictures)
    assert OnnxClassifier(tmp_path / "m.onnx").facts.scores == scores


@pytest.mark.parametrize(
    "damaged",
    [
        {"input_size": [3, -1, 32]},
        {"input_size": [3, 0, 32]},
        {"input_size": [3, 10**6, 10**6]},
        {"input_size": [4, 8, 8], "mean": [0.0] * 4, "std": [0.1] * 4},
        {"std": [0, 1, 1]},
        {"std": [1e-320, 1, 1]},
        {"mean": "[NaN, 0, 0]"},
        {"mean": "[1e300, 0, 0]"},
        {"mean": "[" * 200_000},
        {"classes": "red"},
        {"scores": '"stars"'},
    ],
    ids=lambda damaged: " ".join(f"{k}={str(v)[:20]}" for k, v in damaged.items()),
)
def test_damaged_facts_are_no_fault_of_the_image(damaged, picture, tmp_path, capsys):
    assert main(["run", str(write_file(tmp_path / "m.onnx", **damaged)), picture]) == 2
    error = capsys.readouterr().err
    assert "its metadata is damaged" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [
        ([], "takes nothing; expected images alone"),
        ([IMAGE, IMAGE], r"takes .+ and .+; expected images alone"),
        ([["batch", 3]], r"takes tensor\(float\) \['batch', 3\]; expected images"),
        ([[16, 3, 8, 8]], "takes 16 images at once"),
    ],
)
def test_files_that_take_something_else_than_an_image_are_refused(shapes, reason, tmp_path):
    with pytest.raises(ArgumentError, match=reason):
        OnnxClassifier(write_file(tmp_path / "m.onnx", shapes=shapes))


def test_a_file_without_inputs_and_facts_lacks_facts(tmp_path):
    path = write_file(tmp_path / "m.onnx", shapes=[], mean=None)
    with pytest.raises(ArgumentError, match="no mean in its metadata"):
        OnnxClassifier(path)


def test_white_of_grey_files_is_asked_for_and_given(tmp_path, capsys):
    levels = np.linspace(0, 255, 64).round().reshape(8, 8)
    paths = [str(tmp_path / name) for name in ("dark.png", "bright.png", "bytes.png")]
    Image.fromarray((levels * 0.1 * 4095 / 255).astype(np.uint16)).save(paths[0])
    Image.fromarray((levels * 4095 / 255).astype(np.uint16)).save(paths[1])
    Image.fromarray(levels.astype(np.uint8)).save(paths[2])
    model = str(write_file(tmp_path / "m.onnx"))
    assert main(["run", model, *paths]) == 2
    assert "is 4095, and white may be" in (error := capsys.readouterr().err)
    assert "Write --white 4095, or another number" in error
    assert main(["run", model, *paths, "--white", "100"]) == 2
    assert "--white 100.0 is less" in (error := capsys.readouterr().err)
    assert "such as --white 4095." in error
    assert main(["run", model, *paths, "--white", "4095"]) == 0
    _, bright, of_bytes = OnnxClassifier(model).read(*paths, white=4095)
    torch.testing.assert_close(bright, of_bytes, atol=0.05, rtol=0)


def test_grey_files_of_more_than_8_bits_are_opaque(tmp_path):
    Image.fromarray(np.full((8, 8), 65535 // 3 * 2, np.uint16)).save(tmp_path / "grey.png")
    facts = {"input_size": [4, 8, 8], "mean": [0.0] * 4, "std": [1.0] * 4}
    path = write_file(tmp_path / "m.onnx", shapes=[["batch", 4, 8, 8]], **facts)
    colours = OnnxClassifier(path).read(tmp_path / "grey.png").mean((0, 2, 3))
    torch.testing.assert_close(colours, torch.tensor([2 / 3, 2 / 3, 2 / 3, 1.0]), atol=1e-3, rtol=0)
