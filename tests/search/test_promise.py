"""Networks ranked by how far a short training will bring them."""

import json
import math

import pytest
import torch
from rankable import Giving, cnn, names
from torch import nn

from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.graph.layers import he_start
from ghnqat_sdk.search import measuring
from ghnqat_sdk.search.promise import gradient_norm, promises
from ghnqat_sdk.search.ranking import rank_architectures


def example(images) -> tuple[torch.Tensor, torch.Tensor, int]:
    return images.normalize(images.images), images.labels, 3


def test_a_network_is_promised_most_that_is_first_in_everything():
    best = {"loss": 0.5, "gradient_norm": 1.0}
    worst = {"loss": 2.0, "gradient_norm": float("inf")}
    between = {"loss": 1.0, "gradient_norm": 1.0}
    assert promises([between, best, worst]) == [0.625, 0.875, 0.0]
    assert promises([best]) == [0]


def test_the_norm_is_that_of_a_first_gradient_each_time(images):
    found = {gradient_norm(cnn(8), *example(images)) for _ in range(2)}
    assert len(found) == 1
    model = he_start(cnn(8), seed=0)
    x, labels, _ = example(images)
    nn.functional.cross_entropy(model.train()(x), labels).backward()
    norms = [p.grad.norm().item() for p in model.parameters() if p.ndim > 1]
    assert found.pop() == pytest.approx(sum(norms))


def test_a_deeper_network_of_the_same_width_has_the_larger_norm(images):
    deep = cnn(8)
    deep[2] = nn.Sequential(*[m for _ in range(6) for m in (nn.Conv2d(8, 8, 1), nn.ReLU())])
    assert gradient_norm(deep, *example(images)) > gradient_norm(cnn(8), *example(images))


def test_a_gradient_that_is_not_finite_is_infinite(images):
    assert gradient_norm(Giving(lambda scores: scores / 0), *example(images)) == math.inf


def test_networks_come_by_promise(small, images):
    models = [(name, cnn(width)) for name, width in (("a", 2), ("b", 8), ("c", 16))]
    before = [tensor.clone() for _, model in models for tensor in model.state_dict().values()]
    ranking = rank_architectures(models, (4, 4), images, hypernetwork=small, by="training")
    found = [network.promise for network in ranking.networks]
    assert found == sorted(found, reverse=True)
    assert all(network.gradient_norm > 0 for network in ranking.networks)
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
