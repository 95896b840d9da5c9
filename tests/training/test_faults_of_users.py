"""Classes of a user's own that lack something: refused by name, before anything is trained."""

import sys

import pytest

from ghnqat_sdk.cli.train import main
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.plugins import imported
from ghnqat_sdk.training.initial import check_parts
from ghnqat_sdk.training.optimizers import CustomOptimizer
from ghnqat_sdk.training.schedules import CustomSchedule
from ghnqat_sdk.training.shares import CustomShare


def space(name: str, **settings: object) -> CustomShare:
    return CustomShare(factory=f"faulty.{name}", settings=settings)


def schedule(name: str, **settings: object) -> CustomSchedule:
    return CustomSchedule(factory=f"faulty.{name}", settings=settings)


def optimizer(name: str, **settings: object) -> CustomOptimizer:
    return CustomOptimizer(factory=f"torch.optim.{name}", settings=settings)


SPACES = {
    "no length": (space("NoLength"), "NoLength has no length: TypeError"),
    "empty": (CustomShare(factory="toys.Nothing"), "toys.Nothing is empty for the split 'train'"),
    "one split": (space("OnlyTrain"), "OnlyTrain cannot be made of .*KeyError: 'val'"),
    "no macs": (space("NoMacs"), r"NoMacs gives no architecture at \d+ of 'train': macs: "),
    "raises": (space("Torn"), r"Torn gives no architecture at (\d+) of 'train': KeyError: \1"),
    "no blocks": (space("Building", module="blockless"), "does not say where its blocks end"),
    "other blocks": (space("Building", module="elsewhere"), "not all modules inside it"),
    "no module": (space("Building", module="nothing"), "build gives a NoneType, no module"),
    "no build": (space("Building", module="broken"), r"build\(10\) fails: RuntimeError: no memory"),
}
SCHEDULES = {
    "number": (schedule("number"), "number gives a float, no function"),
    "string": (schedule("constantly", value="fast"), "gives no rate for step 0: ValueError"),
    "negative": (schedule("constantly", value=-1), "gives -1.0 for step 0"),
    "not finite": (schedule("not_finite"), "gives nan for step 0"),
}
OPTIMIZERS = {
    "no groups": (optimizer("LBFGS"), "LBFGS cannot be made of .*per-parameter options"),
    "bad value": (optimizer("SGD", momentum=-1), "SGD cannot be made of .*momentum value: -1"),
}
FAULTS = [
    *(("A space is made by", {"networks": (share,)}, text) for share, text in SPACES.values()),
    *(("A schedule is made by", {"schedule": one}, text) for one, text in SCHEDULES.values()),
    *(("An optimizer is made by", {"optimizer": one}, text) for one, text in OPTIMIZERS.values()),
]


@pytest.mark.parametrize(
    ("expected", "change", "reason"), FAULTS, ids=[*SPACES, *SCHEDULES, *OPTIMIZERS]
)
def test_what_a_class_of_a_user_lacks_is_said(make_run, tmp_path, expected, change, reason):
    with pytest.raises(ArgumentError, match=f"{reason}.* {expected}"):
        make_run(**change)
    assert not (tmp_path / "run").exists()


def test_it_is_said_before_images_are_read(tiny, data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ghnqat_sdk.data.images.DataConfig.load", pytest.fail)
    file = tmp_path / "config.json"
    file.write_text(tiny.model_copy(update={"networks": (space("NoMacs"),)}).model_dump_json())
    where = ["--data", str(data), "--output", str(tmp_path / "run"), "--steps", "1"]
    assert main(["run", *where, "--config", str(file)]) == 2
    assert "faulty.NoMacs gives no architecture" in capsys.readouterr().err


def test_an_error_of_the_package_passes_as_it_is():
    with pytest.raises(ArgumentError, match=r"^split='test' is unknown"):
        CustomShare(factory="toys.Toys").build("test")


def test_a_custom_space_can_be_read_in_a_loop():
    toys = CustomShare(factory="toys.Toys").build("val")
    assert [toy.key for toy in toys] == [("toys", "val", index) for index in range(60)]


def test_networks_must_tell_the_classes_of_the_run(make_run, tiny):
    networks = (space("Building", module="deaf"),)
    assert make_run("ten", networks=networks)
    hypernetwork = tiny.hypernetwork.model_copy(update={"num_classes": 3})
    with pytest.raises(ArgumentError, match=r"into \(2, 10\); expected \(2, 3\).* tells 3 classes"):
        check_parts(tiny.model_copy(update={"networks": networks, "hypernetwork": hypernetwork}))


def test_a_module_that_breaks_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / "breaking.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ArgumentError, match=r"'breaking.Class' cannot be imported.*ZeroDivision"):
        imported("breaking.Class")
    assert "breaking" not in sys.modules


def test_what_a_script_defined_must_be_moved():
    with pytest.raises(
        ArgumentError, match=r"in the script that wrote the config.*Move 'triangles'"
    ):
        imported("__main__.triangles")
