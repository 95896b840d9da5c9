import dataclasses
import json
import math
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from toys import Toy

from ghnqat_sdk.errors import ArgumentError, CheckpointError
from ghnqat_sdk.hypernetwork.pretrained import load_pretrained
from ghnqat_sdk.quantization.roundings import NoiseRounding
from ghnqat_sdk.training.checkpoint import CHECKPOINT_FILE, load_training_state
from ghnqat_sdk.training.config import BitsConfig, BitsShare, RunConfig, ValidationConfig
from ghnqat_sdk.training.distributed import Processes
from ghnqat_sdk.training.optimizers import AdamWConfig, SoapConfig
from ghnqat_sdk.training.reports import NetworkReport, StepReport, averages
from ghnqat_sdk.training.run import LOG_FILE, RUN_FILE, Run, open_features
from ghnqat_sdk.training.sampler import Draw
from ghnqat_sdk.training.shares import CustomShare, DeepNetsShare, FamiliesShare
from ghnqat_sdk.training.validation import Validation


def state(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.folder / CHECKPOINT_FILE)


def log(run: Run) -> list[dict]:
    return [json.loads(line) for line in (run.folder / LOG_FILE).read_text().splitlines()]


# ---- what a run leaves


def test_a_run_leaves_config_state_log_and_weights_that_load(make_run, tiny):
    run = make_run()
    reports = list(run.run(6))
    assert [report.step for report in reports] == [1, 2, 3, 4, 5, 6]
    assert RunConfig.model_validate_json((run.folder / RUN_FILE).read_text()) == tiny
    assert load_training_state(run.folder)[1]["step"] == 6
    assert [entry["step"] for entry in log(run)] == [4, 6]
    for name in ("best", "last"):
        assert load_pretrained(run.folder / name).config == tiny.hypernetwork
    files = {path.name for path in run.folder.iterdir()}
    assert files == {"run.json", "run.lock", "checkpoint.safetensors", "log.jsonl", "best", "last"}


def test_the_averaged_weights_of_every_checkpoint_can_be_loaded(make_run, same):
    run = make_run()
    steps = run.run(6)
    for _ in range(3):  # one step beyond the checkpoint of step 2, before the first validation
        next(steps)
    loaded = dict(load_pretrained(run.folder / "last").named_parameters())
    prefix = "average.module."
    saved = {n.removeprefix(prefix): t for n, t in state(run).items() if n.startswith(prefix)}
    assert same(loaded, saved)
    assert not same(loaded, dict(run.trainer.averaged().named_parameters()))


# ---- resuming


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": SoapConfig()},
        {"bits": BitsConfig(settings=(BitsShare(bits=(4, 4)),), rounding=NoiseRounding())},
    ],
    ids=["adamw", "soap", "noise"],
)
def test_an_interrupted_run_resumes_to_the_same_bits(make_run, same, changes):
    make = partial(make_run, **changes)
    whole = make("whole")
    list(whole.run(6))
    interrupted = make("parts")
    steps = interrupted.run(6)
    for _ in range(3):  # one step beyond the checkpoint of step 2
        next(steps)
    resumed = make("parts")
    assert resumed.resume()
    assert resumed.progress.step == 2
    list(resumed.run(6))
    assert same(state(whole), state(resumed))


def test_a_run_keeps_its_teacher(make_run, hinted, images):
    features = open_features(hinted, images["train"], Processes())
    list(make_run("hinted", hinted, features=features).run(2))
    other = dataclasses.replace(features, teacher="0" * 64)
    with pytest.raises(CheckpointError, match=r"its hints are of the teacher .* not of 00000000"):
        make_run("hinted", hinted, features=other).resume()
    assert make_run("hinted", hinted, features=features).resume()


