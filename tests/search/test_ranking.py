import copy
import dataclasses
import json
import re

import pytest
import torch
from torch import nn

import ghnqat_sdk as gq
from ghnqat_sdk.hypernetwork.ghn import TrainingImages
from ghnqat_sdk.search import measuring
from ghnqat_sdk.search.ranked import RankedNetwork
from ghnqat_sdk.search.ranking import rank_architectures
from ghnqat_sdk.training.new_classes import with_new_classes


def cnn(width: int, classes: int = 3) -> nn.Module:
    body = [nn.Conv2d(3, width, 3, stride=2), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


def names(networks: tuple[RankedNetwork, ...]) -> str:
    return "".join(network.name for network in networks)


def test_networks_come_by_accuracy_with_their_costs(small, images):
    models = [("wide", cnn(16)), ("narrow", cnn(2))]
    report = rank_architectures(models, (4, 8), images, hypernetwork=small)
    accuracies = [network.accuracy for network in report.networks]
    assert accuracies == sorted(accuracies, reverse=True)
    by_name = {network.name: network for network in report.networks}
    assert by_name["wide"].weight_bits == 4 * (16 * 27 + 3 * 16)
    assert by_name["wide"].macs == 16 * 27 * 9 + 3 * 16
    assert by_name["wide"].accuracy > 60


def test_the_models_stay_as_they_are_and_two_runs_agree(small, images):
    model = cnn(4)
    before = [tensor.clone() for tensor in model.state_dict().values()]
    first, second = (
        rank_architectures([("m", model)], (4, 4), images, hypernetwork=small) for _ in range(2)
    )
    assert first == second
    assert all(map(torch.equal, before, model.state_dict().values()))


def test_architectures_of_a_space_are_built_for_the_classes(small, images):
    class Wide:
        key = ("toys", "test", 7)

        def build(self, num_classes: int) -> nn.Module:
            return cnn(8, num_classes)

    report = rank_architectures([Wide()], (4, 4), images, hypernetwork=small)
    assert names(report.networks) == "toys/test/7"


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


def test_a_line_that_does_not_say_of_which_network_it_is_is_not_used(small, images, tmp_path):
    path = tmp_path / "ranking.jsonl"
    rank_architectures([("a", cnn(4))], (4, 4), images, hypernetwork=small, results=path)
    line = json.loads(path.read_text())
    del line["graph"]
    path.write_text(json.dumps(line | {"accuracy": 12.5}) + "\n")
    report = rank_architectures([("a", cnn(4))], (4, 4), images, hypernetwork=small, results=path)
    assert report.networks[0].accuracy != 12.5


def test_what_failed_is_tried_again(small, images, tmp_path, monkeypatch):
    path = tmp_path / "ranking.jsonl"
    models = [("a", cnn(4))]
    with monkeypatch.context() as patch:
        patch.setattr(measuring, "top1", None)
        report = rank_architectures(models, (4, 4), images, hypernetwork=small, results=path)
    assert report.failed["a"].startswith("TypeError: ")
    report = rank_architectures(models, (4, 4), images, hypernetwork=small, results=path)
    assert names(report.networks) == "a" and report.failed == {}


class Giving(nn.Module):
    """The scores of a network, as `wrapped` returns them."""

    def __init__(self, wrapped, classes: int = 3) -> None:
        super().__init__()
        self.body = cnn(4, classes)
        self.wrapped = wrapped

    def extra_repr(self) -> str:
        return f"{object()}, {self.wrapped}"

    def forward(self, x):
        return self.wrapped(self.body(x))


def where_measured(scores: torch.Tensor) -> torch.Tensor:
    if len(scores) == 30:  # of the images that are measured with
        raise IndexError("no such thing\nat all")
    return scores


def test_scores_are_found_among_what_a_network_returns(small, images):
    torch.manual_seed(0)
    plain = Giving(lambda scores: scores)
    models = [("plain", plain)]
    for name, wrapped in {
        "dict": lambda scores: {
            "logits": scores,
            "loss": scores.sum(),
            "wide": scores.repeat(1, 2),
        },
        "places": lambda scores: scores[:, :, None, None],
    }.items():
        models.append((name, copy.deepcopy(plain)))
        models[-1][1].wrapped = wrapped
    report = rank_architectures(models, (4, 4), images, hypernetwork=small)
    assert len(report.networks) == 3
    assert len({network.accuracy for network in report.networks}) == 1


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (
            Giving(lambda scores: {"a": scores, "b": -scores}),
            r"\[\(30, 3\), \(30, 3\)\]; expected one",
        ),
        (Giving(lambda scores: scores, classes=5), r"\[\(30, 5\)\]; expected .* for the 3 classes"),
        (Giving(where_measured), r"^IndexError: no such thing$"),
    ],
)
def test_a_network_without_scores_of_the_classes_fails_alone(small, images, model, reason):
    models = [("first", cnn(4)), ("bad", model), ("last", cnn(2))]
    report = rank_architectures(models, (4, 4), images, hypernetwork=small)
    assert sorted(network.name for network in report.networks) == ["first", "last"]
    assert re.search(reason, report.failed["bad"])


