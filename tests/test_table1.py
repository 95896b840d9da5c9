"""benchmarks/table1.py: what is measured again after a kill, and what the page says of the
figures."""

import json
import time
from concurrent.futures import Future

import pytest

from ghnqat_sdk import save_pretrained

GRAPHS = {"id": 3, "deep": 1, "wide": 1, "bn-free": 2}


@pytest.fixture
def common(benchmark_module):
    return benchmark_module("common")


@pytest.fixture
def table1(benchmark_module):
    return benchmark_module("table1")


def line(table1, task, percent):
    figures = dict.fromkeys(table1.PROTOCOLS[task.protocol], percent)
    return task._asdict() | {"top1": figures, "top5": figures}


def done(result):
    future = Future()
    future.set_result(result)
    return future


def test_work_takes_turns_between_splits_and_weights(table1):
    tasks = table1.plan(["a", "b"], GRAPHS, 64, 0)
    assert len(set(tasks)) == len(tasks) == 2 * 2 * 7
    assert [(task.split, task.graph, task.weights) for task in tasks[:10]] == [
        ("id", 0, "a"), ("id", 0, "b"), ("deep", 0, "a"), ("deep", 0, "b"), ("wide", 0, "a"),
        ("wide", 0, "b"), ("bn-free", 0, "a"), ("bn-free", 0, "b"), ("id", 1, "a"), ("id", 1, "b"),
    ]  # fmt: skip
    assert [task.protocol for task in tasks] == ["paper"] * 14 + ["calibrated"] * 14


def test_a_line_cut_off_by_a_kill_is_measured_again_and_spoils_no_other(table1, tmp_path, common):
    path = tmp_path / "results" / "table1.jsonl"
    first, second, third = table1.plan(["a"], {"id": 3}, 64, 0, ["paper"])
    assert table1.read(path) == {}
    common.append(path, line(table1, first, 10.0))
    common.append(path, line(table1, second, 20.0))
    path.write_bytes(path.read_bytes()[:-9])
    assert list(table1.read(path)) == [first]
    common.append(path, line(table1, third, 30.0))
    common.append(path, line(table1, second, 20.0))
    assert table1.read(path) == {
        t: line(table1, t, p) for t, p in ((first, 10.0), (third, 30.0), (second, 20.0))
    }


def test_no_new_work_is_taken_after_the_deadline(table1, common):
    started = []

    def start(task):
        started.append(task)
        return done({"task": task})

    tasks = table1.plan(["a"], GRAPHS, 64, 0)
    assert list(common.work(tasks, start, 2, time.monotonic() - 1)) == started == []
    assert [line["task"] for line in common.work(tasks, start, 1, float("inf"))] == started == tasks


def test_a_measured_line_is_found_by_its_task(table1, small, data, tmp_path, common):
    weights = table1.find_weights(str(save_pretrained(small, tmp_path)), told=(32, 32))
    for protocol, bits in table1.PROTOCOLS.items():
        task = table1.Task(weights.checksum, 64, 0, protocol, "id", 20)
        measured = table1.measure(task, weights, str(data))
        common.append(tmp_path / "lines", measured)
        assert table1.read(tmp_path / "lines")[task] == measured
        assert list(measured["top1"]) == list(measured["top5"]) == list(bits)
        assert all(0 <= measured["top1"][name] <= measured["top5"][name] <= 100 for name in bits)
    assert table1.find_weights(weights.checksum) == (None, weights.checksum, None)


def test_page_says_how_many_graphs_are_behind_a_cell_and_which_cells_pass_the_paper(table1):
    tasks = [
        t
        for t in table1.plan(["a"], GRAPHS, 64, 0)
        if t.protocol == "paper" and t.split in ("id", "deep")
    ]
    lines = {t: line(table1, t, p) for t, p in zip(tasks, (50.0, 60.0, 54.0), strict=False)}
    incomplete = table1.plan(["a"], GRAPHS, 32, 0, ["paper"])[1:]
    other = {t: line(table1, t, 99.0) for t in table1.plan(["b"], GRAPHS, 64, 0) + incomplete}
    summary = table1.summarise(lines | other, {"GHN-QAT": "a"}, GRAPHS, 64, 0)
    page = table1.page(summary)
    assert "| W4/A4 | GHN-QAT, paper | 52.5 ± 0.4; 65.7 | 50.3 ± 0.6; 63.7 |" in page
    assert (
        "| W4/A4 | GHN-QAT, ours | 52.0 ± 2.0; 54.0 (2 of 3 graphs) | 60.0 ± 0.0; 60.0 | – | – |"
        in page
    )
    assert (
        "on the graphs measured so far, our mean top-1 is above that of the paper's GHN-QAT in 4 "
        "of 6 cells: " in page
    )
    assert "W4/A4 Deep, W4/A8 Deep, W2/A2 ID, W2/A2 Deep." in page
    assert "calibrated protocol\n" not in page and "SHA-256 of the weights: GHN-QAT `a`." in page
    assert (
        "of 64 test images" in page
        and "first 3 / 1 / 1 / 2 graphs of" in page
        and "--images 64 --graphs 3 1 1 2" in page
    )


def test_a_complete_table_names_its_baseline_and_both_protocols(table1):
    lines = {t: line(table1, t, 1.0) for t in table1.plan(["a", "b"], GRAPHS, 64, 0)}
    page = table1.page(table1.summarise(lines, {"GHN-QAT": "a", "GHN-Q": "b"}, GRAPHS, 64, 0))
    assert "our mean top-1 is above that of the paper's GHN-QAT in 0 of 12 cells." in page
    assert "graphs)" not in page and "so far" not in page and "calibrated protocol\n" in page
    assert page.count("| GHN-Q, ours |") == 2 * len(table1.BITS) + 2
    assert "Our GHN-Q was trained in float" in page


def test_a_row_measured_on_fewer_images_only_stands_there_and_says_so(table1):
    measured = (
        table1.plan(["a"], GRAPHS, 64, 0, ["paper"])
        + table1.plan(["b"], GRAPHS, 64, 0, ["paper"])[1:]
    )
    lines = {t: line(table1, t, 2.0) for t in measured}
    lines |= {
        t: line(table1, t, 1.0)
        for count in (16, 32, 128)
        for t in table1.plan(["a", "b"], GRAPHS, count, 0)
    }
    names = {"GHN-QAT": "a", "GHN-Q": "b"}
    summary = table1.summarise(lines, names, GRAPHS, 64, 0)
    assert summary["setting"]["fewer_images"] == {
        "calibrated GHN-QAT": 32, "paper GHN-Q": 32, "calibrated GHN-Q": 32
    }  # fmt: skip
    page = table1.page(summary)
    paper, calibrated = page.split("## By the calibrated protocol")
    assert (
        "| float | GHN-QAT, ours | 2.0 " in paper
        and "| float | GHN-Q, ours (32 images) | 1.0 " in paper
    )
    assert "| W4/A4 | GHN-QAT, ours (32 images) | 1.0 " in calibrated
    assert "drawn with seed 0, fewer in the rows that say so." in page
    assert "fewer" not in table1.page(table1.summarise(lines, names, GRAPHS, 128, 0))


def test_the_page_follows_from_the_figures_beside_it(table1, benchmark_module):
    summary = json.loads(table1.SUMMARY.read_text(encoding="utf-8"))
    assert benchmark_module("page_parts").read_part(table1.PART) == table1.page(summary)
