"""benchmarks/ranking_truth.py and ranking_evidence.py: what is trained, and what figures say."""

import math
from collections import Counter

import pytest


@pytest.fixture
def truth(benchmark_module):
    return benchmark_module("ranking_truth")


@pytest.fixture
def evidence(benchmark_module):
    pytest.importorskip("sklearn")
    return benchmark_module("ranking_evidence")


def test_sixty_test_networks_in_turns_and_five_of_them_with_three_seeds(truth):
    tasks = truth.plan()
    assert len(tasks) == len(set(tasks)) == 70
    seeds = Counter(task.net for task in tasks)
    assert Counter(seeds.values()) == {1: 55, 3: 5}
    first = [task.net.rsplit("/", 1)[0] for task in tasks[:20]]
    assert first == ["families/test", "deepnets/id"] * 10
    assert max(truth.named(net).macs for net in seeds) <= truth.MOST


def test_the_rate_rises_and_falls_to_nothing(truth):
    shares = [truth.share_of_rate(step, 100) for step in range(100)]
    top = shares.index(max(shares))
    assert shares[:top] == sorted(shares[:top])
    assert shares[top:] == sorted(shares[top:], reverse=True)
    assert max(shares) == 1
    assert 0 < min(shares) < 0.11


def test_a_network_at_chance_is_trained_again_at_a_lower_rate(truth, monkeypatch):
    monkeypatch.setattr(truth, "images_of", lambda data: None)
    asked = []

    def line(rate, task, images, epochs):
        asked.append(rate)
        return None if rate == truth.RATE and task.net == dies else {"rate": rate}

    monkeypatch.setattr(truth, "at_rate", line)
    dies, lives, bare = "families/test/26", "families/test/7", "deepnets/bn-free/0"
    found = [truth.measure(truth.Task(net, 0), "")["rate"] for net in (dies, lives, bare)]
    assert found == [truth.LOWER_RATE, truth.RATE, truth.LOWER_RATE]
    assert asked == [truth.RATE, truth.LOWER_RATE, truth.RATE, truth.LOWER_RATE]


def test_noise_is_pooled_over_networks_with_several_seeds(truth):
    lines = [
        {"net": net, "test": x} for net, x in [("a", 50), ("a", 52), ("b", 9), ("c", 1), ("c", 1)]
    ]
    assert truth.noise(lines) == pytest.approx(1.0)
    assert truth.noise(lines[2:3]) is None


def test_orders_are_compared_with_intervals(evidence):
    truth = [float(x) for x in range(30)]
    same = evidence.figures([x**3 for x in truth], truth, 1.0)
    assert (same["tau"], same["rho"], same["regret"]) == (1, 1, 0)
    opposite = evidence.figures([-x for x in truth], truth, 1.0)
    assert (opposite["tau"], opposite["regret"]) == (-1, 25)
    swapped = [truth[i ^ 1] for i in range(30)]
    near = evidence.figures(swapped, truth, 1.0)
    low, high = near["tau interval"]
    assert low < near["tau"] < high < 1


def test_a_network_is_left_out_of_the_fit_that_judges_it(evidence):
    truth = [float(x) for x in range(20)]
    useful = [2 * x + 1 for x in truth]
    assert evidence.kendall(evidence.left_out([useful], truth), truth) > 0.95
    constant = evidence.left_out([[1.0] * 20], truth)
    # The mean of all others is the lower, the higher the one that is left out.
    assert evidence.kendall(constant, truth) == pytest.approx(-1)


def test_noise_between_seeds_bounds_what_can_be_reached(evidence):
    truth = [float(x) for x in range(40)]
    ceilings = [evidence.ceiling(truth, deviation) for deviation in (0.0, 1.0, 10.0)]
    assert ceilings[0] == 1
    assert ceilings == sorted(ceilings, reverse=True)
    assert ceilings[2] > 0.3


def test_every_measure_is_compared_over_the_networks_that_were_trained(evidence):
    def line(i):
        scores = {
            "parameters": 10.0 + i, "macs": 100.0 - i % 7, "predicted": float(i),
            "predicted likelihood": math.log(1 + i), "NASWOT": float(i % 5),
            "shallowness": -float(i % 3), "first step": float(i), "gradient norm": 40.0 - i,
            "predicted likelihood, 128 images": float(i),
        }  # fmt: skip
        return {"scores": scores, "seconds": dict.fromkeys(scores, 0.5)}

    scored = {f"n{i}": line(i) for i in range(25)}
    trained = {f"n{i}": {"test": float(i), "val": [i, 0, 0], "seconds": 30.0} for i in range(20)}
    found = evidence.compared(scored, trained)
    assert found["predicted"]["tau"] == 1
    assert found[evidence.ONE_EPOCH]["seconds"] == 10
    assert found["regression on depth, multiply-accumulates"]["seconds"] == 1.0
    scored["again"] = {**line(3), "seconds": {}}
    assert evidence.once(["n1", "n3", "again"], scored) == ["n1", "n3"]
    table = evidence.table(found)
    assert table.count("\n") == len(found) + 1


def test_depth_is_the_longest_path(benchmark_module):
    from torch import nn

    from ghnqat_sdk import trace

    scores = benchmark_module("ranking_scores")
    short = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten())
    model = nn.Sequential(short, nn.Linear(4 * 30 * 30, 10, bias=False))
    longer = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), model)
    assert scores.depth(trace(longer)) == scores.depth(trace(model)) + 1
