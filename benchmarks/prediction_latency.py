"""Time of a prediction for torchvision's classifiers, part by part, beside two floors measured in the same run.

    python benchmarks/prediction_latency.py --json benchmarks/results/prediction_latency.json
    python benchmarks/prediction_latency.py resnet18 vgg16_bn --repeats 5

Every model has a process of its own with one thread. Times are medians in milliseconds: tracing, the hypernetwork, the
rest (copy of the model, copy of the parameters, conversion), and all of `predict_quantized_params`. The floors are one
copy of all parameters and one forward pass of the float model on a 224 × 224 image. Memory is what the process had at
its peak beyond what it had after loading the model, in megabytes. The last columns account for the parameters.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torchvision

from ghnqat_sdk import load_pretrained, predict_quantized_params, prediction_report, trace

MODELS = (
    "resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_small", "densenet121", "regnet_x_400mf", "shufflenet_v2_x1_0",
    "googlenet", "inception_v3", "vgg16_bn", "efficientnet_b0", "convnext_tiny", "vit_b_16",
)  # fmt: skip
COLUMNS = (
    "trace", "hypernetwork", "rest", "total", "copy floor", "forward floor", "MB", "parameters", "predicted", "kept",
)  # fmt: skip


def median_ms(call: Callable[[], Any], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times)


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@torch.no_grad()
def measure(name: str, repeats: int) -> dict[str, float]:
    torch.set_num_threads(1)
    hypernetwork = load_pretrained()
    model = torchvision.models.get_model(name, weights=None, num_classes=10).eval()
    side = 299 if name == "inception_v3" else 224
    forward = median_ms(lambda: model(torch.zeros(1, 3, side, side)), 3)
    before = peak_mb()
    qmodel = predict_quantized_params(model, hypernetwork=hypernetwork)  # imports and warms up
    report, memory = prediction_report(qmodel), peak_mb() - before
    del qmodel
    graph = trace(model).with_bits((4, 4))
    row = {
        "trace": median_ms(lambda: trace(model), repeats),
        "hypernetwork": median_ms(lambda: hypernetwork([graph]), repeats),
        "total": median_ms(lambda: predict_quantized_params(model, hypernetwork=hypernetwork), repeats),
        "copy floor": median_ms(lambda: [p.clone() for p in model.parameters()], repeats),
        "forward floor": forward,
        "MB": memory,
        "parameters": len(list(model.parameters())),
        "predicted": len(report.predicted),
        "kept": len(report.kept),
    }
    return row | {"rest": row["total"] - row["trace"] - row["hypernetwork"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS, help="names of torchvision classifiers")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    options = parser.parse_args()

    print(f"| one thread, median of {options.repeats}, ms | {' | '.join(COLUMNS)} |")
    print("| --- |" + " ---: |" * len(COLUMNS))
    figures = {}
    for name in options.models:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            figures[name] = process.submit(measure, name, options.repeats).result()
        print(f"| {name} | {' | '.join(f'{figures[name][column]:.0f}' for column in COLUMNS)} |", flush=True)
    if options.json:
        options.json.parent.mkdir(exist_ok=True)
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
