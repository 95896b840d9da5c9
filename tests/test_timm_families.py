"""benchmarks/timm_families.py: which members are measured, once each, and what is counted."""

import json
import sys

import pytest
from torch import nn


def cnn(width: int) -> nn.Module:
    first = [nn.Conv2d(3, width, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    second = [nn.Conv2d(width, width, 3, 2), nn.ReLU()]
    return nn.Sequential(
        *first, *second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)
    )


def mixer() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.Flatten(2), nn.Linear(64, 8), nn.Flatten())


BUILT = {"wide": lambda: cnn(16), "narrow": lambda: cnn(8), "mixer": mixer}


@pytest.fixture
def bench(benchmark_module, monkeypatch, tmp_path):
    module = benchmark_module("timm_families")
    monkeypatch.setattr(module, "members", lambda: {"plain": ["wide", "narrow"], "mlp": ["mixer"]})
    monkeypatch.setattr(module, "build", lambda name: BUILT[name]())
    monkeypatch.setattr(module, "IMAGES", 64)
    for name in ("LINES", "TABLE"):
        monkeypatch.setattr(module, name, tmp_path / f"{name.lower()}.json")
    return module


def run(bench, data, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["timm_families.py", "--data", str(data), *arguments])
    bench.main()


def test_the_smallest_cnn_of_each_family_is_measured_once(bench, data, monkeypatch, capsys):
    run(bench, data, monkeypatch)
    assert "1 of 1 families with CNNs" in capsys.readouterr().out
    (row,) = json.loads(bench.TABLE.read_text())
    assert (row["model"], row["side"], row["predicted"], row["kept"]) == ("narrow", 32, 7, 0)
    assert row["difference %"] < 1 <= 95 <= row["same %"]
    monkeypatch.setattr(bench, "build", None)
    run(bench, data, monkeypatch)
    assert "1 of 1 families" in capsys.readouterr().out


def test_no_work_is_taken_after_the_minutes_and_other_families_are_left(
    bench, data, monkeypatch, capsys
):
    run(bench, data, monkeypatch, "--minutes", "0")
    run(bench, data, monkeypatch, "--families", "mlp")
    assert "0 of 0 families" in capsys.readouterr().out
    assert [line["family"] for line in bench.common.read_lines(bench.LINES)] == ["mlp"]


def test_a_line_counts_only_where_calibration_keeps_outputs(bench):
    line = {"difference %": 4.9, "same %": 95.0}
    assert bench.fine(line)
    assert not bench.fine(line | {"difference %": 5.1})
    assert not bench.fine(line | {"same %": 94.9})
    assert not bench.fine({"error": "TraceError"})
