"""Accuracy of the weights that ship, on every split and setting: prints the table of docs/evaluation.md.

    python benchmarks/shipped_weights.py --data data/cifar10

Figures go to benchmarks/results/shipped_weights.json as they come; what is there already for the same weights and
images is not measured again. Each of --processes works on one split and setting, on one thread.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from ghnqat_sdk import load_pretrained
from ghnqat_sdk.hypernetwork import pretrained
from ghnqat_sdk.training.datasets import load_images
from ghnqat_sdk.training.evaluate import calibration_batches, evaluate_graphs
from ghnqat_sdk.training.spaces import ArchitectureSpace

RESULTS = Path(__file__).parent / "results" / "shipped_weights.json"
GRAPHS = {"id": 50, "bn-free": 20, "deep": 20, "wide": 20}
SPLITS = ("id", "deep", "wide", "bn-free")
BITS = {"W4/A4": (4, 4), "W2/A2": (2, 2), "W4/A8": (4, 8), "float": (32, 32)}
ROWS = [("paper", name) for name in BITS] + [("calibrated", "W4/A4"), ("calibrated", "W2/A2")]


def measure(task: tuple[str, str, str], data: str, count: int, seed: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    protocol, bits, split = task
    nets = [ArchitectureSpace(split)[index] for index in range(GRAPHS[split])]
    images = load_images(data, "test").sample(count, seed)
    batches = calibration_batches(data, seed) if protocol == "calibrated" else None
    figures = evaluate_graphs(load_pretrained(), nets, images, BITS[bits], protocol=protocol, calibration=batches)
    return {"graphs": GRAPHS[split], **figures.as_dict()}


def cell(figures: dict[str, Any] | None, kind: str) -> str:
    return "–" if figures is None else "{mean:.1f} ± {sem:.1f}; {max:.1f}".format(**figures[kind])


def table(figures: dict[str, Any], kind: str) -> str:
    lines = [f"| {kind} | bits | ID | Deep | Wide | BN-free |", "| --- | --- | --- | --- | --- | --- |"]
    for protocol, bits in ROWS:
        found = [figures.get(f"{protocol} {bits} {split}") for split in SPLITS]
        lines.append(f"| {protocol} | {bits} | {' | '.join(cell(f, kind) for f in found)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="image folder, or torchvision's CIFAR-10")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--protocols", nargs="+", default=["paper", "calibrated"])
    options = parser.parse_args()

    weights = hashlib.sha256((pretrained._EMBEDDED / pretrained.WEIGHTS_FILE).read_bytes()).hexdigest()
    setting = {"weights": weights, "images": options.images, "seed": options.seed, "data": "CIFAR-10 (JPEG)"}
    results: dict[str, Any] = {"setting": setting, "figures": {}}
    if RESULTS.exists() and json.loads(RESULTS.read_text())["setting"] == setting:
        results = json.loads(RESULTS.read_text())
    RESULTS.parent.mkdir(exist_ok=True)
    tasks = [(protocol, bits, split) for split in GRAPHS for protocol, bits in ROWS if protocol in options.protocols]
    with ProcessPoolExecutor(options.processes) as pool:
        waiting = {
            pool.submit(measure, task, options.data, options.images, options.seed): " ".join(task)
            for task in tasks
            if " ".join(task) not in results["figures"]
        }
        for done in as_completed(waiting):
            results["figures"][waiting[done]] = done.result()
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
            print(f"{waiting[done]}: top-1 {cell(done.result(), 'top1')}", flush=True)
    print(table(results["figures"], "top1"), table(results["figures"], "top5"), sep="\n\n")


if __name__ == "__main__":
    main()
