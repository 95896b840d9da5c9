"""A ranking as it is printed, drawn, and cut to what a network may cost."""

import json
import math

import pytest

import ghnqat_sdk as gq
from ghnqat_sdk.search.ranked import RankedNetwork, Ranking


def ranking() -> Ranking:
    rows = [("a", 90.0, 50, 9), ("b", 80.0, 20, 9), ("c", 70.0, 30, 5), ("d", 60.0, 10, 10)]
    return Ranking(tuple(RankedNetwork(*row) for row in rows), {"e": "no way"})


def names(networks: tuple[RankedNetwork, ...]) -> str:
    return "".join(network.name for network in networks)


def test_the_front_has_what_nothing_beats_within_the_budget():
    assert names(ranking().front(macs=100)) == "abd"
    assert names(ranking().front(macs=25)) == "bd"
    assert names(ranking().front(weight_bits=100)) == "ac"
    assert names(ranking().front(macs=100, weight_bits=9)) == "abc"
    assert names(ranking().front()) == "a"


def test_a_ranking_is_printed_drawn_and_written_for_machines(tmp_path):
    assert [line.split()[0] for line in str(ranking()).splitlines()] == [
        *("network", "a", "b", "c", "d", "e:")
    ]
    written = json.loads(ranking().to_json())
    assert written["networks"][1] == {
        "name": "b", "accuracy": 80.0, "macs": 20, "weight_bits": 9, "latency_ms": None, "kept": [],
        "loss": None, "gradient_norm": None, "promise": None,
    }  # fmt: skip
    exploding = Ranking((RankedNetwork("a", 10.0, 5, 9, gradient_norm=math.inf),))
    assert json.loads(exploding.to_json())["networks"][0]["gradient_norm"] is None
    ranking().plot(tmp_path / "ranking.png", "weight_bits")
    assert (tmp_path / "ranking.png").stat().st_size > 1000


def test_a_table_says_what_was_not_predicted():
    few, many = (tuple(f"layer{i}.weight" for i in range(count)) for count in (2, 9))
    rows = (RankedNetwork("a", 90.0, 5, 9, kept=few), RankedNetwork("b", 80.0, 5, 9, kept=many))
    table = str(Ranking(rows))
    assert "a: not predicted, measured as given: layer0.weight, layer1.weight\n" in table
    assert table.endswith("layer3.weight and 5 more")


def test_a_picture_that_cannot_be_written_is_told(tmp_path):
    for path in (tmp_path / "none" / "a.png", tmp_path / "a.picture"):
        with pytest.raises(gq.ArgumentError, match=r"cannot be written.*'ranking\.png'"):
            ranking().plot(path)


def test_a_front_of_latencies_that_were_not_measured_is_refused(tmp_path):
    for refused in (
        lambda: ranking().front(latency_ms=5),
        lambda: ranking().plot(tmp_path / "a.png", "latency_ms"),
    ):
        with pytest.raises(gq.ArgumentError, match=r"budget=\{'latency_ms': 5\}"):
            refused()
    assert not (tmp_path / "a.png").exists()


def test_an_unknown_cost_is_not_drawn(tmp_path):
    with pytest.raises(gq.ArgumentError, match=r"cost='seconds' is unknown\. Write one of 'macs'"):
        ranking().plot(tmp_path / "ranking.png", "seconds")
