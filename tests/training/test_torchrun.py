"""What torchrun does: two nodes, simulated on one machine, and a worker that is killed."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from ghnqat_sdk.training.checkpoint import load_training_state
from ghnqat_sdk.training.run import LOG_FILE
from ghnqat_sdk.training.sampler import CustomShare

HERE = Path(__file__).parent
STEPS = 8


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start_node(port: int, *training: str) -> subprocess.Popen:
    place = ["--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "3"]
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}"]
    program = [sys.executable, "-m", "torch.distributed.run", *place, *meeting]
    path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [*program, "-m", "ghnqat_sdk.cli.train", "run", *training],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_two_nodes_go_on_from_the_last_checkpoint_after_a_worker_was_killed(
    tiny, data, tmp_path, same
):
    """They end where two processes end that nothing happened to."""
    grave = tmp_path / "grave"
    mortal = CustomShare(factory="mortal.MortalToys", settings={"life": 10, "grave": str(grave)})
    config = tmp_path / "config.json"
    config.write_text(tiny.model_copy(update={"networks": (mortal,)}).model_dump_json())
    run = tmp_path / "run"
    options = ["--config", str(config), "--data", str(data), "--output", str(run)]
    port = free_port()
    nodes = [start_node(port, *options, "--steps", str(STEPS)) for _ in range(2)]
    told = [node.communicate(timeout=300)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], told
    assert grave.exists()

    whole = tmp_path / "whole" / "alive"
    whole.mkdir(parents=True)
    (whole / "start.json").write_text(tiny.model_dump_json())
    (whole / "steps").write_text(str(STEPS))
    program = [sys.executable, str(HERE / "two_processes.py"), str(data), str(whole.parent)]
    subprocess.run(program, check=True, capture_output=True)
    killed, alive = load_training_state(run), load_training_state(whole / "run")
    assert same(killed[0], alive[0])
    assert killed[1]["step"] == STEPS
    lines = (run / LOG_FILE).read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [4, 8]
