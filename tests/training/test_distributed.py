import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ghnqat_sdk.data import load_images
from ghnqat_sdk.hypernetwork.pretrained import load_pretrained
from ghnqat_sdk.training.checkpoint import CHECKPOINT_FILE, load_training_state
from ghnqat_sdk.training.config import RunConfig, load_config
from ghnqat_sdk.training.distributed import Processes
from ghnqat_sdk.training.gradients import FlatGradients
from ghnqat_sdk.training.optimizers import SoapConfig
from ghnqat_sdk.training.run import LAST_FOLDER, LOG_FILE, RUN_FILE, Run
from ghnqat_sdk.training.validation import Validation

HERE = Path(__file__).parent
DATA = HERE.parent / "data" / "cifar10"


def alone(config: RunConfig, folder: Path) -> Run:
    run = Run(config, folder, load_images(DATA, "train"), load_images(DATA, "val"))
    run.resume()
    return run


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory) -> Path:
    """Folders in which two processes have trained for three steps, or gone on to five."""
    folder = tmp_path_factory.mktemp("two")
    soap = tiny.model_copy(update={"optimizer": SoapConfig()})
    configs = {"adamw": tiny, "apart": soap, "broken": tiny, "resumed": tiny}
    for name, config in configs.items():
        (folder / name).mkdir()
        (folder / name / "start.json").write_text(config.model_dump_json())
        (folder / name / "steps").write_text("5" if name == "resumed" else "3")
    list(alone(tiny, folder / "resumed" / "run").run(2))
    program = [sys.executable, str(HERE / "two_processes.py"), str(DATA), str(folder)]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def weights(folder: Path) -> list[dict[str, Tensor]]:
    return [load_file(folder / f"{rank}.safetensors") for rank in range(2)]


def facts(folder: Path) -> list[dict]:
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("name", ["adamw", "broken", "resumed"])
def test_two_processes_have_the_same_weights_to_the_last_bit(trained, same, name):
    assert same(*weights(trained / name))
    norms = [of_rank["norms"] for of_rank in facts(trained / name)]
    assert norms[0] == norms[1]


def test_an_optimizer_that_may_round_differently_keeps_processes_together(trained, same):
    assert same(*weights(trained / "apart"))


def test_two_processes_learn_from_other_networks_at_the_same_bits(trained):
    first, second = (of_rank["drawn"] for of_rank in facts(trained / "adamw"))
    assert first != second
    bits = [[[network[3:] for network in step] for step in drawn] for drawn in (first, second)]
    assert bits[0] == bits[1]


def test_two_processes_learn_something_else_than_one(trained, tiny, same, tmp_path):
    list(alone(tiny, tmp_path / "run").run(3))
    one, two = (
        load_training_state(path)[0] for path in (tmp_path / "run", trained / "adamw" / "run")
    )
    assert one.keys() == two.keys()
    assert not same(one, two)


def test_one_state_is_saved_for_all_and_counts_all(trained):
    for name, step in (("adamw", 3), ("resumed", 5)):
        state, saved = load_training_state(trained / name / "run")
        assert saved["step"] == step
        model = {n.removeprefix("model."): t for n, t in state.items() if n.startswith("model.")}
        ours = weights(trained / name)[0]
        assert all(torch.equal(model[n], ours[n]) for n in ours)
    assert load_training_state(trained / "adamw" / "run")[1]["networks"] == 12
    assert load_training_state(trained / "resumed" / "run")[1]["networks"] == 4 + 12


def test_what_two_processes_validate_together_is_logged_once(trained):
    run = trained / "adamw" / "run"
    (entry,) = [json.loads(line) for line in (run / LOG_FILE).read_text().splitlines()]
    assert entry["step"] == 3
    validation = Validation(load_config(run / RUN_FILE), load_images(DATA, "val"))
    assert (
        validation.figures(load_pretrained(run / LAST_FOLDER), Processes()) == entry["validation"]
    )


def test_a_process_with_nothing_finite_follows_the_other(trained, same):
    first, second = facts(trained / "broken")
    assert (first["skipped_networks"], second["skipped_networks"]) == (6, 6)
    assert not same(weights(trained / "broken")[0], weights(trained / "adamw")[0])


def test_one_process_goes_on_where_two_stood(trained, tiny):
    run = alone(tiny, trained / "resumed" / "run")
    assert run.progress.step == 5
    assert [report.step for report in run.run(7)] == [6, 7]
    assert load_training_state(trained / "resumed" / "run")[1]["step"] == 7
    assert (trained / "resumed" / "run" / CHECKPOINT_FILE).exists()


# ---- gradients as one buffer


def test_the_gradients_are_parts_of_one_buffer():
    linear = nn.Linear(3, 2)
    gradients = FlatGradients(list(linear.parameters()))
    linear(torch.ones(1, 3)).sum().backward()
    assert gradients.flat.tolist() == [1.0] * 8
    linear.weight.grad.fill_(5.0)
    assert gradients.flat.tolist() == [5.0] * 6 + [1.0] * 2
    gradients.zero()
    assert linear.weight.grad.tolist() == [[0.0] * 3] * 2


def test_a_parameter_that_was_not_used_has_a_gradient_of_zeros():
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    gradients = FlatGradients([unused, used])
    (3 * used).sum().backward()
    assert gradients.flat.tolist() == [0, 0, 0, 3, 3]
    assert unused.grad.tolist() == [0, 0, 0]


@pytest.mark.parametrize(("limit", "after"), [(10.0, 5.0), (1.0, 1.0)])
def test_all_gradients_are_clipped_together(limit, after):
    parameters = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    gradients = FlatGradients(parameters)
    for parameter, value in zip(parameters, (3.0, 4.0), strict=True):
        parameter.grad.fill_(value)
    assert gradients.clip(limit) == pytest.approx(5.0)
    assert gradients.flat.norm().item() == pytest.approx(after)
    assert (parameters[1].grad / parameters[0].grad).item() == pytest.approx(4 / 3)


def test_gradients_are_averaged_over_processes(monkeypatch):
    """Another process has gradients of 3 everywhere."""
    parameter = nn.Parameter(torch.ones(2))
    gradients = FlatGradients([parameter])
    parameter.grad.fill_(1.0)
    monkeypatch.setattr("torch.distributed.all_reduce", lambda total: total.add_(3.0))
    gradients.mean_over(Processes(0, 2))
    assert parameter.grad.tolist() == [2.0, 2.0]


def test_progress_counts_what_all_processes_did(tiny, tmp_path):
    class Twins(Processes):
        def total(self, values: Tensor) -> Tensor:
            return 2 * values

    one, two = (alone(tiny, tmp_path / name) for name in ("one", "two"))
    two.trainer.processes = Twins()
    for run in (one, two):
        list(run.run(2))
    for count in ("networks", "images", "mac_images"):
        assert getattr(two.progress, count) == 2 * getattr(one.progress, count)
    assert two.progress.step == 2


def test_a_process_alone_waits_for_nobody(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    processes = Processes.from_environment()
    assert processes == Processes(rank=0, size=1)
    parameter = nn.Parameter(torch.ones(2))
    processes.wait()
    processes.take_from_first([parameter])
    FlatGradients([parameter]).mean_over(processes)
    processes.leave()
