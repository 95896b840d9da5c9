"""benchmarks/qat_initialization.py: what is trained, in which order, and what the page says of the
figures."""

import pytest
import torch
from torch import nn


@pytest.fixture
def bench(benchmark_module):
    return benchmark_module("qat_start_tasks")


@pytest.fixture
def training(benchmark_module):
    return benchmark_module("qat_start_training")


@pytest.fixture
def curves_of(benchmark_module):
    return benchmark_module("qat_start_curves")


@pytest.fixture
def pages(benchmark_module):
    return benchmark_module("qat_start_page")


def small_cnn():
    return nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(24, 48, 3, padding=1, bias=False), nn.BatchNorm2d(48), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10),
    )  # fmt: skip


def line(task, accuracy, steps=None):
    curve = {
        str(step): accuracy + step / 100
        for step in (0, 25, 50, 100, 200, 400)
        if step <= (steps or task.steps)
    }
    return task._asdict() | {"val": curve, "test": curve}


def tried(bench, start, best, steps):
    """Lines of the validation networks at W4/A4 by which `best` is the learning rate of a start."""
    tasks = [task for task in bench.plan("w", steps, [start], {}) if task.bits == "W4/A4"]
    return [line(task, 50.0 if task.rate == best else 20.0) for task in tasks]


@pytest.mark.parametrize(
    ("steps", "tuned"), [(25, 100), (100, 100), (200, 400), (400, 400), (1600, 400)]
)
def test_learning_rates_come_first_and_decide(bench, steps, tuned):
    tuning = bench.plan("w", steps, ["he"], {})
    assert len(tuning) == 2 * 4 * 3
    assert {task.steps for task in tuning} == {tuned}
    assert {task.net for task in tuning} == {*bench.tuning_networks()}
    assert {task.net.split("/")[1] for task in tuning} == {"val"}
    known = {task: line(task, 50.0 if task.rate == 0.03 else 20.0) for task in tuning}
    plan = bench.plan("w", steps, ["he"], known)[len(tuning) :]
    assert {(task.rate, task.steps) for task in plan} == {(0.03, steps)}
    assert [task.net for task in plan[:4:2]] == list(bench.networks()[:2])
    assert len(plan) == 2 * len(bench.networks())
    assert len(set(bench.networks())) == 12
    assert sum(net.startswith("torchvision/") for net in bench.networks()) == 6


def test_of_equal_learning_rates_the_larger_is_chosen(bench):
    assert bench.best_rates(tried(bench, "he", None, 100)) == {
        ("W4/A4", "he", 100): max(bench.RATES[False])
    }


def test_a_given_learning_rate_needs_no_tuning(bench):
    plan = bench.plan("w", 400, ["he", "predicted"], {}, 0.003)
    assert {(task.rate, task.steps) for task in plan} == {(0.003, 400)}
    assert len(plan) == 2 * 2 * len(bench.networks())


def test_only_predicted_starts_depend_on_the_weights(bench):
    assert {(task.start, task.weights) for task in bench.plan("w", 100, list(bench.STARTS),
    {})} == {
        ("predicted", "w"), ("he", ""), ("default", ""), ("float", ""),
    }  # fmt: skip
    assert {task.weights for task in bench.plan("w", 100, list(bench.CHANGES), {})} == {"w"}


def test_changes_are_tried_on_validation_networks_alone(bench, curves_of, pages):
    tuning = bench.plan("w", 100, ["noise"], {})
    assert bench.plan("w", 100, ["noise"], {task: line(task, 20.0) for task in tuning}) == tuning
    curves = curves_of.Curves(
        [line(task, 1000 * task.rate) for task in tuning if task.bits == "W4/A4"], "w"
    )
    assert (
        "| plus noise of 0.3 standard deviations | 300.0 | 301.0 | – | – |"
        in pages.changes_table(curves)
    )


@pytest.mark.parametrize("change", ["noise", "flat", "head", "steps"])
def test_a_change_keeps_the_size_of_what_it_changes(data, change, training):
    with torch.random.fork_rng():
        model = training.from_float(training.he(small_cnn()), (4, 4))
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        assert training.changed(model, change, training.images_of(str(data))) is model
    after = dict(model.named_parameters())
    moved = {name for name, old in before.items() if not torch.equal(after[name], old)}
    weights = [name for name, parameter in before.items() if parameter.ndim > 1]
    assert (
        moved
        == {"noise": {*weights}, "flat": {*weights}, "head": {weights[-1]}, "steps": set()}[change]
    )
    assert (len(after) > len(before)) == (change == "steps")
    for name in moved - {weights[-1]}:
        torch.testing.assert_close(after[name].norm(), before[name].norm(), rtol=0.1, atol=0.0)


