import json

import pytest
from safetensors.torch import load_file

from ghnqat_sdk.cli import main
from ghnqat_sdk.hypernetwork.pretrained import save_pretrained
from ghnqat_sdk.training.cli import main as train
from ghnqat_sdk.version import __version__


@pytest.fixture
def checkpoint(small, tmp_path):
    return str(save_pretrained(small, tmp_path / "checkpoint"))


def test_version(capsys):
    assert main(["version"]) == 0
    assert __version__ in capsys.readouterr().out
    assert main(["version", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ghnqat_sdk"] == __version__


def test_inspect_lists_nodes_and_counts(capsys):
    assert main(["inspect", "id/3"]) == 0
    out = capsys.readouterr().out
    assert "conv" in out
    assert "nodes (" in out


def test_inspect_as_json_is_the_graph(capsys):
    assert main(["inspect", "resnet18", "--json"]) == 0
    graph = json.loads(capsys.readouterr().out)
    assert graph["nodes"][0]["op"] == "input"
    assert graph["unreached"] == {}


def test_predict_reports_and_saves(capsys, tmp_path, checkpoint):
    output = tmp_path / "model.safetensors"
    assert (
        main(["predict", "id/3", "--checkpoint", checkpoint, "--bits", "2,4", "--output", str(output), "--json"]) == 0
    )
    report = json.loads(capsys.readouterr().out)
    assert report["bits"] == [2, 4]
    assert report["kept"] == {}
    assert set(report["predicted"]) <= set(load_file(output))


def test_predict_takes_a_callable_of_the_users(capsys, tmp_path, checkpoint, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\ndef make():\n    return nn.Sequential(nn.Conv2d(3, 4, 3))\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["predict", "mine:make", "--checkpoint", checkpoint]) == 0
    assert "2 parameters predicted" in capsys.readouterr().out


@pytest.mark.parametrize("protocol", ["paper", "calibrated"])
def test_evaluate_writes_means_errors_and_maxima(capsys, tmp_path, checkpoint, data, protocol):
    result = tmp_path / "result.json"
    common = ["--checkpoint", checkpoint, "--data", str(data), "--graphs", "2", "--images", "40", "--bits", "4,4"]
    assert (
        main(["evaluate", *common, "--split", "id", "--seed", "1", "--protocol", protocol, "--json", str(result)]) == 0
    )
    facts = json.loads(result.read_text())
    assert facts["top1"].keys() == {"mean", "sem", "max", "graphs"}
    assert len(facts["top5"]["graphs"]) == 2
    assert (facts["split"], facts["images"], facts["protocol"]) == ("id", 40, protocol)
    assert "top-1" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "resnet999"],
        ["predict", "no_such_module:make"],
        ["predict", "id/notanumber"],
        ["predict", "id/99999"],
        ["predict", "resnet18", "--bits", "4"],
        ["predict", "resnet18", "--checkpoint", "/no/such/folder"],
        ["inspect", "resnet18", "--input", "a,b"],
        ["evaluate", "--data", "/no/such/folder"],
        ["evaluate", "--data", "/no/such/folder", "--graphs", "0"],
    ],
)
def test_mistakes_are_one_line_and_no_traceback(capsys, arguments):
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("ghnqat: ")
    assert "Traceback" not in captured.err


def test_recipes_are_listed_and_printed(capsys):
    assert train(["recipes"]) == 0
    assert "all-bits" in capsys.readouterr().out
    assert train(["recipes", "ghn-q"]) == 0
    assert json.loads(capsys.readouterr().out)["bits"][0]["bits"] == [32, 32]


@pytest.mark.parametrize(
    "arguments",
    [
        ["recipes", "nope"],
        ["run", "--data", "/no/such/folder", "--output", "{out}"],
        ["run", "--data", "{data}", "--output", "{out}", "--set", "steps"],
        ["run", "--data", "{data}", "--output", "{out}", "--set", "steps=-1"],
        ["run", "--data", "{data}", "--output", "{out}", "--set", "stepz=1"],
        ["run", "--data", "{data}", "--output", "{out}", "--config", "/no/such/file"],
    ],
)
def test_training_mistakes_are_one_line_and_no_traceback(capsys, tmp_path, data, arguments):
    assert train([a.format(out=tmp_path / "run", data=data) for a in arguments]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("ghnqat-train: ")
    assert "Traceback" not in captured.err


def test_a_finished_run_is_not_overwritten_without_resume(capsys, tmp_path, data):
    run = ["run", "--data", str(data), "--output", str(tmp_path / "run"), "--set", "steps=1", "--set", "meta_batch=1"]
    run += ["--set", "image_batch=4", "--set", "max_macs=1.2e6", "--set", "validation_graphs=1", "--json"]
    assert train(run) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 1
    assert train(run) == 1
    assert "--resume" in capsys.readouterr().err
    assert train([*run, "--resume"]) == 0
