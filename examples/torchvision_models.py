"""Predict the parameters of torchvision's classifiers and say how many were predicted, and how
fast.

python examples/torchvision_models.py
python examples/torchvision_models.py resnet50 densenet121 vit_b_16
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torchvision

from ghnqat_sdk import load_pretrained, predict_quantized_params, prediction_report

DEFAULT = (
    "resnet18",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "shufflenet_v2_x1_0",
    "squeezenet1_1",
    "regnet_x_400mf",
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "models", nargs="*", default=DEFAULT, help="names of torchvision classifiers"
    )
    options = parser.parse_args(arguments)

    hypernetwork = load_pretrained()
    print(f"{'model':22}{'parameters':>12}{'predicted':>11}{'kept':>6}{'seconds':>9}")
    for name in options.models:
        model = torchvision.models.get_model(name, weights=None, num_classes=10)
        started = time.perf_counter()
        qmodel = predict_quantized_params(
            model, bits=(4, 4), hypernetwork=hypernetwork, inplace=True
        )
        seconds = time.perf_counter() - started
        report = prediction_report(qmodel)
        values = sum(p.numel() for p in qmodel.parameters())
        print(f"{name:22}{values:12,}{len(report.predicted):11}{len(report.kept):6}{seconds:9.2f}")
        for parameter, reason in report.kept.items():
            print(f"  kept {parameter}: {reason}")


if __name__ == "__main__":
    main()
