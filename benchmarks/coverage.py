"""What of torchvision's classifiers is predicted: each of them is run and trained for one step.

    python benchmarks/coverage.py --json benchmarks/results/coverage.json
    python benchmarks/coverage.py resnet18 vit_b_16

Each model has ten classes and a process of its own. It is predicted at W4/A4 with the weights
that ship, run in training mode on two random images, trained for one step of SGD, calibrated, and
run in evaluation mode. Images are 128 × 128, or 224 × 224 and 299 × 299 where a model takes no
others. A row says how many parameters were predicted, whether outputs were finite, how many
parameters had a finite gradient, and how long all of it took, in seconds. The largest need 10 GB
of memory.
"""

from __future__ import annotations

import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import common
import torch
import torchvision

from ghnqat_sdk import calibrate, predict_quantized_params, prediction_report

SIDES = {"inception": 299, "vit": 224, "maxvit": 224}
COLUMNS = (
    "parameters",
    "predicted",
    "kept",
    "training finite",
    "evaluation finite",
    "gradients",
    "seconds",
)


def measure(name: str) -> dict[str, Any]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    started = time.perf_counter()
    for initialization in (
        "normal_",
        "trunc_normal_",
        "uniform_",
        "kaiming_normal_",
        "kaiming_uniform_",
    ):
        setattr(
            torch.nn.init, initialization, lambda tensor, *_, **__: tensor
        )  # all is predicted, which is checked
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # googlenet and inception_v3 announce a change of their initialization
        model = torchvision.models.get_model(name, weights=None, num_classes=10)
    predict_quantized_params(model, inplace=True)
    report, parameters = prediction_report(model), list(model.parameters())
    side = next((side for prefix, side in SIDES.items() if name.startswith(prefix)), 128)
    images = torch.randn(2, 3, side, side)
    outputs = model.train()(images)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    sum(output.square().mean() for output in outputs).backward()
    gradients = sum(p.grad is not None and bool(p.grad.isfinite().all()) for p in parameters)
    torch.nn.utils.clip_grad_norm_(
        parameters, 1.0
    )  # networks without norm have gradients of any size
    torch.optim.SGD(parameters, lr=0.1).step()
    model.zero_grad()
    calibrate(model, [images])
    with torch.no_grad():
        evaluated = model.eval()(images)
    return {
        "parameters": len(parameters),
        "predicted": len(report.predicted),
        "kept": len(report.kept),
        "training finite": all(bool(output.isfinite().all()) for output in outputs),
        "evaluation finite": bool(evaluated.isfinite().all()),
        "gradients": gradients,
        "seconds": round(time.perf_counter() - started, 1),
    }


def main() -> None:
    parser = common.parser(__doc__)
    known = torchvision.models.list_models(module=torchvision.models)
    parser.add_argument("models", nargs="*", default=known, help="names of torchvision classifiers")
    common.add_json(parser)
    options = parser.parse_args()

    print(common.head(["model", *COLUMNS]))
    figures = {}
    for name in options.models:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            figures[name] = row = process.submit(measure, name).result()
        print(common.row([name, *(row[column] for column in COLUMNS)]), flush=True)
    finite = [
        row for row in figures.values() if row["training finite"] and row["evaluation finite"]
    ]
    whole = sum(row["parameters"] == row["predicted"] == row["gradients"] for row in finite)
    print(
        f"\n{whole} of {len(figures)}: every parameter predicted and trained, every output finite"
    )
    if options.json:
        common.write_json(options.json, figures)


if __name__ == "__main__":
    main()
