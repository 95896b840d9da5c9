"""What options name, before anything is read."""

import shutil

import pytest

from ghnqat_sdk.cli.main import main
from ghnqat_sdk.cli.paths import check_hypernetwork
from ghnqat_sdk.errors import ArgumentError


@pytest.mark.parametrize("name", ["default", "hub", "someone/ghn"])
def test_names_of_weights_are_taken(name):
    check_hypernetwork("--hypernetwork", name)


def test_a_revision_is_of_the_hub_alone():
    check_hypernetwork("--hypernetwork", "hub", "v1")
    with pytest.raises(ArgumentError, match="'default' is local"):
        check_hypernetwork("--hypernetwork", "default", "v1")


def test_what_no_weights_have_for_a_name_is_refused():
    with pytest.raises(ArgumentError, match="Write default, hub, a Hub repo"):
        check_hypernetwork("--hypernetwork", "nowhere")


def test_images_of_other_classes_are_not_evaluated_on(data, tmp_path, capsys):
    folder = tmp_path / "reversed" / "test"
    for place, name in enumerate(sorted(path.name for path in (data / "test").iterdir())):
        shutil.copytree(data / "test" / name, folder / str(9 - place))
    words = ["evaluate", "--data", str(folder.parent), "--graphs", "1", "--images", "20"]
    assert main(words) == 2
    captured = capsys.readouterr()
    assert "0, 1, 2, 3" in captured.err and "airplane, automobile" in captured.err
