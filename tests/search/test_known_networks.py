"""What is in a file of results is not measured again, and what it is not of is."""

import copy
import json
import warnings

import pytest
import torch
from rankable import Giving, Using, cnn, names
from torch import nn

import ghnqat_sdk as gq
from ghnqat_sdk.search import measuring
from ghnqat_sdk.search.ranked import RankedNetwork
from ghnqat_sdk.search.ranking import rank_architectures


def test_what_is_known_is_not_measured_again_and_half_a_line_is_passed_over(
    small, images, tmp_path
):
    path = tmp_path / "ranking.jsonl"
    rank_architectures([("a", cnn(4))], (4, 4), images, hypernetwork=small, results=path)
    line = json.loads(path.read_text())
    path.write_text(json.dumps(line | {"accuracy": 12.5}) + "\n" + '{"stu')
    models = [("a", cnn(4)), ("b", cnn(8))]
    report = rank_architectures(models, (4, 4), images, hypernetwork=small, results=path)
    assert {network.name: network.accuracy for network in report.networks}["a"] == 12.5
    other_bits = rank_architectures(models, (8, 8), images, hypernetwork=small, results=path)
    assert 12.5 not in [network.accuracy for network in other_bits.networks]
    assert len(path.read_text().splitlines()) == 5


def test_results_of_other_weights_are_measured_again(small, images, tmp_path):
    path = tmp_path / "ranking.jsonl"
    other = copy.deepcopy(small)
    torch.nn.init.normal_(other.decoder.dense.bias)
    for hypernetwork in (small, other, small):
        rank_architectures([("a", cnn(4))], (4, 4), images, hypernetwork=hypernetwork, results=path)
    assert len(path.read_text().splitlines()) == 2


def padded(padding: int) -> nn.Module:
    model = cnn(4)
    model[0] = nn.Conv2d(3, 4, 3, stride=2, padding=padding)
    return model


