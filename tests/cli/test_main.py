import importlib
import json
import sys

import pytest
import torch
from safetensors.torch import load_file

from ghnqat_sdk.cli.main import main
from ghnqat_sdk.data import load_images
from ghnqat_sdk.graph.draw import draw_graph
from ghnqat_sdk.graph.trace import trace
from ghnqat_sdk.hypernetwork.card import read_evaluations
from ghnqat_sdk.hypernetwork.pretrained import save_pretrained
from ghnqat_sdk.predict import predict_quantized_params
from ghnqat_sdk.quantization.report import quantization_report
from ghnqat_sdk.training.spaces.deepnets import DeepNets
from ghnqat_sdk.training.spaces.families import Families
from ghnqat_sdk.version import __version__


@pytest.fixture
def checkpoint(small, tmp_path):
    return str(save_pretrained(small, tmp_path / "checkpoint"))


def test_version(capsys):
    assert main(["version"]) == 0
    assert __version__ in capsys.readouterr().out
    assert main(["version", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ghnqat_sdk"] == __version__


@pytest.mark.parametrize("name", ["deepnets/id/20", "families/test/7"])
def test_inspect_lists_nodes_and_counts(capsys, name):
    assert main(["inspect", name]) == 0
    out = capsys.readouterr().out
    assert "conv" in out
    assert "nodes (" in out


def test_inspect_as_json_is_the_graph(capsys):
    assert main(["inspect", "resnet18", "--json"]) == 0
    graph = json.loads(capsys.readouterr().out)
    assert graph["nodes"][0]["op"] == "input"
    assert graph["unreached"] == {}


def test_inspect_shows_what_each_node_reads(capsys, tmp_path, monkeypatch):
    (tmp_path / "branching.py").write_text(
        "from torch import nn\nclass Net(nn.Module):\n    def __init__(self):\n        "
        "super().__init__()\n        self.conv = nn.Conv2d(3, 3, 1, bias=False)\n    def "
        "forward(self, x):\n        return x + self.conv(x)\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", "branching:Net"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "   0  input            ←",
        "   1  classifier       ← 0    conv.weight 3×3×1×1",
        "   2  sum              ← 0,1",
        "   3  output           ← 2",
        "4 nodes (1 input, 1 classifier, 1 sum, 1 output), 4 edges, 1 parameters",
    ]


def test_inspect_draws_the_graph(capsys, tmp_path):
    pictures = [tmp_path / "graph.svg", tmp_path / "expected.svg"]
    assert main(["inspect", "deepnets/id/20", "--picture", str(pictures[0])]) == 0
    assert f"drawn into {pictures[0]}" in capsys.readouterr().out
    draw_graph(trace(DeepNets("id")[20].build(10)), pictures[1])
    assert pictures[0].read_bytes() == pictures[1].read_bytes()


def test_inspect_measures_bits_on_random_numbers(capsys, tmp_path, checkpoint, small):
    files = [str(tmp_path / name) for name in ("graph.svg", "report.png")]
    common = [
        "inspect",
        "deepnets/id/20",
        "--bits",
        "2,4",
        "--first-last-bits",
        "8",
        "--hypernetwork",
        checkpoint,
    ]
    common += ["--input", "2,3,32,32"]
    assert main([*common, "--picture", files[0], "--plot", files[1], "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    model = DeepNets("id")[20].build(10)
    qmodel = predict_quantized_params(model, (2, 4), first_last_bits=8, hypernetwork=small)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert facts["quantization"] == json.loads(quantization_report(qmodel, images).to_json())
    assert sorted(facts["prediction"]["predicted"]) == sorted(
        name for name, _ in model.named_parameters()
    )
    assert facts["batch"].startswith("random numbers 2×3×32×32")
    bits = [node["bits"] for node in facts["nodes"] if node["op"] in ("conv", "classifier")]
    assert (bits[0], bits[1], bits[-1]) == ([8, 8], [2, 4], [8, 8])
    assert "W2/A4" in (tmp_path / "graph.svg").read_text()
    assert (tmp_path / "report.png").read_bytes()[:4] == b"\x89PNG"


def test_inspect_measures_bits_on_images_after_calibration(capsys, checkpoint, small, data):
    name, options = (
        "families/val/52",
        ["--bits", "4,4", "--hypernetwork", checkpoint, "--data", str(data)],
    )
    assert main(["inspect", name, *options]) == 0
    printed = capsys.readouterr().out
    calibration = load_images(data, "train").sample(512, seed=0)
    qmodel = predict_quantized_params(
        Families("val")[52].build(10),
        (4, 4),
        hypernetwork=small,
        calibration=calibration.batches(64),
    )
    ((images, _),) = load_images(data, "val").sample(64, seed=0).batches(64)
    assert printed.endswith(f"{quantization_report(qmodel, images)}\n")
    assert f"measured on 20 validation images 32×32 of {data}, calibrated on 180 others" in printed
    assert "nodes (" in printed


def test_predict_reports_and_saves(capsys, tmp_path, checkpoint):
    output = tmp_path / "model.safetensors"
    options = ["--hypernetwork", checkpoint, "--bits", "2,4", "--output", str(output), "--json"]
    assert main(["predict", "deepnets/id/20", *options]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["bits"] == [2, 4]
    assert report["kept"] == {}
    assert set(report["predicted"]) <= set(load_file(output))


def test_predict_fits_a_head_to_the_classes_of_a_folder(capsys, tmp_path, checkpoint, data):
    for name in ("cat", "truck"):
        (tmp_path / "two" / "train").mkdir(parents=True, exist_ok=True)
        (tmp_path / "two" / "train" / name).symlink_to(data / "train" / name)
    where = ["--hypernetwork", checkpoint, "--data", str(tmp_path / "two"), "--size", "16"]
    output = str(tmp_path / "net.safetensors")
    fit = ["predict", "deepnets/id/20", *where, "--head", "fit", "--output", output]
    assert main([*fit, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    (head,) = report["heads"]
    assert (head["classes"], head["images"]) == (2, 36)
    name = f"{head['layer']}.weight"
    assert report["kept"][name] == "fitted to the labels"
    assert load_file(output)[name].shape[0] == 2
    assert main(fit) == 0
    assert "2 classes from 36 images" in capsys.readouterr().out
    assert main([*fit, "--classes", "1"]) == 2
    assert "Write --classes 2, or leave it out" in capsys.readouterr().err


def test_predict_takes_a_callable_of_the_users(capsys, tmp_path, checkpoint, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\ndef make():\n    return nn.Sequential(nn.Conv2d(3, 4, 3))\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["predict", "mine:make", "--hypernetwork", checkpoint]) == 0
    assert "2 parameters predicted" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("space", "split", "protocol"),
    [
        ("deepnets", "bn-free", "paper"),
        ("deepnets", None, "calibrated"),
        ("families", None, "paper"),
    ],
)
def test_evaluate_writes_means_errors_and_maxima(
    capsys, tmp_path, checkpoint, data, space, split, protocol
):
    result = tmp_path / "result.json"
    common = [
        "--hypernetwork",
        checkpoint,
        "--data",
        str(data),
        "--graphs",
        "2",
        "--images",
        "40",
        "--bits",
        "4,4",
    ]
    common += ["--space", space, "--seed", "1", "--protocol", protocol, "--json", str(result)]
    assert main(["evaluate", *common, *(["--split", split] if split else [])]) == 0
    facts = json.loads(result.read_text())
    assert facts["top1"].keys() == {"mean", "sem", "max", "graphs"}
    assert len(facts["top5"]["graphs"]) == 2
    of_space = split or {"deepnets": "id", "families": "test"}[space]
    assert (facts["space"], facts["split"], facts["images"], facts["protocol"]) == (
        space,
        of_space,
        40,
        protocol,
    )
    assert "top-1" in capsys.readouterr().out
    (read,) = read_evaluations([result])
    assert len(read.families) == 2
    assert sum(read.by_family().values()) > 0


@pytest.fixture
def refused(capsys):
    """The one line on stderr of a command that cannot be meant."""

    def call(*arguments: str) -> str:
        assert main(list(arguments)) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("ghnqat: ")
        assert captured.err.count("\n") == 1
        return captured.err

    return call


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (["predict", "resnet999"], "MODULE:CALLABLE"),
        (["predict", "deepnets/id/20", "--head", "fit"], "needs images. Add --data FOLDER"),
        (["predict", "deepnets/id/20", "--data", "."], "takes no --data. Write --head fit"),
        (["predict", "no_such_module:make"], "No module named 'no_such_module'"),
        (["predict", "deepnets/id/99999"], "from 0 to 499"),
        (["predict", "deepnets/id/20", "--bits", "no*=4,4"], "no layer has such a name"),
        (["predict", "deepnets/id/20", "--bits", "4,4", "--revision", "main"], "Leave it out"),
        (["predict", "deepnets/id/20", "--hypernetwork", "./no"], "is not a folder"),
        (["predict", "deepnets/id/20", "--size", "64"], "Add --data FOLDER"),
        (["predict", "deepnets/id/20", "--input", "1,3,1,1"], "--input 1,3,1,1 does not fit"),
        (["inspect", "deepnets/id/20", "--plot", "report.png"], "Add --bits 4,4"),
        (["inspect", "deepnets/id/20", "--data", "/no/such/folder"], "Add --bits 4,4"),
        (["inspect", "deepnets/id/20", "--first-last-bits", "8"], "Add --bits 4,4"),
        (["inspect", "deepnets/id/20", "--hypernetwork", "/no/such/folder"], "Add --bits 4,4"),
        (["inspect", "deepnets/id/20", "--bits", "4,4", "--input", "1,3,1,1"], "does not fit"),
        (["evaluate", "--data", "{data}", "--space", "families", "--split", "id"], "test, val"),
        (["evaluate", "--data", "{data}", "--split", "test"], "id, deep, wide, bn-free, val"),
        (["evaluate", "--data", "{data}", "--split", "deep", "--graphs", "101"], "at most 100"),
        (["evaluate", "--data", "{data}", "--split", "deep-train"], "invalid choice"),
    ],
)
def test_what_only_the_work_can_find_out_is_one_line_too(refused, data, arguments, advice):
    assert advice in refused(*(word.format(data=data) for word in arguments))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_device_is_refused_before_images_are_read(refused, data):
    assert "Write --device cpu" in refused("evaluate", "--data", str(data), "--device", "cuda")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("def make(size): ...", "TypeError"),
        ("def make(): return 3", "gives a int, not an nn.Module"),
        ("raise SystemExit(3)", "SystemExit"),
        ("def make(:", "SyntaxError"),
        ("", "has no attribute 'make'"),
    ],
)
def test_a_module_of_the_users_that_makes_no_model_is_refused(
    refused, tmp_path, monkeypatch, body, reason
):
    monkeypatch.delitem(sys.modules, "faulty", raising=False)
    (tmp_path / "faulty.py").write_text(body)
    monkeypatch.chdir(tmp_path)
    importlib.invalidate_caches()
    assert reason in refused("inspect", "faulty:make")


@pytest.mark.parametrize("split", ["val", "deep-val"])
def test_networks_to_choose_weights_by_see_no_test_image(tmp_path, checkpoint, data, split):
    (tmp_path / "train").symlink_to(data / "train")
    line = ["--data", str(tmp_path), "--split", split, "--graphs", "1", "--images", "4"]
    assert main(["evaluate", *line, "--hypernetwork", checkpoint]) == 0


def test_a_folder_of_runs_says_which_of_its_folders_holds_weights(refused, tmp_path, small):
    save_pretrained(small, tmp_path / "run" / "last")
    line = refused("predict", "deepnets/id/20", "--hypernetwork", str(tmp_path / "run"))
    assert "there is one in last" in line


def test_bits_follow_patterns_of_layers(capsys, checkpoint):
    bits = ["--bits", "*.classifier=8,8;*=2,4;", "--hypernetwork", checkpoint]
    assert main(["inspect", "deepnets/id/20", *bits]) == 2
    capsys.readouterr()
    bits = ["--bits", "stem*=8,8;*=2,4", "--hypernetwork", checkpoint, "--json"]
    assert main(["inspect", "deepnets/id/20", *bits]) == 0
    nodes = json.loads(capsys.readouterr().out)["nodes"]
    found = {node["module"]: node["bits"] for node in nodes if node["op"] == "conv"}
    assert {tuple(b) for name, b in found.items() if name.startswith("stem")} == {(8, 8)}
    assert {tuple(b) for name, b in found.items() if not name.startswith("stem")} == {(2, 4)}
