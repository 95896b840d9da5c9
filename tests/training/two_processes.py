"""Program: two processes train what is in each folder of a folder, and each keeps its own weights.

python two_processes.py DATA FOLDER, where FOLDER/*/start.json are configs and FOLDER/*/steps how
far to go. torchrun would start the same, and import torch once more for each process.
"""

from __future__ import annotations

import json
import math
import os
import socket
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.multiprocessing import start_processes

from ghnqat_sdk.data import load_images
from ghnqat_sdk.training import losses as losses_module
from ghnqat_sdk.training.config import load_config
from ghnqat_sdk.training.distributed import Processes
from ghnqat_sdk.training.run import Run


def main(data: str, folder: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_processes(work, (port, data, folder), nprocs=2, start_method="fork")


def work(rank: int, port: int, data: str, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
    processes = Processes.from_environment()
    assert processes == Processes(rank, 2)
    for one in sorted(Path(folder).iterdir()):
        train(one, processes, data)
    processes.leave()


def train(folder: Path, processes: Processes, data: str) -> None:
    images = [load_images(data, split) for split in ("train", "val")]
    run = Run(load_config(folder / "start.json"), folder / "run", *images, processes=processes)
    run.resume()
    if folder.name == "apart":  # as if it had rounded otherwise
        run.trainer.model.decoder.dense.bias.data += 1e-3 * processes.rank
    real = losses_module.network_loss
    if folder.name == "broken" and processes.rank:
        losses_module.network_loss = broken_loss
    reports = list(run.run(int((folder / "steps").read_text())))
    losses_module.network_loss = real
    drawn = [[(*n.draw.architecture.key, *n.draw.bits) for n in r.networks] for r in reports]
    facts = {"drawn": drawn, "norms": [r.gradient_norm for r in reports], **vars(run.progress)}
    (folder / f"{processes.rank}.json").write_text(json.dumps(facts))
    save_file(run.trainer.model.state_dict(), folder / f"{processes.rank}.safetensors")


def broken_loss(*arguments, **options) -> losses_module.NetworkLoss:
    return losses_module.NetworkLoss(math.nan, None, 0.0, {"any": torch.tensor(math.nan)}, [])


if __name__ == "__main__":
    main(*sys.argv[1:])
