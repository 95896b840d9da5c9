"""What options name, before anything is read."""

import shutil

import pytest

from ghnqat_sdk.cli.main import main
from ghnqat_sdk.cli.paths import check_hypernetwork, check_output_file, check_output_folder
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


@pytest.mark.parametrize("check", [check_output_file, check_output_folder])
def test_a_file_where_a_folder_is_expected_is_called_so(tmp_path, check):
    file = tmp_path / "mk.py"
    file.write_text("all:")
    for below in ("x", "x/y"):
        with pytest.raises(ArgumentError, match=r"'.*mk\.py' is a file\. Name another place"):
            check("--output", str(file / below))
    with pytest.raises(ArgumentError, match=r"is a file\. Name"):
        check_output_folder("--output", str(file))
    assert file.read_text() == "all:"


def test_images_of_other_classes_are_not_evaluated_on(data, tmp_path, capsys):
    folder = tmp_path / "reversed" / "test"
    for place, name in enumerate(sorted(path.name for path in (data / "test").iterdir())):
        shutil.copytree(data / "test" / name, folder / str(9 - place))
    words = ["evaluate", "--data", str(folder.parent), "--graphs", "1", "--images", "20"]
    assert main(words) == 2
    captured = capsys.readouterr()
    assert "0, 1, 2, 3" in captured.err and "airplane, automobile" in captured.err
