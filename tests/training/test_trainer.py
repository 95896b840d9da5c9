import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from ghnqat_sdk.errors import ArgumentError, CheckpointError
from ghnqat_sdk.graph.trace import trace
from ghnqat_sdk.hypernetwork.decoder import DecoderConfig
from ghnqat_sdk.hypernetwork.encoders import TransformerConfig
from ghnqat_sdk.hypernetwork.ghn import HypernetworkConfig
from ghnqat_sdk.hypernetwork.pretrained import load_pretrained, save_pretrained
from ghnqat_sdk.training import trainer as trainer_module
from ghnqat_sdk.training.checkpoint import CHECKPOINT_FILE, load_training_state
from ghnqat_sdk.training.config import RECIPES, BitsShare, RunConfig, make_recipe
from ghnqat_sdk.training.datasets import load_images, normalise_images
from ghnqat_sdk.training.distributed import Processes
from ghnqat_sdk.training.objective import NetworkLoss
from ghnqat_sdk.training.trainer import Trainer

TINY = RunConfig(
    hypernetwork=HypernetworkConfig(
        encoder=TransformerConfig(width=16, layers=1, heads=2), decoder=DecoderConfig(hidden=16, tile=16, kernel=3)
    ),
    steps=6,
    meta_batch=2,
    image_batch=8,
    max_macs=1.5e6,
    pool=200,
    bits=(BitsShare(bits=(4, 4)), BitsShare(bits=(2, 2)), BitsShare(bits=(32, 32))),
    float_phase=0.3,
    warmup_steps=2,
    checkpoint_every=2,
    validate_every=4,
    validation_graphs=1,
    validation_images=20,
)


EACH_PROCESS_KEEPS_ITS_WEIGHTS = """
import sys
from pathlib import Path

from safetensors.torch import save_file

from ghnqat_sdk.training.config import RunConfig
from ghnqat_sdk.training.datasets import load_images
from ghnqat_sdk.training.distributed import Processes
from ghnqat_sdk.training.trainer import Trainer

data, folder = sys.argv[1], Path(sys.argv[2])
config = RunConfig.model_validate_json((folder / "config.json").read_text())
processes = Processes.from_environment()
images = [load_images(data, split) for split in ("train", "val")]
trainer = Trainer(config, folder / "run", *images, processes=processes)
trainer.model.decoder.dense.bias.data += 1e-3 * processes.rank
list(trainer.run())
save_file(trainer.model.state_dict(), folder / f"{processes.rank}.safetensors")
processes.leave()
"""


@pytest.fixture
def make(data, tmp_path):
    train, validation = load_images(data, "train"), load_images(data, "val")

    def build(name: str = "run", config: RunConfig = TINY, **options) -> Trainer:
        return Trainer(config, tmp_path / name, train, validation, **options)

    return build


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return load_file(trainer.folder / CHECKPOINT_FILE)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_leaves_config_state_log_and_loadable_weights(make):
    trainer = make()
    reports = list(trainer.run())
    assert [report.loss > 0 for report in reports] == [True] * 6
    assert RunConfig.model_validate_json((trainer.folder / "run.json").read_text()) == TINY
    log = [json.loads(line) for line in (trainer.folder / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == [4, 6]
    assert set(log[0]["validation"]) == {"W4/A4", "W2/A2", "W32/A32"}
    for folder in ("best", "last"):
        assert load_pretrained(trainer.folder / folder).config == TINY.hypernetwork


def test_the_averaged_weights_of_every_checkpoint_can_be_loaded(make):
    trainer = make()
    steps = trainer.run()
    for _ in range(3):  # one step beyond the checkpoint of step 2, before the first validation
        next(steps)
    saved = {f"average.module.{name}": p for name, p in load_pretrained(trainer.folder / "last").named_parameters()}
    assert saved
    assert same(saved, {name: tensor for name, tensor in weights(trainer).items() if name in saved})


def test_training_changes_weights_and_average_apart(make):
    trainer = make()
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    list(trainer.run())
    changed = [name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])]
    assert len(changed) > len(before) // 2
    assert not same(dict(trainer.model.named_parameters()), dict(trainer.averaged().named_parameters()))


@pytest.mark.parametrize("optimizer", ["adamw", "soap"])
def test_an_interrupted_run_resumes_to_the_same_bits(make, optimizer):
    make = partial(make, config=TINY.model_copy(update={"optimizer": optimizer}))
    whole = make("whole")
    list(whole.run())
    interrupted = make("parts")
    steps = interrupted.run()
    for _ in range(3):  # one step beyond the checkpoint of step 2
        next(steps)
    resumed = make("parts")
    assert resumed.resume()
    assert resumed.progress.step == 2
    list(resumed.run())
    assert same(weights(whole), weights(resumed))


