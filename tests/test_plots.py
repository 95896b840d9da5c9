"""benchmarks/plots.py and page_parts.py: which figures are drawn, and where scripts write in a
page."""

from __future__ import annotations

import pytest


@pytest.fixture
def plots(benchmark_module):
    return benchmark_module("plots")


@pytest.fixture
def parts(benchmark_module):
    return benchmark_module("page_parts")


def curves_of(plots):
    """8 networks of 25 steps, half of them of 100, from two starts; one more for validation."""
    nets = [f"id/{index}" for index in range(2 * plots.FEWEST)]
    longer = nets[: plots.FEWEST]
    test = {
        f"{net} W4/A4 {start}": {
            str(step): 20.0 + 10 * (net in longer)
            for step in (0, 25, 100)
            if step <= (100 if net in longer else 25)
        }
        for net in [*nets, "deepnets/val/4"]
        for start in ("predicted", "he")
    }
    return plots.Curves.of_dict({"weights": "w", "test": test})


def test_every_line_shows_the_same_networks_at_all_of_its_steps(plots):
    curves = curves_of(plots)
    everyone, longer = plots.groups(curves, "W4/A4")
    assert (len(everyone), len(longer)) == (2 * plots.FEWEST, plots.FEWEST)
    points = plots.start_points(curves, "W4/A4", "he", everyone)
    assert [(step, mean, count) for step, mean, _, count in points] == [(0, 25, 8), (25, 25, 8)]
    steps = [point[0] for point in plots.start_points(curves, "W4/A4", "he", longer)]
    assert steps == [0, 25, 100]


def test_validation_networks_are_not_drawn(plots):
    assert "deepnets/val/4" not in plots.common(curves_of(plots), "W4/A4", 25)


def test_bars_of_ours_stand_beside_those_of_the_paper(plots):
    ours = {"paper top1 W2/A2 GHN-QAT deep": {"mean": 30.0, "sem": 1.0}}
    bars = plots.table_bars({"figures": ours}, "W2/A2")
    assert list(bars) == [("GHN-QAT", "paper"), ("GHN-QAT", "ours")]
    assert bars["GHN-QAT", "paper"][0] == (25.6, 0.2)
    assert bars["GHN-QAT", "ours"] == [None, (30.0, 1.0), None, None]


def test_the_history_of_training_is_read_from_the_journal(plots):
    table = f"""before
{plots.HISTORY} hint loss |
| ---: | ---: | --- | --- | ---: |
| 1,500 | 0.73 | 31.2, 14.9, 38.3 | 39.9, 24.9, 43.7 | 0.62 |
| 1,500 + 200 of decay | 0.81 | 33.0, 16.0, 40.0 | 41.0, 26.0, 45.0 | – |

| 9 | 9 | 1, 1, 1 | 1, 1, 1 | 1 |
"""
    stable, decayed = plots.history(table)
    assert stable == (0.73, False, (31.2, 14.9, 38.3), (39.9, 24.9, 43.7))
    assert decayed == (0.81, True, (33.0, 16.0, 40.0), (41.0, 26.0, 45.0))
    assert len(plots.history(plots.LOG.read_text(encoding="utf-8"))) > 30


def test_charts_are_drawn_from_the_figures_there_are(plots, tmp_path, capsys):
    plots.main(["--output", str(tmp_path)])
    assert {path.name for path in tmp_path.iterdir()} == {
        "graph.svg",
        "qat_start.svg",
        "table1.svg",
        "training.svg",
    }
    assert "GHN-QAT, paper" in (tmp_path / "table1.svg").read_text(encoding="utf-8")


def test_a_script_writes_its_own_part_of_a_page_alone(parts, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a: written by a script -->\n\nold\n\n<!-- end of a -->\nafter\n")
    parts.write_part("a", "new\n", page)
    assert parts.read_part("a", page) == "new\n"
    assert page.read_text().startswith("before\n")
    assert page.read_text().endswith("<!-- end of a -->\nafter\n")
    with pytest.raises(ValueError, match="no part 'b'"):
        parts.write_part("b", "new\n", page)