def test_an_edited_network_is_measured_again_and_the_one_before_is_still_known(
    small, images, tmp_path
):
    path = tmp_path / "ranking.jsonl"
    for model in (cnn(4), cnn(8), padded(1), cnn(4), padded(1)):
        models = [("a", model)]
        report = rank_architectures(models, (4, 4), images, hypernetwork=small, results=path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 3
    assert report.networks[0].macs == lines[2]["macs"] != lines[0]["macs"]


def test_where_in_memory_a_network_is_makes_it_no_other(small, images, tmp_path):
    path = tmp_path / "ranking.jsonl"
    for function in (lambda x: x, lambda x: x):
        models = [("a", Giving(function))]
        rank_architectures(models, (4, 4), images, hypernetwork=small, results=path)
    assert len(path.read_text().splitlines()) == 1


class Holding(nn.Module):
    """A network, and a buffer that scores are multiplied by."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.body = cnn(4)
        self.register_buffer("scale", torch.tensor(value), persistent=False)

    def forward(self, x):
        return self.body(x) * self.scale


def hooked(factor: float) -> nn.Module:
    model = cnn(4)
    model.register_forward_hook(lambda module, args, output: output * factor)
    return model


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Using(torch.mul, 1.0), Using(torch.mul, -1.0)),
        (Using(nn.functional.leaky_relu, 0.1), Using(nn.functional.leaky_relu, 0.2)),
        (Using(lambda x, y: x + x * y, 2.0), Using(lambda x, y: x * y + x, 2.0)),
        (Using(lambda x, y: x * torch.tensor(y), 1.0), Using(lambda x, y: x * torch.tensor(y), -1)),
        (Holding(1.0), Holding(-1.0)),
        (hooked(1.0), hooked(-1.0)),
    ],
)
def test_a_network_that_computes_something_else_is_another_one(small, images, tmp_path, one, other):
    path = tmp_path / "ranking.jsonl"
    for model in (one, other, copy.deepcopy(one)):
        rank_architectures([("a", model)], (4, 4), images, hypernetwork=small, results=path)
    assert len(path.read_text().splitlines()) == 2


def test_what_was_not_predicted_is_told_and_its_values_count(familiar, images, tmp_path):
    """A classifier of 3 × 3 pixels, of which there is none in networks that were trained on."""
    body = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3)]
    model = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    path = tmp_path / "ranking.jsonl"

    def ranked() -> RankedNetwork:
        with pytest.warns(gq.RandomHeadWarning):
            report = rank_architectures(
                [("a", model)], (4, 4), images, hypernetwork=familiar, results=path
            )
        return report.networks[0]

    first = ranked()
    assert first.kept == ("3.weight", "3.bias")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is predicted
        assert (
            first
            == rank_architectures(
                [("a", model)], (4, 4), images, hypernetwork=familiar, results=path
            ).networks[0]
        )
    with torch.no_grad():
        model[3].weight.neg_()
    ranked()
    assert len(path.read_text().splitlines()) == 2


def test_a_line_that_does_not_say_of_which_network_it_is_is_not_used(small, images, tmp_path):
    path = tmp_path / "ranking.jsonl"
    rank_architectures([("a", cnn(4))], (4, 4), images, hypernetwork=small, results=path)
    line = json.loads(path.read_text())
    del line["network"]
    path.write_text(json.dumps(line | {"accuracy": 12.5}) + "\n")
    report = rank_architectures([("a", cnn(4))], (4, 4), images, hypernetwork=small, results=path)
    assert report.networks[0].accuracy != 12.5


def test_what_failed_is_tried_again(small, images, tmp_path, monkeypatch):
    path = tmp_path / "ranking.jsonl"
    models = [("a", cnn(4))]
    with monkeypatch.context() as patch:
        patch.setattr(measuring, "accuracy_and_loss", None)
        report = rank_architectures(models, (4, 4), images, hypernetwork=small, results=path)
    assert report.failed["a"].startswith("TypeError: ")
    report = rank_architectures(models, (4, 4), images, hypernetwork=small, results=path)
    assert names(report.networks) == "a" and report.failed == {}


def test_a_known_network_is_held_to_another_budget(small, images, tmp_path):
    def ranked(**budget):
        path = tmp_path / "ranking.jsonl"
        models = [("a", cnn(4)), ("b", cnn(16))]
        return rank_architectures(
            models, (4, 4), images, hypernetwork=small, results=path, budget=budget
        )

    assert len(ranked().networks) == 2
    assert names(ranked(weight_bits=1000).networks) == "a"
    timed = ranked(latency_ms=1e6)
    assert all(network.latency_ms > 0 for network in timed.networks)
    assert "latency, ms" in str(timed)
    assert len(ranked(latency_ms=1e-6).beyond) == 2
    assert len((tmp_path / "ranking.jsonl").read_text().splitlines()) == 4


def test_a_latency_of_another_machine_is_measured_again(small, images, tmp_path):
    path, models = tmp_path / "ranking.jsonl", [("a", cnn(4))]

    def ranked(most: float):
        budget = {"latency_ms": most}
        return rank_architectures(
            models, (4, 4), images, hypernetwork=small, results=path, budget=budget
        )

    ranked(1e6)
    line = json.loads(path.read_text())
    path.write_text(json.dumps(line | {"latency_ms": 1e5}) + "\n")
    assert names(ranked(1e4).networks) == "a"


@pytest.mark.parametrize("content", [b"my notes\n", b'{"a": 1}\n', b"[1]\n", b"\xff\x00"])
def test_a_file_of_something_else_is_refused_and_stays(small, images, tmp_path, content):
    path = tmp_path / "notes"
    path.write_bytes(content)
    with pytest.raises(gq.ArgumentError, match="Write the name of another file"):
        rank_architectures([("a", cnn(4))], (4, 4), images, hypernetwork=small, results=path)
    assert path.read_bytes() == content
