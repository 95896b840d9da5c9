"""Arbitrary arguments for every public function and command: a right answer or one of our errors,
and no trace left.

About 2,500 cases. "As before" means: the model's parameters, buffers, gradients, modes, hooks and
classes, the RNG states and torch's defaults.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from arbitrary import (
    BATCHES,
    BITS,
    EXAMPLES,
    IMAGES,
    MODELS,
    TWO,
    Named,
    check,
    explained,
    junk,
    models,
    mostly,
    named,
    state,
    surroundings,
    value,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import ghnqat_sdk as gq
from ghnqat_sdk.cli.main import main as ghnqat
from ghnqat_sdk.cli.train import main as ghnqat_train


def cases(number: int) -> settings:
    """The same ones in every run."""
    quiet = list(HealthCheck)
    return settings(
        max_examples=number,
        deadline=None,
        derandomize=True,
        suppress_health_check=quiet,
        database=None,
    )


@cases(600)
@given(
    models,
    mostly(*BITS),
    mostly("auto", "keep", "predict"),
    mostly(None, None, *named(IMAGES)),
    mostly(None, None, *named(BATCHES)),
    st.integers(0, 9),
)
def test_predict_quantized_params(small, name, bits, head, example, calibration, other):
    model = MODELS[name]()
    sources = {0: "default", 1: "no/such", 2: "nowhere", 3: 7}
    kwargs: dict[str, Any] = {
        "head": head,
        "example_inputs": value(example),
        "calibration": value(calibration),
    }
    result = check(
        gq.predict_quantized_params, model, bits, hypernetwork=sources.get(other, small), **kwargs
    )
    if result is not None:
        report = gq.prediction_report(result)
        names = [name for name, _ in model.named_parameters()]
        assert sorted([*report.predicted, *report.kept]) == sorted(names)
        assert [(n, p.shape, p.dtype, p.requires_grad) for n, p in result.named_parameters()] == [
            (n, p.shape, p.dtype, p.requires_grad) for n, p in model.named_parameters()
        ]


@cases(150)
@given(junk(), junk())
def test_predict_quantized_params_of_anything(small, model, revision):
    result = check(gq.predict_quantized_params, model, hypernetwork=small)
    assert result is None or isinstance(model, nn.Module)
    result = check(gq.predict_quantized_params, nn.Conv2d(3, 4, 3), revision=revision)
    assert result is None or revision is None


@cases(400)
@given(st.one_of(models, models, junk()), mostly(None, *named(IMAGES), Named("two", TWO)))
def test_trace(name, example):
    model = MODELS[name]() if isinstance(name, str) and name in MODELS else name
    graph = check(gq.trace, model, value(example))
    if graph is not None:
        assert all(source < target for source, target in graph.edges)
        floating = [n for n, p in model.named_parameters() if p.is_floating_point()]
        assert sorted([*graph.parameters, *graph.unreached]) == sorted(floating)


@cases(60)
@given(mostly("graph", "graph"), mostly("graph.svg", "graph.gif", "no/graph.svg"))
def test_draw_graph(tmp_path_factory, diamond, graph, path):
    folder = tmp_path_factory.mktemp("x")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        check(
            gq.draw_graph, diamond if isinstance(graph, str) and graph == "graph" else graph, path
        )
    written = [file.name for file in folder.iterdir()]
    assert written == ["graph.svg"] * (graph == "graph" and path == "graph.svg")


@cases(300)
@given(st.sampled_from(["classifier", "sharing", "linear", "two inputs"]), mostly(*named(BATCHES)))
def test_calibrate(small, name, batches):
    qmodel = gq.predict_quantized_params(
        MODELS[name](), hypernetwork=small, example_inputs=EXAMPLES.get(name)
    )
    before, around = state(qmodel), surroundings()
    try:
        report = gq.calibrate(qmodel, value(batches))
    except gq.GhnqatError as error:
        explained(error)
        assert state(qmodel) == before
    else:
        assert report.images > 0
        assert report.ranges or report.unreached
    assert surroundings() == around


@cases(200)
@given(st.one_of(models, junk()), mostly(*named(IMAGES)).map(value))
def test_calibrate_to_float_and_reports_of_anything(name, images):
    model = MODELS[name]() if isinstance(name, str) and name in MODELS else name
    for function in (
        lambda m: gq.calibrate(m, []),
        gq.prediction_report,
        lambda m: gq.quantization_report(m, images),
    ):
        check(function, model)
    if name != "quantized":  # whose classes change, as they should
        for function in (gq.to_float, gq.qat.learn_steps, gq.qat.fix_steps):
            check(function, model)


@cases(250)
@given(mostly("default", "tests", "./tests", "a/b"), mostly(None, "main"))
def test_load_pretrained(source, revision):
    result = check(gq.load_pretrained, source, revision=revision)
    assert result is None or (source == "default" and revision is None)


@cases(200)
@given(
    junk(), st.one_of(st.just("folder"), st.text(max_size=6), junk()), mostly(None, torch.float16)
)
def test_save_pretrained_and_push_to_hub(tmp_path_factory, small, anything, name, dtype):
    folder = (
        tmp_path_factory.mktemp("x") / name if isinstance(name, str) and name.isalnum() else None
    )
    if folder is not None:
        result = check(gq.save_pretrained, small, folder, dtype=dtype)
        assert result is None or gq.load_pretrained(folder).config == small.config
    check(gq.save_pretrained, anything, "never-written")
    assert not Path("never-written").exists()
    check(gq.push_to_hub, small, anything)
    check(gq.push_to_hub, anything, "me/ghn")


@cases(150)
@given(st.one_of(models, junk()), st.one_of(st.just("folder"), junk()))
def test_save_quantized_and_load_quantized(tmp_path_factory, name, folder):
    model = MODELS[name]() if isinstance(name, str) and name in MODELS else name
    target = tmp_path_factory.mktemp("x") / "y" if folder == "folder" else None
    saved = None if target is None else check(gq.save_quantized, model, target)
    assert saved is None or (saved / "quantization.json").exists()
    check(gq.load_quantized, model, folder if saved is None else saved)


@cases(200)
@given(junk(), st.lists(st.one_of(st.just("graph"), junk()), max_size=2))
def test_graph_hypernetwork(small, diamond, config, graphs):
    if config is not None:
        assert check(gq.GraphHypernetwork, config) is None
    given_graphs = [
        diamond if isinstance(graph, str) and graph == "graph" else graph for graph in graphs
    ]
    result = check(small, given_graphs)
    assert (result is not None) == all(graph is diamond for graph in given_graphs)
    check(small, config)


WORDS = (
    "predict", "evaluate", "inspect", "version", "run", "recipes", "decay", "teacher", "resnet0",
    "deepnets/id/20", "families/val/1", "deepnets/id/-1", "deepnets/deep/999", "id/3", "nn:Linear",
    "torch.nn:ReLU", "torch:nothing", ":", "a:b", "--bits", "4,4", "2,2", "9,9", "4", "--head",
    "keep", "--classes", "10", "0", "-5", "--input", "2,3,32,32", "1,1", "-1,3,8,8", "--json",
    "--output", "--hypernetwork", "{small}", "nowhere", "--data", "--graphs", "1", "--images",
    "--space", "families", "--split", "id", "--protocol", "calibrated", "--seed", "--revision",
    "main", "--steps", "--set", "clip_norm=0", "networks.9.share=1", "sampling.meta_batch=nan", "=",
    "--recipe", "ghn-q", "--config", "--hints", "--picture", "graph.svg", "--plot",
    "--first-last-bits", "8", "--resume", "--threads", "--help", "", "é",
)  # fmt: skip


@cases(500)
@given(
    command=st.sampled_from([(ghnqat, ("predict", "deepnets/id/20", "--hypernetwork", "{small}")),
                     (ghnqat, ("inspect", "deepnets/id/20")),
                     (ghnqat, ("evaluate", "--data", "nowhere")), (ghnqat, ("version",)),
                     (ghnqat, ()), (ghnqat_train, ("recipes",)), (ghnqat_train, ()),
                     (ghnqat_train,
                      ("run", "--data", "nowhere", "--output", "out", "--steps", "1"))]),
    more=st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=5)), max_size=4),
)  # fmt: skip
def test_command_lines(tmp_path_factory, small, capsys, command, more):
    program, start = command
    folder = tmp_path_factory.mktemp("cli")
    gq.save_pretrained(small, folder / "small")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        threads = torch.get_num_threads()
        try:
            status = program(
                [
                    word.format(small="small") if word == "{small}" else word
                    for word in (*start, *more)
                ]
            )
        except SystemExit as stop:  # argparse: --help, or a usage that it refuses
            status = stop.code
        finally:
            torch.set_num_threads(threads)
            torch.set_flush_denormal(False)
    captured = capsys.readouterr()
    assert status in (0, 1, 2)
    assert "Traceback" not in captured.err
    if status != 0:
        assert captured.err.startswith(("ghnqat: ", "ghnqat-train: "))
        assert captured.err.count("\n") == 1