def test_a_run_with_hints_resumes_to_the_same_bits(make_run, same, hinted, images):
    features = open_features(hinted, images["train"], Processes())
    whole, first, second = (
        make_run(name, hinted, features=features) for name in ("whole", "parts", "parts")
    )
    list(whole.run(5))
    list(first.run(2))
    assert second.resume()
    list(second.run(5))
    assert any(name.startswith("hints.") for name in state(whole))
    assert same(state(whole), state(second))


def test_a_finished_run_goes_on_as_if_it_had_not_ended(make_run, same):
    whole, first, second = (make_run(name) for name in ("whole", "parts", "parts"))
    list(whole.run(7))
    list(first.run(3))
    second.resume()
    assert list(second.run(3)) == []
    list(second.run(7))
    assert same(state(whole), state(second))
    assert second.progress.networks == whole.progress.networks == 14


def test_nothing_to_resume_is_said(make_run):
    run = make_run()
    assert run.resume() is False
    assert not run.folder.exists()


@pytest.fixture
def finished(make_run):
    run = make_run()
    list(run.run(2))
    return run.folder


def wider(tiny: RunConfig) -> RunConfig:
    decoder = tiny.hypernetwork.decoder.model_copy(update={"hidden": 24})
    hypernetwork = tiny.hypernetwork.model_copy(update={"decoder": decoder})
    return tiny.model_copy(update={"hypernetwork": hypernetwork})


def test_a_state_of_other_sizes_is_refused_and_kept(make_run, tiny, finished, contents):
    before = contents(finished)
    with pytest.raises(CheckpointError, match=r"does not fit its config.* leave out --config"):
        make_run(config=wider(tiny)).resume()
    assert contents(finished) == before
    (finished / RUN_FILE).write_text(wider(tiny).model_dump_json())
    with pytest.raises(CheckpointError, match=r"does not fit its config.* Restore the run\.json"):
        make_run(config=wider(tiny)).resume()


def test_a_state_without_hints_is_refused_where_the_config_has_some(
    make_run, hinted, images, finished
):
    features = open_features(hinted, images["train"], Processes())
    with pytest.raises(CheckpointError, match="does not fit its config"):
        make_run(config=hinted, features=features).resume()


def test_a_state_of_another_optimizer_is_refused(make_run, finished):
    with pytest.raises(CheckpointError, match="of the optimizer 'adamw', not 'soap'"):
        make_run(optimizer=SoapConfig()).resume()


def test_the_optimizer_of_a_resumed_run_is_that_of_its_config(make_run, finished):
    changed = AdamWConfig(learning_rate=5e-3, weight_decay=0.3, betas=(0.5, 0.6))
    run = make_run(optimizer=changed)
    run.resume()
    decayed, kept = run.trainer.optimizer.param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.3, 0.0)
    assert decayed["betas"] == kept["betas"] == (0.5, 0.6)
    assert [report.learning_rate for report in run.run(3)] == [5e-3]


@pytest.mark.parametrize("fact", ["step", "mac_images", "best"])
def test_a_state_of_an_older_layout_is_refused(make_run, finished, fact):
    tensors, facts = load_training_state(finished)
    del facts[fact]
    save_file(tensors, finished / CHECKPOINT_FILE, {"facts": json.dumps(facts)})
    with pytest.raises(CheckpointError, match="does not fit its config"):
        make_run().resume()


# ---- validation


def test_all_runs_validate_on_the_same_images(make_run):
    few = ValidationConfig(every=1, networks=3, images=9)
    first, other = (make_run(f"{seed}", seed=seed, validation=few) for seed in (0, 1))
    other.trainer.average.load_state_dict(first.trainer.average.state_dict())
    figures = [
        run.validation.figures(run.trainer.averaged(), Processes()) for run in (first, other)
    ]
    assert figures[0] == figures[1]


