"""Models that a user's own callable makes, and the classes that they get."""

import json

import pytest
from torch import nn

from ghnqat_sdk import GraphHypernetwork, HypernetworkConfig
from ghnqat_sdk.cli.main import main
from ghnqat_sdk.cli.models import build_model
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.hypernetwork.pretrained import save_pretrained

CODE = """
from torch import nn

def fixed(): return nn.Sequential(nn.Linear(4, 3))
def free(num_classes=7): return nn.Sequential(nn.Linear(4, num_classes))
def needed(num_classes): return nn.Sequential(nn.Linear(4, num_classes))
def passing(**options): return free(**options)
class Net(nn.Sequential):
    def __init__(self, num_classes=6): super().__init__(nn.Linear(4, num_classes))
"""


@pytest.fixture(autouse=True)
def of_the_user(tmp_path, monkeypatch):
    (tmp_path / "callables_of_a_user.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)


def classes_of(model: nn.Module) -> int:
    return model[0].out_features


@pytest.mark.parametrize(
    ("name", "own", "taken"),
    [("free", 7, 5), ("needed", 10, 5), ("passing", 7, 5), ("Net", 6, 5)],
)
def test_a_callable_gets_the_classes_that_are_asked_for_else_its_own(name, own, taken):
    model = f"callables_of_a_user:{name}"
    assert classes_of(build_model(model, None)) == own
    assert classes_of(build_model(model, taken, asked=True)) == taken


def test_a_callable_that_takes_none_is_left_alone_unless_they_are_asked_for():
    model = "callables_of_a_user:fixed"
    assert classes_of(build_model(model, 5)) == 3
    with pytest.raises(ArgumentError, match=r"Leave it out, or write def fixed\(num_classes\)"):
        build_model(model, 5, asked=True)


@pytest.mark.parametrize("command", ["predict", "inspect"])
def test_classes_that_cannot_be_taken_are_told_in_one_line(command, capsys):
    assert main([command, "callables_of_a_user:fixed", "--classes", "5"]) == 2
    error = capsys.readouterr().err
    assert "--classes 5 is for callables that take num_classes" in error
    assert error.count("\n") == 1


def test_names_get_ten_classes_unless_others_are_asked_for():
    assert build_model("resnet18", None).fc.out_features == 10
    assert build_model("resnet18", 4, asked=True).fc.out_features == 4


@pytest.mark.parametrize("name", ["resnet18", "callables_of_a_user:needed"])
def test_without_a_wish_they_are_as_many_as_asked_for_otherwise(name):
    model = build_model(name, None, otherwise=4)
    assert list(model.modules())[-1].out_features == 4


@pytest.mark.parametrize("command", ["predict", "inspect"])
def test_a_command_builds_as_many_classes_as_its_hypernetwork_knows(command, tmp_path, capsys):
    save_pretrained(GraphHypernetwork(HypernetworkConfig(num_classes=4)), tmp_path / "own")
    words = [command, "shufflenet_v2_x0_5", "--hypernetwork", str(tmp_path / "own")]
    assert main([*words, "--bits", "4,4", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    kept = facts if command == "predict" else facts["prediction"]
    assert not kept["kept"]
    assert main([*words, "--bits", "4,4", "--classes", "5"]) == 0
    assert "fc.weight" in capsys.readouterr().out
