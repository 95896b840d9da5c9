"""benchmarks/publish_weights.py, against a hub on this machine."""

from __future__ import annotations

import json

import huggingface_hub.constants
import pytest
from hub_server import commit_id

from ghnqat_sdk.errors import CheckpointError
from ghnqat_sdk.hypernetwork.names import HUB_REPO

ACCURACY = {"mean": 30.0, "sem": 1.0, "max": 31.0, "graphs": [29.0, 31.0]}
EVALUATION = {
    "space": "families",
    "split": "test",
    "protocol": "paper",
    "images": 100,
    "bits": [2, 2],
    "families": ["vgg", "resnet"],
    "top1": ACCURACY,
    "top5": ACCURACY,
}


@pytest.fixture
def publish(benchmark_module, monkeypatch, hub, saved, tmp_path):
    """Publishes the tiny hypernetwork with one evaluation."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    evaluation = tmp_path / "w2a2.json"
    evaluation.write_text(json.dumps(EVALUATION))
    main = benchmark_module("publish_weights").main
    return lambda *more: main([str(evaluation), "--weights", str(saved), *more])


def test_weights_are_published_where_the_package_looks_for_them(publish, hub, capsys):
    publish()
    assert capsys.readouterr().out == f"{hub.url}/{HUB_REPO}/commit/{commit_id(0)}\n"
    card = hub.repos[HUB_REPO][0]["README.md"].decode()
    assert "| families test | 2 | W2/A2 | 30.0 ± 1.0; 31.0 |" in card
    assert "CIFAR-10 (JPEG), 32 × 32 pixels" in card


def test_refused_publication_ends_in_the_reason(publish):
    with pytest.raises(CheckpointError, match="Cannot push to 'me/forbidden'"):
        publish("--repo", "me/forbidden")
