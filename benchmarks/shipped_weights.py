"""Accuracy of the weights that ship, on every split and setting: prints the table of docs/evaluation.md.

    python benchmarks/shipped_weights.py --data data/cifar10

Figures go to benchmarks/results/shipped_weights.json; a setting that is there already for the same weights is not
measured again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from ghnqat_sdk import load_pretrained
from ghnqat_sdk.hypernetwork import pretrained
from ghnqat_sdk.training.datasets import load_images
from ghnqat_sdk.training.evaluate import calibration_batches, evaluate_graphs
from ghnqat_sdk.training.spaces import ArchitectureSpace

RESULTS = Path(__file__).parent / "results" / "shipped_weights.json"
GRAPHS = {"id": 50, "deep": 20, "wide": 20, "bn-free": 20}
ROWS = [("paper", b) for b in ((2, 2), (4, 4), (4, 8), (32, 32))] + [("calibrated", b) for b in ((2, 2), (4, 4))]


def measure(options: argparse.Namespace, results: dict[str, Any]) -> None:
    hypernetwork = load_pretrained()
    images = load_images(options.data, "test").sample(options.images, options.seed)
    batches = calibration_batches(options.data, options.seed)
    for protocol, bits in ROWS:
        for split, graphs in GRAPHS.items():
            key = f"{protocol} {split} W{bits[0]}/A{bits[1]}"
            if key in results["figures"]:
                continue
            nets = [ArchitectureSpace(split)[index] for index in range(graphs)]
            figures = evaluate_graphs(hypernetwork, nets, images, bits, protocol=protocol, calibration=batches)
            results["figures"][key] = {"graphs": graphs, **figures.as_dict()}
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
            print(f"{key}: top-1 {figures.top1}, top-5 {figures.top5}", flush=True)


def table(figures: dict[str, Any]) -> str:
    lines = ["| protocol | bits | ID | Deep | Wide | BN-free |", "| --- | --- | --- | --- | --- | --- |"]
    for protocol, bits in ROWS:
        name = "float" if bits == (32, 32) else f"W{bits[0]}/A{bits[1]}"
        found = [figures.get(f"{protocol} {split} W{bits[0]}/A{bits[1]}") for split in GRAPHS]
        cells = ["–" if f is None else "{mean:.1f} ± {sem:.1f}; {max:.1f}".format(**f["top1"]) for f in found]
        lines.append(f"| {protocol} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="image folder, or torchvision's CIFAR-10")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    weights = hashlib.sha256((pretrained._EMBEDDED / pretrained.WEIGHTS_FILE).read_bytes()).hexdigest()
    setting = {"weights": weights, "images": options.images, "seed": options.seed, "data": "CIFAR-10 (JPEG)"}
    results: dict[str, Any] = {"setting": setting, "figures": {}}
    if RESULTS.exists() and json.loads(RESULTS.read_text())["setting"] == setting:
        results = json.loads(RESULTS.read_text())
    RESULTS.parent.mkdir(exist_ok=True)
    measure(options, results)
    print(table(results["figures"]))


if __name__ == "__main__":
    main()
