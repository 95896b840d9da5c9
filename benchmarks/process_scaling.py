"""Networks per second of training with one process and with several, of one thread each.

    python benchmarks/process_scaling.py --data data/cifar10 --processes 1 2

Each row is from two short runs of the console script under torchrun, with the recipe of the
weights that ship but for its hints and its float phase, and four networks in each process's step,
of 60 that recur. The first steps build and trace networks, so the rate is that of the second half
of the longer run. Every process count trains from the same seed; with N processes a step draws N
times as many networks and deals them out by cost.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import common

META_BATCH = 4


def seconds(data: str, processes: int, steps: int, port: int, folder: Path) -> float:
    """Training time of a run of so many steps."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    launch += ["--master-port", str(port), "-m", "ghnqat_sdk.cli.train", "run", "--data", data]
    fields = {
        "hints": "null",
        "bits.float_until": 0,
        "validation.networks": 1,
        "validation.images": 2,
    }
    fields |= {"sampling.meta_batch": META_BATCH, "sampling.window": 60, "sampling.uses": 1e9}
    options = [word for name, value in fields.items() for word in ("--set", f"{name}={value}")]
    command = [
        *launch,
        "--output",
        str(folder),
        "--recipe",
        "all-bits",
        "--steps",
        str(steps),
        "--json",
        *options,
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return float(json.loads(done.stdout)["seconds"])


def main() -> None:
    parser = common.parser(__doc__)
    common.add_data(parser)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()

    print(common.head(["processes", "networks/s", "of the first row"], texts=0))
    first = None
    with tempfile.TemporaryDirectory() as folder:
        for index, processes in enumerate(options.processes):
            times = [
                seconds(
                    options.data,
                    processes,
                    steps,
                    29600 + 2 * index + half,
                    Path(folder) / f"{processes}-{steps}",
                )
                for half, steps in enumerate((options.steps, 2 * options.steps))
            ]
            rate = META_BATCH * processes * options.steps / (times[1] - times[0])
            first = first or rate
            print(common.row([processes, f"{rate:.2f}", f"{rate / first:.2f}"]), flush=True)


if __name__ == "__main__":
    main()
