"""Two nodes, as torchrun starts them, simulated on one machine; and a worker that is killed."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from torch import Tensor

from ghnqat_sdk.training.checkpoint import load_training_state
from ghnqat_sdk.training.config import RunConfig
from ghnqat_sdk.training.folder import LOG_FILE
from ghnqat_sdk.training.shares import CustomShare

HERE = Path(__file__).parent
DATA = HERE.parent / "data" / "cifar10"
STEPS = 8


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def torchrun(*options: str) -> subprocess.Popen:
    path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *options],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(*started: subprocess.Popen) -> None:
    """Wait for all of them, and kill those that hang."""
    try:
        told = [process.communicate(timeout=240)[0] for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert [process.returncode for process in started] == [0] * len(started), told


def training(config: RunConfig, folder: Path) -> list[str]:
    """The arguments of a run in `folder`."""
    file = folder.with_suffix(".json")
    file.write_text(config.model_dump_json())
    options = ["--config", str(file), "--data", str(DATA), "--output", str(folder)]
    return ["-m", "ghnqat_sdk.cli.train", "run", *options, "--steps", str(STEPS)]


@pytest.fixture(scope="module")
def undisturbed(tiny, tmp_path_factory) -> dict[str, Tensor]:
    """Where two processes end that nothing happens to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "run").mkdir()
    (folder / "run" / "start.json").write_text(tiny.model_dump_json())
    (folder / "run" / "steps").write_text(str(STEPS))
    program = [sys.executable, str(HERE / "two_processes.py"), str(DATA), str(folder)]
    subprocess.run(program, check=True, capture_output=True)
    return load_training_state(folder / "run" / "run")[0]


def test_two_nodes_train_one_run(tiny, tmp_path, same, undisturbed):
    run = tmp_path / "run"
    place = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1"]
    place += ["--master-port", str(free_port())]
    options = training(tiny, run)
    finished(*(torchrun(*place, "--node-rank", str(rank), *options) for rank in range(2)))
    assert same(load_training_state(run)[0], undisturbed)


def test_all_go_on_from_the_last_checkpoint_after_a_worker_was_killed(
    tiny, tmp_path, same, undisturbed
):
    run, grave = tmp_path / "run", tmp_path / "grave"
    mortal = CustomShare(factory="mortal.MortalToys", settings={"life": 10, "grave": str(grave)})
    place = ["--nproc-per-node", "2", "--max-restarts", "3", "--master-port", str(free_port())]
    options = training(tiny.model_copy(update={"networks": (mortal,)}), run)
    finished(torchrun(*place, *options))
    assert grave.exists()
    assert same(load_training_state(run)[0], undisturbed)
    lines = (run / LOG_FILE).read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [4, 8]