def test_two_processes_find_what_one_finds(images):
    models = [("a", cnn(4)), ("b", cnn(8))]
    torch.manual_seed(0)
    one, two = (rank_architectures(models, (4, 4), images, processes=n) for n in (1, 2))
    assert [x.name for x in one.networks] == [x.name for x in two.networks]
    for first, second in zip(one.networks, two.networks, strict=True):
        assert abs(first.accuracy - second.accuracy) < 10


def test_a_network_that_cannot_be_measured_does_not_stop_the_others(small, images):
    models = [("grey", nn.Sequential(nn.Conv2d(1, 4, 3))), ("fine", cnn(4))]
    report = rank_architectures(models, (4, 4), images, hypernetwork=small)
    assert names(report.networks) == "fine"
    assert "grey" in report.failed
    assert "grey: " in str(report)


def test_networks_beyond_the_budget_are_not_predicted(small, images, monkeypatch):
    predicted, predict = [], measuring.predict_quantized_params

    def noted(model, *arguments, **settings):
        predicted.append(model)
        return predict(model, *arguments, **settings)

    monkeypatch.setattr(measuring, "predict_quantized_params", noted)
    models = [("wide", cnn(16)), ("narrow", cnn(2))]
    report = rank_architectures(models, (4, 4), images, hypernetwork=small, budget={"macs": 1000})
    assert names(report.networks) == names(report.front()) == "narrow"
    assert report.beyond == {"wide": "3,936 multiply-accumulates of at most 1,000"}
    assert "wide: 3,936" in str(report)
    assert [model is models[1][1] for model in predicted] == [True]


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
    assert ranked(latency_ms=1e6) == timed
    assert len(ranked(latency_ms=1e-6).beyond) == 2
    assert len((tmp_path / "ranking.jsonl").read_text().splitlines()) == 4


def test_layers_may_have_bits_of_their_own(small, images):
    models = [("a", cnn(4))]
    bits = {"0": (8, 8), "*": (2, 4)}
    (network,) = rank_architectures(models, bits, images, hypernetwork=small).networks
    assert network.weight_bits == 8 * 4 * 27 + 2 * 3 * 4
    with pytest.raises(gq.ArgumentError, match=r"bits=\(1, 4\)"):
        rank_architectures(models, bits | {"*": (1, 4)}, images, hypernetwork=small)


@pytest.mark.parametrize(
    "budget", [5, {"mac": 5}, {"macs": 0}, {"macs": "5"}, {"macs": True}, {"macs": float("nan")}]
)
def test_what_is_no_budget_is_refused(small, images, budget):
    with pytest.raises(gq.ArgumentError, match=r"Write budget=\{'macs': 20e6\}"):
        rank_architectures([("a", cnn(2))], (4, 4), images, hypernetwork=small, budget=budget)


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([], "0 networks"),
        ([("a", cnn(2)), ("a", cnn(2))], "2 networks with 1 names"),
        ([cnn(2)], r"expected a pair \(name, nn.Module\)"),
        ([("a", "resnet18")], r"expected a pair \(name, nn.Module\)"),
    ],
)
def test_what_is_no_list_of_networks_is_refused(small, images, models, message):
    with pytest.raises(gq.ArgumentError, match=message):
        rank_architectures(models, (4, 4), images, hypernetwork=small)


def test_images_without_labels_are_refused(small):
    with pytest.raises(gq.ArgumentError, match=r"ImageSet\.of"):
        rank_architectures([("a", cnn(2))], (4, 4), torch.zeros(4, 3, 8, 8), hypernetwork=small)


@pytest.mark.parametrize("content", [b"my notes\n", b'{"a": 1}\n', b"[1]\n", b"\xff\x00"])
def test_a_file_of_something_else_is_refused_and_stays(small, images, tmp_path, content):
    path = tmp_path / "notes"
    path.write_bytes(content)
    with pytest.raises(gq.ArgumentError, match="Write the name of another file"):
        rank_architectures([("a", cnn(4))], (4, 4), images, hypernetwork=small, results=path)
    assert path.read_bytes() == content


def test_heads_are_fitted_to_as_many_classes_of_other_names(small, images, monkeypatch):
    known = TrainingImages(size=8, mean=images.mean, std=images.std, classes=images.classes)
    three = with_new_classes(small, 3, known)
    heads, predict = [], measuring.predict_quantized_params

    def noted(*arguments, **settings):
        heads.append(settings["head"])
        return predict(*arguments, **settings)

    monkeypatch.setattr(measuring, "predict_quantized_params", noted)
    for classes in (images.classes, images.classes[::-1]):
        named = dataclasses.replace(images, classes=classes)
        rank_architectures([("a", cnn(4))], (4, 4), named, hypernetwork=three)
    assert heads == ["auto", "fit"]