def test_a_killed_process_resumes_to_the_same_bits(data, tmp_path):
    """kill -9 in the middle of a run of the console script, then --resume."""
    config = tmp_path / "config.json"
    config.write_text(
        TINY.model_copy(update={"steps": 12, "checkpoint_every": 1, "validate_every": 12}).model_dump_json()
    )

    def command(name: str, *more: str) -> list[str]:
        run = [sys.executable, "-m", "ghnqat_sdk.training.cli", "run", "--data", str(data), "--config", str(config)]
        return [*run, "--output", str(tmp_path / name), *more]

    whole = subprocess.Popen(command("whole"))
    killed = subprocess.Popen(command("killed"))
    deadline = time.monotonic() + 300
    while not (tmp_path / "killed" / CHECKPOINT_FILE).exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    _, facts = load_training_state(tmp_path / "killed")
    assert 1 <= facts["step"] < 12
    subprocess.run(command("killed", "--resume"), check=True)
    assert whole.wait() == 0
    assert same(load_file(tmp_path / "whole" / CHECKPOINT_FILE), load_file(tmp_path / "killed" / CHECKPOINT_FILE))


def test_two_processes_train_on_different_architectures_and_agree(data, tmp_path):
    """torchrun with two gloo processes: both end with the same averaged weights, not those of one process."""
    config = tmp_path / "config.json"
    config.write_text(TINY.model_copy(update={"steps": 2, "validate_every": 2}).model_dump_json())
    run = ["-m", "ghnqat_sdk.training.cli", "run", "--data", str(data), "--config", str(config)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29733"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*torchrun, *run, "--output", str(tmp_path / "two")], check=True, env=environment, capture_output=True
    )
    subprocess.run([sys.executable, *run, "--output", str(tmp_path / "one")], check=True)
    two, facts = load_training_state(tmp_path / "two")
    one, _ = load_training_state(tmp_path / "one")
    assert facts["processes"] == 2
    assert not same(one, two)


def test_two_processes_keep_the_same_weights_with_soap(data, tmp_path):
    """One begins as if it had rounded otherwise, as products and decompositions may; each writes its own weights."""
    config = TINY.model_copy(update={"steps": 3, "validate_every": 3, "optimizer": "soap"})
    (tmp_path / "config.json").write_text(config.model_dump_json())
    program = tmp_path / "each.py"
    program.write_text(EACH_PROCESS_KEEPS_ITS_WEIGHTS)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29734"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*torchrun, str(program), str(data), str(tmp_path)], check=True, env=environment)
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    assert same(first, second)


def test_a_folder_with_another_run_is_refused(make):
    list(make().run())
    with pytest.raises(ArgumentError, match="holds another run"):
        make(config=TINY.model_copy(update={"seed": 1})).resume()


def test_a_damaged_state_is_refused(make):
    trainer = make()
    list(trainer.run())
    state = trainer.folder / CHECKPOINT_FILE
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="damaged"):
        make().resume()


def test_nothing_to_resume_is_said(make):
    assert make().resume() is False


def test_networks_with_a_non_finite_loss_are_left_out_and_counted(make, monkeypatch):
    real, calls = trainer_module.network_loss, []

    def sometimes_nan(*args, **options):
        result = real(*args, **options)
        calls.append(result)
        return NetworkLoss(float("nan"), 0.0, result.gradients) if len(calls) % 2 else result

    monkeypatch.setattr(trainer_module, "network_loss", sometimes_nan)
    trainer = make()
    list(trainer.run())
    assert trainer.progress.skipped_networks == 6
    assert trainer.progress.skipped_steps == 0
    assert all(p.isfinite().all() for p in trainer.model.parameters())


def test_a_step_with_nothing_finite_changes_nothing(make, monkeypatch):
    monkeypatch.setattr(trainer_module, "network_loss", lambda *a, **k: NetworkLoss(float("inf"), 0.0, {}))
    trainer = make(config=TINY.model_copy(update={"steps": 1}))
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    list(trainer.run())
    assert trainer.progress.skipped_steps == 1
    assert same(before, dict(trainer.model.named_parameters()))


def test_learning_rate_warms_up_and_falls_to_zero(make):
    rates = [report.learning_rate for report in make().run()]
    assert rates[0] == pytest.approx(TINY.learning_rate / 2)
    assert max(rates) == pytest.approx(TINY.learning_rate)
    assert rates[-1] < 0.2 * TINY.learning_rate


def test_initial_weights_are_taken_over(make, small, tmp_path):
    save_pretrained(small, tmp_path / "start")
    config = TINY.model_copy(update={"hypernetwork": small.config})
    trainer = make(config=config, initial=tmp_path / "start")
    assert same(small.state_dict(), trainer.model.state_dict())
    with pytest.raises(ArgumentError, match="another architecture"):
        make("other", initial=tmp_path / "start")


def test_a_decoder_grows_a_second_layer_without_changing_what_it_predicts(make, small, tmp_path):
    save_pretrained(small, tmp_path / "start")
    decoder = small.config.decoder.model_copy(update={"second": 24})
    deeper = small.config.model_copy(update={"decoder": decoder})
    trainer = make(config=TINY.model_copy(update={"hypernetwork": deeper}), initial=tmp_path / "start")
    graphs = [trace(trainer.space[index].build()).with_bits((4, 4)) for index in range(4)]
    with torch.no_grad():
        torch.testing.assert_close(trainer.model(graphs), small(graphs), rtol=1e-4, atol=1e-5)
    before = trainer.model.decoder.second.weight.clone()
    list(trainer.run())
    assert not torch.equal(before, trainer.model.decoder.second.weight)


