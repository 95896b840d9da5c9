"""Networks per second of a training step, part by part, beside a plain step and the machine's measured peak.

    python benchmarks/training_throughput.py --json benchmarks/results/training_throughput.json

One thread. A fixed pool of 16 architectures of the training split, four in a step, 64 images each. "Plain" is the same
step in float32 with contiguous tensors and torch's own fake-quantize operator. "Share in products" is the part of a
step's time that torch's profiler finds in convolutions and matrix products; "of float32 peak" is the arithmetic of the
networks (six operations for each multiply-accumulate: forward, and backward for input and weight) against a product of
two 2048 × 2048 matrices (512 × 512 in bfloat16) in the same run. Rows are medians over rounds in which they take turns,
so that a noisy machine is fair to all.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from ghnqat_sdk import load_pretrained
from ghnqat_sdk.quantization.bits import Bits
from ghnqat_sdk.quantization.functional import scale_and_zero_point
from ghnqat_sdk.quantization.quantizers import FakeQuantizer
from ghnqat_sdk.training.objective import Network, network_loss, prepare_network
from ghnqat_sdk.training.process import keep_compiled_convolutions, keep_freed_memory
from ghnqat_sdk.training.spaces import ArchitectureSpace

INDICES = (2, 3, 9, 14, 15, 16, 20, 22, 23, 25, 28, 29, 31, 45, 46, 47)
META_BATCH, IMAGES = 4, 64
PRODUCTS = ("convolution", "mm", "bmm", "addmm", "baddbmm")
PARTS = ("hypernetwork forward", "network forward and backward", "hypernetwork backward", "optimizer")


class Step:
    """What the trainer does for four networks, timed by parts."""

    def __init__(self, size: int, plain: bool = False) -> None:
        self.size, self.plain = size, plain
        self.hypernetwork = load_pretrained().train()
        self.optimizer = torch.optim.AdamW(self.hypernetwork.parameters(), lr=1e-6)
        self.parts: dict[str, float] = defaultdict(float)
        layout = torch.contiguous_format if plain else torch.channels_last
        self.images = torch.randn(IMAGES, 3, size, size).contiguous(memory_format=layout)
        self.labels = torch.randint(0, 10, (IMAGES,))

    def __call__(self, networks: list[Network], bits: Bits) -> None:
        at = [network.at(bits) for network in networks]
        predicted = self._timed(
            PARTS[0], lambda: self.hypernetwork([n.graph for n in at], channels_last=not self.plain)
        )
        results = self._timed(
            PARTS[1],
            lambda: [network_loss(n, p, self.images, self.labels) for n, p in zip(at, predicted, strict=True)],
        )
        pairs = [(p[name], g) for p, r in zip(predicted, results, strict=True) for name, g in r.gradients.items()]
        tensors, gradients = zip(*pairs, strict=True)
        self._timed(PARTS[2], lambda: torch.autograd.backward(tensors, gradients))
        self._timed(PARTS[3], self._update)

    def _update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _timed(self, part: str, call: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = call()
        self.parts[part] += time.perf_counter() - started
        return result


@contextmanager
def native_fake_quantization() -> Iterator[None]:
    """torch's operator in place of ours, with the same ranges."""

    def forward(self: FakeQuantizer, x: Tensor) -> Tensor:
        if self.bits == 32:
            return x
        scale, zero_point = scale_and_zero_point(*self.range_of(x), self.bits)
        return torch.fake_quantize_per_tensor_affine(x, scale.item(), int(zero_point), 0, 2**self.bits - 1)

    ours, FakeQuantizer.forward = FakeQuantizer.forward, forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        FakeQuantizer.forward = ours  # type: ignore[method-assign]


def peak_gflops(dtype: torch.dtype) -> float:
    side = 2048 if dtype == torch.float32 else 512  # a CPU without bfloat16 takes half a minute for the large one
    a, b = (torch.randn(side, side).to(dtype) for _ in range(2))
    times = []
    for _ in range(3):
        started = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - started)
    return 2 * side**3 / min(times) / 1e9


def share_of_products(step: Step, groups: list[list[Network]], bits: Bits) -> float:
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        for group in groups:
            step(group, bits)
    times = {event.key: event.self_cpu_time_total for event in recorded.key_averages()}
    products = sum(t for key, t in times.items() if any(name in key.removeprefix("aten::") for name in PRODUCTS))
    return products / sum(times.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_compiled_convolutions()
    keep_freed_memory()

    space, ranges = ArchitectureSpace("train"), load_pretrained().config.ranges
    architectures = [space[index] for index in INDICES]
    networks = [prepare_network(a, (4, 4), ranges, 10) for a in architectures]
    groups = [networks[i : i + META_BATCH] for i in range(0, len(networks), META_BATCH)]
    macs = statistics.fmean(a.macs for a in architectures)
    steps = {
        "W4/A4": (Step(32), (4, 4)),
        "W2/A2": (Step(32), (2, 2)),
        "float": (Step(32), (32, 32)),
        "plain W4/A4": (Step(32, plain=True), (4, 4)),
        "W4/A4, crops of 24 × 24": (Step(24), (4, 4)),
    }

    times: dict[str, list[float]] = defaultdict(list)
    peaks: dict[str, list[float]] = defaultdict(list)
    for turn in range(options.rounds + 1):  # the first one warms up
        for name, (step, bits) in steps.items():
            step.parts.clear()
            started = time.perf_counter()
            for group in groups:
                if step.plain:
                    with native_fake_quantization():
                        step(group, bits)
                else:
                    step(group, bits)
            if turn:
                times[name].append(time.perf_counter() - started)
        for dtype in (torch.float32, torch.bfloat16):
            peaks[str(dtype).removeprefix("torch.")].append(peak_gflops(dtype))
    peak = {name: statistics.median(values) for name, values in peaks.items()}

    print(f"{len(networks)} networks of {macs / 1e6:.1f} M multiply-accumulates on average, one thread")
    print("peak, GFLOP/s: " + ", ".join(f"{name} {value:.0f}" for name, value in peak.items()))
    print(f"\n| | networks/s | of float32 peak | share in products | {' | '.join(PARTS)} |\n| --- |" + " ---: |" * 7)
    figures: dict[str, Any] = {"peak": peak, "mean_macs": macs, "indices": INDICES}
    for name, (step, bits) in steps.items():
        rate = len(networks) / statistics.median(times[name])
        scale = (step.size / 32) ** 2
        parts = {part: step.parts[part] / sum(step.parts.values()) for part in PARTS}
        row = {
            "networks/s": rate,
            "of float32 peak": rate * 6 * macs * scale * IMAGES / peak["float32"] / 1e9,
            "share in products": share_of_products(step, groups, bits) if not step.plain else None,
            **parts,
        }
        figures[name] = row
        shares = ["–" if share is None else f"{100 * share:.0f} %" for share in list(row.values())[1:]]
        print(f"| {name} | {rate:.2f} | {' | '.join(shares)} |")
    cost = figures["float"]["networks/s"] / figures["W4/A4"]["networks/s"] - 1
    gain = figures["W4/A4"]["networks/s"] / figures["plain W4/A4"]["networks/s"]
    print(f"\nfake quantization costs {100 * cost:.0f} % over float; {gain:.1f} times the plain step")
    if options.json:
        options.json.parent.mkdir(exist_ok=True)
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
