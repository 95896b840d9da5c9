"""How much the gradient of one network varies with the images that it is shown, and what they cost.

    python benchmarks/gradient_noise.py --data data/cifar10

Gradients with respect to the hypernetwork's parameters, of validation networks on training images. The part that two
independent batches of one network have in common is its signal, the rest noise. "Noise" is that of each network
relative to independently drawn images in the first number of them, as a geometric mean over networks; "share" the part
of the squared norm that is noise. Seconds are medians of one forward and backward pass, on one thread.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor

from ghnqat_sdk import load_pretrained
from ghnqat_sdk.hypernetwork import pretrained
from ghnqat_sdk.hypernetwork.ghn import GraphHypernetwork
from ghnqat_sdk.training.datasets import ImageSet, load_images, normalise_images
from ghnqat_sdk.training.objective import Network, network_loss, prepare_network
from ghnqat_sdk.training.process import keep_compiled_convolutions, keep_freed_memory
from ghnqat_sdk.training.spaces import ArchitectureSpace

DRAWS = ("independent", "stratified")
SETTINGS = ((4, 4), (2, 2), (32, 32))
MAX_MACS = 40e6


def draw(images: ImageSet, kind: str, count: int, generator: torch.Generator) -> ImageSet:
    if kind == "stratified":
        return images.stratified(count, generator)
    return images.take(torch.randint(len(images), (count,), generator=generator))


def gradient(hypernetwork: GraphHypernetwork, network: Network, batch: ImageSet) -> Tensor:
    """(P,) for the hypernetwork's P parameters."""
    (predicted,) = hypernetwork([network.graph])
    result = network_loss(network, predicted, normalise_images(batch.images), batch.labels)
    outputs, parameters = [predicted[name] for name in result.gradients], list(hypernetwork.parameters())
    gradients = torch.autograd.grad(outputs, parameters, list(result.gradients.values()), materialize_grads=True)
    return torch.cat([g.flatten() for g in gradients])


def signal_and_noise(gradients: list[Tensor]) -> tuple[float, float]:
    """Squared norms of what gradients on independent batches have in common, and of the rest; both are unbiased."""
    signal = statistics.fmean(float(a @ b) for a, b in itertools.combinations(gradients, 2))
    return signal, statistics.fmean(float(g @ g) for g in gradients) - signal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="image folder, or torchvision's CIFAR-10")
    parser.add_argument("--weights", type=Path, default=pretrained._EMBEDDED, help="folder (default: those that ship)")
    parser.add_argument("--networks", type=int, default=48)
    parser.add_argument("--images", type=int, nargs="+", default=[64, 16, 32, 128])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_compiled_convolutions()
    keep_freed_memory()

    hypernetwork, images = load_pretrained(options.weights).train(), load_images(options.data, "train")
    generator = torch.Generator().manual_seed(0)
    rows = list(itertools.product(options.images, DRAWS))
    measured: dict[tuple[int, str], list[tuple[float, float]]] = {row: [] for row in rows}
    seconds: dict[tuple[int, str], list[float]] = {row: [] for row in rows}
    affordable = (architecture for architecture in ArchitectureSpace("val") if architecture.macs <= MAX_MACS)
    for architecture, bits in zip(itertools.islice(affordable, options.networks), itertools.cycle(SETTINGS)):
        network = prepare_network(architecture, bits, hypernetwork.config.ranges, hypernetwork.config.num_classes)
        for count, kind in rows:
            gradients = []
            for _ in range(options.repeats):
                batch = draw(images, kind, count, generator)
                started = time.perf_counter()
                gradients.append(gradient(hypernetwork, network, batch))
                seconds[count, kind].append(time.perf_counter() - started)
            measured[count, kind].append(signal_and_noise(gradients))

    baseline = measured[rows[0]]
    print("| images | drawn | noise | share | seconds |\n| ---: | --- | ---: | ---: | ---: |")
    for row in sorted(rows):
        ratio = statistics.geometric_mean(own[1] / first[1] for own, first in zip(measured[row], baseline, strict=True))
        share = statistics.fmean(noise / (noise + max(signal, 0.0)) for signal, noise in measured[row])
        print(f"| {row[0]} | {row[1]} | {ratio:.2f} | {share:.0%} | {statistics.median(seconds[row]):.2f} |")


if __name__ == "__main__":
    main()
