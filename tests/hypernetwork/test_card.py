from __future__ import annotations

import json
from pathlib import Path

import pytest
from hub_server import TINY

from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.hypernetwork.card import model_card, read_evaluations

W4A4 = {
    "space": "families",
    "split": "test",
    "protocol": "paper",
    "images": 1000,
    "bits": [4, 4],
    "families": ["vgg", "resnet", "vgg"],
    "top1": {"mean": 30.0, "sem": 5.77, "max": 40.0, "graphs": [20.0, 30.0, 40.0]},
    "top5": {"mean": 80.0, "sem": 1.0, "max": 82.0, "graphs": [78.0, 80.0, 82.0]},
    "hypernetwork": "runs/mine",
}
FLOAT = W4A4 | {"bits": [32, 32], "families": ["dense", "resnet", "dense"]}


@pytest.fixture
def written(tmp_path: Path):
    """Writes evaluations as files, and returns their paths."""

    def write(*evaluations: object) -> list[Path]:
        paths = [tmp_path / f"{number}.json" for number in range(len(evaluations))]
        for path, evaluation in zip(paths, evaluations, strict=True):
            path.write_text(json.dumps(evaluation))
        return paths

    return write


def test_card_has_a_row_of_figures_for_each_evaluation(written) -> None:
    card = model_card(TINY, "me/ghn", evaluations=read_evaluations(written(W4A4, FLOAT)))
    row = "| families test | 3 | {} | 30.0 ± 5.8; 40.0 | 80.0 ± 1.0; 82.0 | 1000 | paper |"
    assert row.format("W4/A4") in card
    assert row.format("float") in card


def test_card_has_means_by_family(written) -> None:
    card = model_card(TINY, "me/ghn", evaluations=read_evaluations(written(W4A4, FLOAT)))
    table = card[card.index("| family |") :].splitlines()[:5]
    assert table == [
        "| family | families test W4/A4 | families test float |",
        "| --- | --- | --- |",
        "| dense |  | 30.0 |",
        "| resnet | 30.0 | 30.0 |",
        "| vgg | 30.0 |  |",
    ]


def test_card_without_families_has_no_table_of_them(written) -> None:
    without = {key: value for key, value in W4A4.items() if key != "families"}
    assert "By family" not in model_card(
        TINY, "me/ghn", evaluations=read_evaluations(written(without))
    )


def test_card_without_evaluations_says_how_to_make_them() -> None:
    assert "`ghnqat evaluate --hypernetwork me/ghn --json FILE`" in model_card(TINY, "me/ghn")


def test_card_begins_with_what_the_hub_reads() -> None:
    card = model_card(TINY, "me/ghn", license="apache-2.0")
    header = card.split("---\n")[1].splitlines()
    assert header[:2] == ["library_name: ghnqat-sdk", "license: apache-2.0"]
    assert "license" not in model_card(TINY, "me/ghn").split("---\n")[1]


def test_card_tells_data_limits_and_papers() -> None:
    card = model_card(TINY, "me/ghn", data="CIFAR-10 (JPEG)")
    assert "CIFAR-10 (JPEG), 32 × 32 pixels, 10 classes." in card
    assert "## Limits" in card
    assert [card.count(key) for key in ("yun2023", "knyazev2021", "knyazev2023")] == [1, 1, 1]


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        ({}, "space: Field required"),
        ([], "Input should be"),
        (W4A4 | {"bits": "four"}, "bits: "),
        (W4A4 | {"families": ["vgg"]}, "1 families of 3 networks"),
    ],
)
def test_file_that_is_no_evaluation_is_refused(written, evaluation, message) -> None:
    with pytest.raises(ArgumentError, match=rf"0\.json' is no evaluation \(.*{message}"):
        read_evaluations(written(evaluation))


def test_missing_evaluation_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ArgumentError, match=r"none\.json' is no evaluation.*ghnqat evaluate --json"
    ):
        read_evaluations([tmp_path / "none.json"])


def test_one_path_in_place_of_a_list_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"Write evaluations=\["):
        read_evaluations("w4a4.json")
