"""Time of one QAT step beside one in float, on one thread: prints the table of docs/results.md.

python benchmarks/qat_step.py
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Any

import common
import torch
from torch import nn

from ghnqat_sdk import calibrate, from_float
from ghnqat_sdk.qat import learn_steps

sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))
from models import ResNet20, SmallMobileNetV2


def variants(make: Any, images: torch.Tensor) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    model = make()
    dynamic = from_float(model, (4, 4))
    fixed, learned = from_float(model, (4, 4)), from_float(model, (4, 4))
    for qmodel in (fixed, learned):
        calibrate(qmodel, [images], progress=False)
    learn_steps(learned)
    return {
        "float": model,
        "W4/A4, ranges of the batch": dynamic,
        "W4/A4, fixed": fixed,
        "W4/A4, learned": learned,
    }


def step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor, labels: torch.Tensor
) -> float:
    started = time.perf_counter()
    loss = nn.functional.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return time.perf_counter() - started


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(options.batch, 3, 32, 32, generator=generator).to(
        memory_format=torch.channels_last
    )
    labels = torch.randint(10, (options.batch,), generator=generator)

    columns = [f"network, batch {options.batch}", "training", "step, ms", "of float"]
    print(common.head(columns, texts=2))
    for make in (ResNet20, SmallMobileNetV2):
        models = {
            name: m.train().to(memory_format=torch.channels_last)
            for name, m in variants(make, images).items()
        }  # type: ignore[call-overload]
        optimizers = {
            name: torch.optim.SGD(m.parameters(), 0.01, momentum=0.9) for name, m in models.items()
        }
        times: dict[str, list[float]] = {name: [] for name in models}
        for repeat in range(options.repeats + 1):
            for name, model in models.items():  # in turns, so that all meet the same noise
                taken = step(model, optimizers[name], images, labels)
                if repeat:
                    times[name].append(taken)
        for name, taken_all in times.items():
            ratio = statistics.median(a / b for a, b in zip(taken_all, times["float"], strict=True))
            milliseconds = f"{1000 * statistics.median(taken_all):.0f}"
            print(common.row([make.__name__, name, milliseconds, f"{ratio:.2f}"]), flush=True)


if __name__ == "__main__":
    main()
