"""`ghnqat rank`: from names to a table."""

import json

import pytest

from ghnqat_sdk.cli.main import main
from ghnqat_sdk.data import ImageSet
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.hypernetwork.ghn import GraphHypernetwork, TrainingImages
from ghnqat_sdk.hypernetwork.pretrained import save_pretrained
from ghnqat_sdk.search import ranking
from ghnqat_sdk.training import evaluation

NETWORKS = ["deepnets/id/20", "families/test/3"]


@pytest.fixture
def rank(small, tmp_path, data, capsys):
    """Run the command with the small hypernetwork and few images; gives what it printed."""
    checkpoint = save_pretrained(small, tmp_path / "checkpoint")

    def run(*words: str) -> str:
        line = ["rank", *words, "--data", str(data), "--images", "40"]
        assert main([*line, "--hypernetwork", str(checkpoint)]) == 0
        return capsys.readouterr().out

    return run


def test_networks_by_name_and_of_a_space_come_by_accuracy(rank):
    report = json.loads(rank(NETWORKS[0], "--space", "families", "--count", "2", "--json"))
    names = [network["name"] for network in report["networks"]]
    assert sorted(names) == ["deepnets/id/20", "families/test/0", "families/test/1"]
    accuracies = [network["accuracy"] for network in report["networks"]]
    assert accuracies == sorted(accuracies, reverse=True)
    assert all(network["macs"] > 1e5 for network in report["networks"])


def test_a_budget_names_its_front_and_an_impossible_one_says_so(rank):
    generous, impossible = (rank(*NETWORKS, "--max-macs", limit) for limit in ("1e12", "2"))
    table, _, front = generous.partition("Pareto front within the budget: ")
    assert table.splitlines()[1].split()[0] in front
    assert impossible.rstrip().endswith("no network")
    assert "multiply-accumulates of at most 2" in impossible


def test_a_limit_of_latencies_measures_them(rank):
    assert "latency, ms" in rank(NETWORKS[0], "--max-latency-ms", "1e6")


def test_a_table_says_of_how_many_images_its_accuracies_are(rank):
    assert "of 20 held-out images" in rank(NETWORKS[0])  # of the tests' 200, a tenth is held out


def test_layers_have_bits_by_their_names(rank):
    (one,), (other,) = (
        json.loads(rank(NETWORKS[0], "--bits", bits, "--json"))["networks"]
        for bits in ("2,4", "cells*=4,4;*=2,4")
    )
    assert one["weight_bits"] < other["weight_bits"] < 2 * one["weight_bits"]


def test_where_every_network_fails_the_command_does(small, tmp_path, data, capsys):
    module = tmp_path / "grey_networks.py"
    module.write_text("from torch import nn\n\ndef grey():\n    return nn.Conv2d(1, 4, 3)\n")
    checkpoint = save_pretrained(small, tmp_path / "checkpoint")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        words = ["rank", "grey_networks:grey", "--data", str(data), "--images", "40"]
        assert main([*words, "--hypernetwork", str(checkpoint)]) == 1
    captured = capsys.readouterr()
    assert "grey_networks:grey: " in captured.out
    assert "1 failed" in captured.err


def test_results_are_kept_and_a_picture_is_drawn(rank, tmp_path):
    results, plot = tmp_path / "known.jsonl", tmp_path / "ranking.png"
    first = rank(*NETWORKS, "--results", str(results))
    known = results.read_text()
    again = rank(*NETWORKS, "--results", str(results), "--plot", str(plot))
    assert (first, known) == (again, results.read_text())
    assert plot.read_bytes().startswith(b"\x89PNG")


KNOWN = TrainingImages(size=24, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))


def knowing(images, like):
    """An untrained hypernetwork, for images of another kind."""
    return GraphHypernetwork(like.config.model_copy(update={"images": images}))


@pytest.mark.parametrize(
    ("command", "module"),
    [
        (("rank", NETWORKS[0], "--images", "40"), ranking),
        (("evaluate", "--graphs", "1", "--images", "20"), evaluation),
    ],
)
def test_images_are_read_as_those_of_the_hypernetwork(
    command, module, small, tmp_path, data, monkeypatch
):
    save_pretrained(knowing(KNOWN, small), tmp_path / "other")
    taken = []

    def noted(*arguments, **settings):
        taken.extend(x for x in (*arguments, *settings.values()) if isinstance(x, ImageSet))
        raise ArgumentError("seen")

    name = {"rank": "rank_architectures", "evaluate": "evaluate_graphs"}[command[0]]
    monkeypatch.setattr(module, name, noted)
    words = ["--data", str(data), "--hypernetwork", str(tmp_path / "other")]
    assert main([*command, *words]) == 2
    assert {(*images.images.shape[2:], images.mean, images.std) for images in taken} == {
        (24, 24, KNOWN.mean, KNOWN.std)
    }


def test_inspect_measures_on_images_of_the_size_of_the_hypernetwork(small, tmp_path, data, capsys):
    save_pretrained(knowing(KNOWN, small), tmp_path / "other")
    words = ["--data", str(data), "--hypernetwork", str(tmp_path / "other"), "--bits", "4,4"]
    assert main(["inspect", NETWORKS[0], *words]) == 0
    assert "measured on 20 validation images 24×24" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        ([], "--space families"),
        (["resnet18", "--split", "test"], "--space as well"),
        (["resnet18", "--count", "5"], "--space as well"),
        (["--space", "families", "--split", "deep"], "Write one of test, val, train"),
        (["--space", "deepnets", "--split", "deep", "--count", "101"], "at most 100"),
        (["resnet18", "resnet18"], "'resnet18' comes twice. Write each"),
    ],
)
def test_what_cannot_be_meant_is_told_in_one_line(words, advice, data, capsys):
    assert main(["rank", *words, "--data", str(data), "--images", "40"]) == 2
    captured = capsys.readouterr()
    assert advice in captured.err
    assert captured.err.count("\n") == 1


def test_a_picture_is_refused_before_networks_are_measured_where_nothing_draws_it(
    data, capsys, monkeypatch, tmp_path
):
    monkeypatch.setattr("ghnqat_sdk.plotting.find_spec", lambda name: None)
    words = ["rank", *NETWORKS, "--data", str(data), "--plot", str(tmp_path / "ranking.png")]
    assert main(words) == 2
    assert "--plot needs matplotlib" in capsys.readouterr().err
    assert not (tmp_path / "ranking.png").exists()
