"""Networks ranked by how far a short training will bring them."""

import json

import pytest
import torch
from rankable import Giving, cnn, names
from torch import nn

from ghnqat_sdk import trace
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.search import measuring
from ghnqat_sdk.search.promise import depth, first_step, promises
from ghnqat_sdk.search.ranking import rank_architectures


def example(images) -> tuple[torch.Tensor, torch.Tensor, int]:
    return images.normalize(images.images), images.labels, 3


def test_a_network_is_promised_most_that_is_first_in_everything():
    best = {"loss": 0.5, "first_step": 0.4, "depth": 10, "macs": 100}
    worst = {"loss": 2.0, "first_step": -1.0, "depth": 90, "macs": 10}
    between = {"loss": 1.0, "first_step": 0.4, "depth": 20, "macs": 50}
    assert promises([between, best, worst]) == [0.5625, 0.9375, 0.0]
    assert promises([best]) == [0]


def test_the_depth_is_that_of_the_longest_path():
    short = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten())
    model = nn.Sequential(short, nn.Linear(4 * 30 * 30, 10, bias=False))
    longer = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), model)
    assert depth(trace(longer)) == depth(trace(model)) + 1
    beside = Giving(lambda scores: scores + scores.relu())
    assert depth(trace(beside)) == depth(trace(Giving(lambda scores: scores.relu()))) + 1


def test_a_first_step_lowers_the_loss_and_is_the_same_each_time(images):
    found = {first_step(cnn(8), *example(images)) for _ in range(2)}
    assert len(found) == 1
    assert 0 < found.pop() < 2


def test_what_drops_out_is_the_same_before_and_after(images):
    plain, dropping = cnn(8), cnn(8)
    dropping[3] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Dropout(0.1))
    steps = [first_step(model, *example(images)) for model in (plain, dropping)]
    assert steps[1] == pytest.approx(steps[0], abs=0.1)
    assert steps[1] > 0


def test_a_loss_that_is_not_finite_promises_nothing(images):
    assert first_step(Giving(lambda scores: scores / 0), *example(images)) == -torch.inf


def test_networks_come_by_promise(small, images):
    models = [(name, cnn(width)) for name, width in (("a", 2), ("b", 8), ("c", 16))]
    before = [tensor.clone() for _, model in models for tensor in model.state_dict().values()]
    ranking = rank_architectures(models, (4, 4), images, hypernetwork=small, by="training")
    found = [network.promise for network in ranking.networks]
    assert found == sorted(found, reverse=True)
    assert {network.depth for network in ranking.networks} == {ranking.networks[0].depth}
    after = [tensor for _, model in models for tensor in model.state_dict().values()]
    assert all(map(torch.equal, before, after))
    assert "promise" in str(ranking).splitlines()[0]
    by_accuracy = rank_architectures(models, (4, 4), images, hypernetwork=small)
    assert {x.accuracy for x in by_accuracy.networks} == {x.accuracy for x in ranking.networks}
    assert "promise" not in str(by_accuracy)
    assert json.loads(by_accuracy.to_json())["networks"][0]["promise"] is None


def test_what_is_known_of_a_network_is_added_to(small, images, tmp_path, monkeypatch):
    given = {"hypernetwork": small, "results": tmp_path / "known.jsonl"}
    models = [("a", cnn(4)), ("b", cnn(8))]
    first = rank_architectures(models, (4, 4), images, **given)
    monkeypatch.setattr(measuring, "predict_quantized_params", None)  # nothing is predicted again
    second = rank_architectures(models, (4, 4), images, by="training", **given)
    third = rank_architectures(models, (4, 4), images, by="training", **given)
    assert second == third
    assert names(first.networks) in ("ab", "ba")
    assert len((tmp_path / "known.jsonl").read_text().splitlines()) == 4


def test_another_order_is_refused(small, images):
    with pytest.raises(ArgumentError, match="by='speed' is unknown"):
        rank_architectures([("a", cnn(4))], (4, 4), images, hypernetwork=small, by="speed")
