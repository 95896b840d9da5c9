"""Branching weights that ship off a stable run."""

import pytest
from safetensors.torch import load_file

from ghnqat_sdk.errors import ArgumentError, CheckpointError
from ghnqat_sdk.hypernetwork.pretrained import load_pretrained
from ghnqat_sdk.training.branch import branch
from ghnqat_sdk.training.checkpoint import CHECKPOINT_FILE, load_training_state
from ghnqat_sdk.training.config import load_config
from ghnqat_sdk.training.distributed import Processes
from ghnqat_sdk.training.run import RUN_FILE, open_features
from ghnqat_sdk.training.schedules import CosineSchedule, DecayConfig
from ghnqat_sdk.training.validation import Validation


@pytest.fixture
def stable(make_run):
    """The folder of a stable run of three steps."""
    run = make_run("stable")
    list(run.run(3))
    return run.folder


def decayed(make_run, name: str, **options):
    config = load_config(options.pop("folder") / name / RUN_FILE)
    run = make_run(name, config, **options)
    assert run.resume()
    return run


def test_a_branch_has_the_state_of_the_run_and_says_how_it_decays(stable, tmp_path, tiny, same):
    config = branch(stable, tmp_path / "branch", 4, hints=0.25)
    assert config == load_config(tmp_path / "branch" / RUN_FILE)
    assert config == tiny.model_copy(update={"decay": DecayConfig(start=3, steps=4, hints=0.25)})
    of_run, of_branch = (load_file(f / CHECKPOINT_FILE) for f in (stable, tmp_path / "branch"))
    assert same(of_run, of_branch)
    assert load_training_state(tmp_path / "branch")[1]["step"] == 3


def test_branching_off_and_decaying_leave_the_stable_run_byte_for_byte(
    stable, make_run, tmp_path, contents
):
    before = contents(stable)
    branch(stable, tmp_path / "branch", 3)
    run = decayed(make_run, "branch", folder=tmp_path)
    rates = [report.learning_rate for report in run.run(6)]
    assert rates == pytest.approx([1e-3, 2e-3 / 3, 1e-3 / 3])
    assert load_pretrained(run.folder / "last")
    assert contents(stable) == before


def test_a_branch_seeks_its_best_anew(stable, make_run, tmp_path, monkeypatch):
    better = make_run("stable")
    assert better.resume()
    better.progress.best = 90.0
    better.save()
    monkeypatch.setattr(Validation, "figures", lambda *_: {"toys W4/A4": 20.0})
    branch(stable, tmp_path / "branch", 2)
    run = decayed(make_run, "branch", folder=tmp_path)
    list(run.run(5))
    assert run.progress.best == 20
    assert load_pretrained(run.folder / "best")


def test_the_rate_reaches_zero_and_the_weights_stand_still(stable, make_run, tmp_path, same):
    branch(stable, tmp_path / "branch", 2)
    run = decayed(make_run, "branch", folder=tmp_path)
    list(run.run(5))
    before = {name: p.detach().clone() for name, p in run.trainer.model.named_parameters()}
    (report,) = run.run(6)
    assert report.learning_rate == 0
    assert same(before, dict(run.trainer.model.named_parameters()))


def test_the_stable_run_goes_on_as_if_nothing_had_branched_off(stable, make_run, tmp_path, same):
    branch(stable, tmp_path / "branch", 2)
    list(decayed(make_run, "branch", folder=tmp_path).run(5))
    resumed, whole = make_run("stable"), make_run("whole")
    resumed.resume()
    list(resumed.run(6))
    list(whole.run(6))
    assert same(*(load_file(run.folder / CHECKPOINT_FILE) for run in (resumed, whole)))


def test_an_interrupted_decay_resumes_to_the_same_bits(stable, make_run, tmp_path, same):
    for name in ("whole", "parts"):
        branch(stable, tmp_path / name, 5)
    list(decayed(make_run, "whole", folder=tmp_path).run(8))
    steps = decayed(make_run, "parts", folder=tmp_path).run(8)
    for _ in range(2):
        next(steps)
    list(decayed(make_run, "parts", folder=tmp_path).run(8))
    assert same(*(load_file(tmp_path / name / CHECKPOINT_FILE) for name in ("whole", "parts")))


def test_hints_fade_on_a_branch(make_run, hinted, images, tmp_path):
    features = open_features(hinted, images["train"], Processes())
    run = make_run("stable", hinted, features=features)
    list(run.run(2))
    branch(run.folder, tmp_path / "branch", 8, hints=0.5)
    run = decayed(make_run, "branch", folder=tmp_path, features=features)
    hints = [[n.hint for n in report.networks if n.hint] for report in run.run(10)]
    assert any(hints[:4])
    assert not any(hints[4:])


def test_decaying_twice_is_refused(stable, tmp_path):
    branch(stable, tmp_path / "branch", 2)
    with pytest.raises(ArgumentError, match=r"decays already\. Branch off the stable run"):
        branch(tmp_path / "branch", tmp_path / "again", 2)
    assert not (tmp_path / "again").exists()


def test_a_run_whose_schedule_falls_to_zero_is_not_branched_off(make_run, tmp_path):
    run = make_run("cosine", schedule=CosineSchedule(steps=4))
    list(run.run(1))
    with pytest.raises(ArgumentError, match="decays already"):
        branch(run.folder, tmp_path / "branch", 2)


def test_an_output_that_holds_a_run_is_refused_and_kept(stable, make_run, tmp_path, contents):
    other = make_run("other")
    list(other.run(1))
    before = contents(tmp_path)
    for output in (other.folder, stable):
        with pytest.raises(ArgumentError, match=r"holds a run\. Choose another"):
            branch(stable, output, 2)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"steps": 2, "hints": 2.0}, {"steps": 2, "hints": -1}]
)
def test_a_decay_that_cannot_be_meant_is_refused(stable, tmp_path, wrong):
    with pytest.raises(ArgumentError, match="are no decay"):
        branch(stable, tmp_path / "branch", **wrong)
    assert not (tmp_path / "branch").exists()


def test_where_there_is_no_run_nothing_branches_off(stable, tmp_path):
    with pytest.raises(ArgumentError, match="cannot be read"):
        branch(tmp_path / "nothing", tmp_path / "branch", 2)
    (stable / CHECKPOINT_FILE).unlink()
    with pytest.raises(ArgumentError, match="no state to branch off"):
        branch(stable, tmp_path / "branch", 2)
    assert not (tmp_path / "branch").exists()


def test_a_damaged_state_is_not_branched_off(stable, tmp_path):
    path = stable / CHECKPOINT_FILE
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="damaged"):
        branch(stable, tmp_path / "branch", 2)
    assert not (tmp_path / "branch").exists()