def test_of_several_runs_the_best_on_validation_images_counts_at_each_mark(bench, curves_of):
    def run(steps, rate, val, test):
        task = bench.Task("", bench.networks()[0], "W4/A4", "he", steps, rate)
        marks = [str(mark) for mark in (0, 100, 400) if mark <= steps]
        return line(task, 0.0) | {
            "val": dict(zip(marks, val, strict=True)),
            "test": dict(zip(marks, test, strict=True)),
        }

    lines = [run(400, 0.03, (10, 25, 40), (99, 55, 44)), run(100, 0.1, (10, 30), (11, 33))]
    assert curves_of.Curves(lines, "w").of == {
        (bench.networks()[0], "W4/A4", "he"): {0: 11, 100: 33, 400: 44}
    }


def test_the_page_names_the_learning_rates(bench, curves_of, pages):
    curves = curves_of.Curves(tried(bench, "he", 0.1, 100) + tried(bench, "he", 0.03, 400), "w")
    assert (
        pages.rates_of(curves)
        == ": after 100 steps, W4/A4 He 0.1. For longer runs: after 400 steps, W4/A4 He 0.03"
    )


def test_the_page_follows_from_the_lines(bench, monkeypatch, curves_of, pages):
    monkeypatch.setattr(curves_of, "FEWEST", 2)
    nets = bench.networks()[:2]
    he = [bench.Task("", net, "W4/A4", "he", 100, 0.1) for net in nets]
    predicted = [bench.Task("w", net, "W4/A4", "predicted", 100, 0.01) for net in nets]
    other = [bench.Task("old", net, "W4/A4", "predicted", 100, 0.01) for net in nets]
    lines = [
        line(he[0], 10.0),
        line(he[1], 30.0),
        *(line(t, 20.0) for t in predicted),
        *(line(t, 90.0) for t in other),
    ]
    lines += [
        line
        for start, rate in (("he", 0.1), ("predicted", 0.01))
        for line in tried(bench, start, rate, 100)
    ]
    lines += [
        line(bench.Task("", nets[0], "W4/A4", "float", 100, 0.1), 40.0),
        *tried(bench, "float", 0.1, 100),
    ]
    curves = curves_of.Curves(lines, "w")
    assert curves.of[nets[0], "W4/A4", "float"] == {100: 41.0}
    page = pages.page(curves, "w")
    assert "| predicted | 20.0 ± 0.0 | 20.2 ± 0.0 | 21.0 ± 0.0 |" in page
    assert "| He | 20.0 ± 10.0 | 20.2 ± 10.0 | 21.0 ± 10.0 |" in page
    assert "| He, float training | – | – | 41.0 ± 0.0 (1 of 2) |" in page
    assert "| predicted ahead of He | 1 of 2 | 1 of 2 | 1 of 2 |" in page
    assert (
        "At W4/A4, He needs 100 steps to reach what the predicted start has after 100 (21.0 %, 2 "
        "networks)." in page
    )
    assert "W4/A4 predicted 0.01, He 0.1" in page
    assert (
        "- Networks: torchvision's mobilenet_v2 at 32 × 32 pixels, the first 1 of `families/test` "
        "of" in page
    )
    assert "`w`." in page
    monkeypatch.setattr(curves_of, "FEWEST", 3)
    assert "± " not in pages.table(curves, "W4/A4")
    assert "weights, which came before those that ship: `w`." in pages.page(curves, "newer")


def test_a_start_trains_and_is_measured(bench, data, monkeypatch, training):
    monkeypatch.setattr(training, "MARKS", (0, 1, 2))
    monkeypatch.setattr(training, "BATCH", 8)
    task = bench.Task("", bench.networks()[1], "W4/A4", "float", 2, 0.01)
    with torch.random.fork_rng():
        measured = training.measure(task, str(data))
    assert list(measured["test"]) == ["0", "1", "2"]
    assert all(0 <= accuracy <= 100 for accuracy in measured["test"].values())


def test_what_is_not_finite_counts_as_chance(data, training):
    model = training.from_float(small_cnn(), (4, 4))
    with torch.no_grad():
        model[0].weight.fill_(float("nan"))
    assert training.accuracies(model, training.images_of(str(data))) == (10.0, 10.0)
