"""Time of a prediction for torchvision's classifiers, part by part, beside two floors.

    python benchmarks/prediction_latency.py --json benchmarks/results/prediction_latency.json
    python benchmarks/prediction_latency.py resnet18 vgg16_bn --repeats 5

Every model has a process of its own with one thread. Times are medians in milliseconds: tracing,
the hypernetwork, the rest (copy of the model, copy of the parameters, conversion), and all of
`predict_quantized_params`. The floors are one copy of all parameters and one forward pass of the
float model on a 224 × 224 image. Memory is what the process had at its peak beyond what it had
after loading the model, in megabytes. The last columns account for the parameters.

Two smaller tables follow: how the time grows with the number of nodes, for chains of 3 × 3
convolutions of 16 channels with batch norm and ReLU, and what importing the package adds to
`import torch`.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import common
import torch
import torchvision
from common import median_ms
from torch import nn

from ghnqat_sdk import load_pretrained, predict_quantized_params, prediction_report, trace

MODELS = (
    "resnet18",
    "resnet50",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "densenet121",
    "regnet_x_400mf",
    "shufflenet_v2_x1_0",
    "googlenet",
    "inception_v3",
    "vgg16_bn",
    "efficientnet_b0",
    "convnext_tiny",
    "vit_b_16",
)
SIDES = {"inception_v3": 299}
CHAINS = ("500", "1000", "2000")
IMPORTS = ("import ghnqat_sdk", "from ghnqat_sdk import predict_quantized_params")
PARTS = ("trace", "hypernetwork", "rest", "total")
COLUMNS = (*PARTS, "copy floor", "forward floor", "MB", "parameters", "predicted", "kept")


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def chain(nodes: int) -> nn.Sequential:
    """About so many nodes, which are input, output and pooled head beside the blocks."""
    blocks = [
        layer
        for _ in range((nodes - 6) // 3)
        for layer in (nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    ]
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10, bias=False)
    return nn.Sequential(nn.Conv2d(3, 16, 3, bias=False), *blocks, *head)


@torch.no_grad()
def measure(name: str, repeats: int) -> dict[str, float]:
    torch.set_num_threads(1)
    hypernetwork = load_pretrained()
    model = (
        chain(int(name))
        if name.isdigit()
        else torchvision.models.get_model(name, weights=None, num_classes=10)
    )
    model.eval()
    side = 32 if name.isdigit() else SIDES.get(name, 224)
    forward = median_ms(lambda: model(torch.zeros(1, 3, side, side)), 3)
    before = peak_mb()
    qmodel = predict_quantized_params(model, hypernetwork=hypernetwork)  # imports and warms up
    report, memory = prediction_report(qmodel), peak_mb() - before
    del qmodel
    graph = trace(model).with_bits((4, 4))
    row = {
        "trace": median_ms(lambda: trace(model), repeats),
        "hypernetwork": median_ms(lambda: hypernetwork([graph]), repeats),
        "total": median_ms(
            lambda: predict_quantized_params(model, hypernetwork=hypernetwork), repeats
        ),
        "copy floor": median_ms(lambda: [p.clone() for p in model.parameters()], repeats),
        "forward floor": forward,
        "MB": memory,
        "nodes": len(graph),
        "parameters": len(list(model.parameters())),
        "predicted": len(report.predicted),
        "kept": len(report.kept),
    }
    return row | {"rest": row["total"] - row["trace"] - row["hypernetwork"]}


def import_ms(statement: str, repeats: int) -> float:
    """What `statement` takes after `import torch`, in a fresh process."""
    timed = f"t = time.perf_counter(); {statement}; print(1e3 * (time.perf_counter() - t))"
    code = f"import time, torch; {timed}"
    run = [sys.executable, "-c", code]
    return statistics.median(
        float(subprocess.run(run, capture_output=True, text=True, check=True).stdout)
        for _ in range(repeats)
    )


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument(
        "models", nargs="*", default=MODELS, help="names of torchvision classifiers"
    )
    parser.add_argument("--repeats", type=int, default=20)
    common.add_json(parser)
    options = parser.parse_args()

    print(common.head([f"one thread, median of {options.repeats}, ms", *COLUMNS]))
    figures: dict[str, dict[str, float]] = {}
    for name in (*options.models, *CHAINS):
        if name == CHAINS[0]:
            print("\n" + common.head(["nodes", *PARTS, "of the smallest", "MB"]))
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            figures[name] = row = process.submit(measure, name, options.repeats).result()
        if name in CHAINS:
            times = [f"{row[part]:.0f}" for part in ("nodes", *PARTS)]
            growth = row["total"] / figures[CHAINS[0]]["total"]
            print(common.row([*times, f"{growth:.1f}", f"{row['MB']:.0f}"]), flush=True)
        else:
            cells = [f"{row[column]:.0f}" for column in COLUMNS]
            print(common.row([name, *cells]), flush=True)
    print("\n" + common.head(["after `import torch`", "ms"]))
    figures["import"] = {
        statement: import_ms(statement, min(options.repeats, 7)) for statement in IMPORTS
    }
    for statement, time_ms in figures["import"].items():
        print(common.row([f"`{statement}`", f"{time_ms:.0f}"]))
    if options.json:
        common.write_json(options.json, figures)


if __name__ == "__main__":
    main()
