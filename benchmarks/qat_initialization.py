"""Which start of quantization-aware training is best: He's, PyTorch's, predicted, float training.

    python benchmarks/qat_initialization.py --data data/cifar10 --steps 100
    python benchmarks/qat_initialization.py --data data/cifar10 --steps 400 --minutes 60
    python benchmarks/qat_initialization.py --data data/cifar10 --starts noise flat head steps
    python benchmarks/qat_initialization.py --data data/cifar10 --starts predicted \\
        --nets families/test/7 --rate 0.003
    python benchmarks/qat_initialization.py --data data/cifar10 --minutes 0

Each task is one network at one bit-width from one start. Networks are unseen ones of at most 12 M
multiply-accumulates, half of them torchvision's at 32 × 32 pixels. All train alike: SGD with
momentum 0.9 and weight decay 5e-4 at a constant learning rate, batches of 128 flipped and cropped
training images, gradients clipped at 5. The learning rate of each start and bit-width is the best
of four or five on validation images after 100 steps of three validation networks, or after 400
for longer runs; those are trained first. A model is measured after it was calibrated on 512
training images. Lines go to benchmarks/results/qat_initialization.jsonl, which stays out of git,
as they come, and the curves to qat_initialization.json beside it; the second call stops taking
new work after an hour, the third tries changes to the predicted start on the validation networks,
the fourth trains one network at another learning rate, and the last only writes the table
in docs/results.md anew, with --shown for the measurements of earlier weights.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from hashlib import sha256

import common
from common import measure_all
from page_parts import write_part
from qat_start_curves import Curves
from qat_start_page import changes_table, page, table
from qat_start_tasks import BITS, CHANGES, LINES, MARKS, STARTS, Task, plan, read, tuning_networks
from qat_start_training import measure

from ghnqat_sdk.hypernetwork.pretrained import WEIGHTS_FILE

PART = "the start of QAT"
SUMMARY = common.RESULTS / "qat_initialization.json"


def arguments() -> argparse.Namespace:
    parser = common.parser(__doc__)
    common.add_data(parser)
    common.add_measuring(parser)
    parser.add_argument("--steps", type=int, default=100, choices=MARKS[1:])
    parser.add_argument("--starts", nargs="+", choices=[*STARTS, *CHANGES], default=list(STARTS))
    parser.add_argument(
        "--rate", type=float, help="learning rate, instead of the one tuned on validation networks"
    )
    parser.add_argument(
        "--nets", nargs="+", metavar="NET", help="only these, such as deepnets/id/20"
    )
    parser.add_argument("--shown", metavar="SHA", help="weights to show; those that ship if absent")
    return parser.parse_args()


def missing(options: argparse.Namespace, weights: str) -> list[Task]:
    """What has not been measured yet, as far as it can be planned."""
    known = read()
    planned = plan(weights, options.steps, options.starts, known, options.rate)
    wanted = {*(options.nets or ()), *tuning_networks()}
    return [
        task for task in planned if task not in known and (not options.nets or task.net in wanted)
    ]


def main() -> None:
    options = arguments()
    weights = sha256((common.SHIPPED / WEIGHTS_FILE).read_bytes()).hexdigest()
    deadline = time.monotonic() + 60 * options.minutes
    each = partial(measure, data=options.data)
    # Twice: the networks can only be planned when the learning rates are known.
    for _ in range(2):
        tasks = missing(options, weights)
        minutes = (deadline - time.monotonic()) / 60
        measured = measure_all(tasks, each, LINES, options.processes, minutes)
        for count, line in enumerate(measured, 1):
            what = f"{line['net']} {line['bits']} {line['start']} at {line['rate']}"
            print(f"{count} of {len(tasks)}: {what}, test {line['test']}", flush=True)
    lines = list(read().values())  # each task once
    curves = Curves(lines, options.shown or weights)
    changes = [line["weights"] for line in lines if line["start"] in CHANGES]
    changed = Curves(lines, changes[-1] if changes else curves.weights)
    common.write_json(SUMMARY, curves.as_dict())
    write_part(PART, page(curves, weights))
    print("\nValidation networks:\n\n" + changes_table(changed))
    print("\n\n".join(table(curves, bits) for bits in BITS))


if __name__ == "__main__":
    main()