def test_soap_without_its_package_is_refused(make, monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(ArgumentError, match=r"ghnqat-sdk\[train\]"):
        make(config=TINY.model_copy(update={"optimizer": "soap"}))


def test_float_phase_comes_first(make):
    reports = list(make().run())
    assert {bits for report in reports[:2] for bits, _, _ in report.networks} == {"W32/A32"}
    assert {bits for report in reports[2:] for bits, _, _ in report.networks} - {"W32/A32"}


def test_simple_architectures_come_first(make):
    trainer = make(config=TINY.model_copy(update={"meta_batch": 40, "simple_phase": 0.5}))
    first, later = ([architecture for architecture, _ in trainer._draw_share(step)] for step in (2, 3))
    assert {architecture.simple for architecture in first} == {True}
    assert {architecture.family for architecture in first}.isdisjoint({"cells", "grouped"})
    assert {architecture.simple for architecture in later} == {True, False}


def test_norms_are_drawn_as_often_as_asked(make):
    pool = {"meta_batch": 1000, "max_macs": 20e6}

    def odds(name, weights):
        drawn = make(name, TINY.model_copy(update={**pool, "norm_weights": weights}))._draw_share(3)
        found = Counter(architecture.norm for architecture, _ in drawn)
        return found["none"] / found["batch"], found["group"] / found["batch"]

    none, group = odds("plain", {})
    more_none, more_group = odds("weighted", {"none": 3.0, "group": 4.0})
    assert more_none / none == pytest.approx(3.0, rel=0.35)
    assert more_group / group == pytest.approx(4.0, rel=0.35)


def test_processes_deal_out_the_networks_of_a_step_by_cost(make):
    config = TINY.model_copy(update={"meta_batch": 8, "max_macs": 20e6})
    drawn = make(config=config.model_copy(update={"meta_batch": 24}))._draw_share(5)
    shares = [make(str(rank), config, processes=Processes(rank, 3))._draw_share(5) for rank in range(3)]
    assert sorted(map(repr, drawn)) == sorted(repr(pair) for share in shares for pair in share)
    assert [len(share) for share in shares] == [8, 8, 8]
    costs = [sum(a.macs + 700_000 * a.depth for a, _ in share) for share in shares]
    assert max(costs) < 1.5 * min(costs)


def test_costly_networks_see_fewer_images_in_few_sizes(make):
    trainer = make(config=TINY.model_copy(update={"image_batch": 64, "batch_macs": 5e8, "max_macs": 40e6}))
    drawn = {trainer._draw_architecture(random.Random(i), 0) for i in range(60)}
    sizes = {architecture.macs: trainer._batch(architecture) for architecture in drawn}
    assert set(sizes.values()) == {8, 16, 32, 48, 64}
    assert all(size * macs <= 5e8 for macs, size in sizes.items() if size > 8)
    assert all(size == 64 for macs, size in sizes.items() if 64 * macs <= 5e8)


@pytest.mark.parametrize("padding", [0, 4])
def test_images_are_shifted_as_far_as_the_padding(make, padding):
    trainer = make(config=TINY.model_copy(update={"padding": padding}))
    images, _ = trainer._draw_images(random.Random(0), 40, 32)
    originals = normalise_images(trainer.train_images.images)
    unshifted = [
        any(torch.equal(image, one) or torch.equal(image.flip(2), one) for one in originals) for image in images
    ]
    assert all(unshifted) if padding == 0 else not all(unshifted)


def test_all_runs_validate_on_the_same_images(make):
    few = TINY.model_copy(update={"validation_images": 9, "validation_graphs": 3})
    first, other = (make(f"{seed}", few.model_copy(update={"seed": seed})) for seed in (0, 1))
    other.average.load_state_dict(first.average.state_dict())
    figures = []
    for trainer in (first, other):
        trainer._start_folder()
        trainer._validate()
        figures.append(json.loads((trainer.folder / "log.jsonl").read_text())["validation"])
    assert figures[0] == figures[1]


def test_noise_training_runs(make):
    list(make(config=TINY.model_copy(update={"noise": True, "steps": 1, "float_phase": 0.0})).run())


def test_tensorboard_log_is_written(make):
    trainer = make(config=TINY.model_copy(update={"steps": 1}), tensorboard=True)
    list(trainer.run())
    assert list((trainer.folder / "tensorboard").glob("events*"))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_a_config_that_survives_json(name):
    recipe = make_recipe(name)
    assert recipe.recipe == name
    assert RunConfig.model_validate_json(recipe.model_dump_json()) == recipe


def test_unknown_recipe_lists_the_known_ones():
    with pytest.raises(ArgumentError, match="all-bits"):
        make_recipe("w1a1")
