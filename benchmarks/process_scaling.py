"""Networks per second of training with one process and with several on this machine, one thread each.

    python benchmarks/process_scaling.py --data data/cifar10 --processes 1 2

Each row is a short run of the console script under torchrun, with the recipe of the weights that ship and four networks
in each process's step. The first steps build and trace networks, so the rate is that of the second half of the run.
Every process count trains from the same seed; with N processes a step draws N times as many networks and deals them out
by cost.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

META_BATCH = 4


def seconds(data: str, processes: int, steps: int, port: int, folder: Path) -> float:
    """Training time of a run of so many steps."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    launch += ["--master-port", str(port), "-m", "ghnqat_sdk.training.cli", "run", "--data", data]
    fields = {"steps": steps, "meta_batch": META_BATCH, "pool": 60, "simple_phase": 0, "float_phase": 0}
    fields |= {"validate_every": 10**6, "checkpoint_every": 10**6, "validation_graphs": 1, "validation_images": 2}
    options = [word for name, value in fields.items() for word in ("--set", f"{name}={value}")]
    command = [*launch, "--output", str(folder), "--recipe", "all-bits", "--initial", "default", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment, capture_output=True)
    return float(json.loads((folder / "log.jsonl").read_text().splitlines()[-1])["seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="image folder, or torchvision's CIFAR-10")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()

    print("| processes | networks/s | of the first row |\n| ---: | ---: | ---: |")
    first = None
    with tempfile.TemporaryDirectory() as folder:
        for index, processes in enumerate(options.processes):
            times = [
                seconds(options.data, processes, steps, 29600 + 2 * index + half, Path(folder) / f"{processes}-{steps}")
                for half, steps in enumerate((options.steps, 2 * options.steps))
            ]
            rate = META_BATCH * processes * options.steps / (times[1] - times[0])
            first = first or rate
            print(f"| {processes} | {rate:.2f} | {rate / first:.2f} |", flush=True)


if __name__ == "__main__":
    main()