def test_figures_are_the_accuracy_of_each_space_at_each_bit_width(make_run, images):
    spaces = (CustomShare(factory="toys.Toys"), FamiliesShare(max_macs=3e6))
    limits = ValidationConfig(networks=1, images=20, max_macs=4e6)
    bits = BitsConfig(settings=(BitsShare(bits=(4, 4)), BitsShare(bits=(32, 32))))
    run = make_run(networks=spaces, validation=limits, bits=bits)
    figures = run.validation.figures(run.trainer.averaged(), Processes())
    assert list(figures) == [
        "toys W4/A4",
        "families W4/A4",
        "toys W32/A32",
        "families W32/A32",
    ]
    assert all(0 <= figure <= 100 and figure % 5 == 0 for figure in figures.values())


def test_validation_networks_are_the_first_of_each_space_within_the_limit(make_run):
    spaces = (
        CustomShare(factory="toys.Toys"),
        DeepNetsShare(channels=16),
        DeepNetsShare(channels=32),
    )
    limits = ValidationConfig(networks=2, max_macs=40e6)
    validated = make_run(networks=spaces, validation=limits).validation.architectures
    assert [one.key[0] for one in validated] == ["toys", "toys", "deepnets", "deepnets"]
    assert [one.key[2] for one in validated[:2]] == [0, 1]
    assert all(one.macs <= 40e6 for one in validated)


def test_a_space_that_cannot_be_validated_is_refused_before_training(make_run):
    with pytest.raises(
        ArgumentError, match=r"No validation network.*'toys.Toys'.*validation\.max_macs"
    ):
        make_run(validation=ValidationConfig(max_macs=10))


def test_the_best_weights_so_far_are_kept(make_run, monkeypatch, same):
    figures = iter([30.0, 50.0, 40.0])
    monkeypatch.setattr(Validation, "figures", lambda *_: {"toys W4/A4": next(figures)})
    run = make_run(validation=ValidationConfig(every=1, images=20))
    kept = []
    for _ in run.run(3):
        kept.append(load_pretrained(run.folder / "best").state_dict())
    assert [entry["mean"] for entry in log(run)] == [30.0, 50.0, 40.0]
    assert [entry["best"] for entry in log(run)] == [30.0, 50.0, 50.0]
    assert not same(kept[0], kept[1])
    assert same(kept[1], kept[2])
    assert load_training_state(run.folder)[1]["best"] == 50.0


def test_the_log_says_where_the_run_stands_and_what_was_learned(make_run):
    run = make_run()
    list(run.run(4))
    (entry,) = log(run)
    assert entry["networks"] == 8 and entry["skipped_networks"] == 0
    assert entry["validation"].keys() == {"toys W4/A4", "toys W2/A2", "toys W32/A32"}
    assert entry["mean"] == round(sum(entry["validation"].values()) / 3, 2)
    assert "W32/A32" in entry["training"]
    assert "hint" not in entry


def report(*networks: tuple[tuple[int, int], float, float | None, float]) -> StepReport:
    draws = [(Draw(Toy("train", 0), bits, 8), *rest) for bits, *rest in networks]
    return StepReport(1, tuple(NetworkReport(*draw) for draw in draws))


def test_averages_are_by_bits_and_leave_out_what_is_not_finite():
    reports = [
        report(((4, 4), 2.0, 0.8, 0.25), ((2, 2), 3.0, None, 0.0)),
        report(((4, 4), 1.0, 0.4, 0.75), ((4, 4), math.nan, None, 0.1)),
        report(((4, 4), 1e6, 0.6, 0.5)),
    ]
    assert averages(reports) == {
        "training": {"W2/A2": [3.0, 0.0], "W4/A4": [round(13 / 3, 3), 50.0]},
        "hint": 0.6,
    }
    assert averages([]) == {"training": {}}


def test_a_new_run_does_not_overwrite_the_state_of_another(make_run, contents):
    run = make_run()
    list(run.run(2))
    before = contents(run.folder)
    with pytest.raises(ArgumentError, match=r"Write run\.resume\(\) before"):
        next(make_run().run(3))
    assert contents(run.folder) == before
