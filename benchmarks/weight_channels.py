"""One range for a weight, or one for each of its output channels: accuracy of predicted networks.

The same predicted weights are quantized both ways, calibrated on 512 training images, and classify
1,000 validation images.

python benchmarks/weight_channels.py --data data/cifar10 --json channels.json
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from common import add_data, add_json, head, parser, row, write_json
from networks import classifier

from ghnqat_sdk import calibrate, from_float, predict_quantized_params, to_float
from ghnqat_sdk.bits import FLOAT_BITS, Bits
from ghnqat_sdk.cli.arguments import bits_pair
from ghnqat_sdk.data import ImageSet, load_images
from ghnqat_sdk.quantization.ranges import ClippedRanges

RULES = {"tensor": ClippedRanges(), "channel": ClippedRanges(per_channel=True)}


@torch.no_grad()
def measure(name: str, bits: Bits, train: ImageSet, held_out: ImageSet) -> dict[str, Any]:
    """Top-1 in percent of one network, with float weights as well."""
    torch.manual_seed(0)
    batches = list(train.batches(64))
    network = to_float(
        predict_quantized_params(classifier(name), bits, example_inputs=batches[0][0])
    )
    figures: dict[str, Any] = {"network": name, "bits": bits}
    rules = {rule: (bits, ranges) for rule, ranges in RULES.items()}
    rules["float"] = Bits(FLOAT_BITS, bits.activation), ClippedRanges()
    for rule, (used, ranges) in rules.items():
        qmodel = from_float(network, used, ranges=ranges)
        calibrate(qmodel, batches)
        figures[rule] = accuracy(qmodel.eval(), held_out)
    return figures


def accuracy(qmodel: torch.nn.Module, images: ImageSet) -> float:
    """Top-1 in percent."""
    right = sum(int((qmodel(x).argmax(1) == y).sum()) for x, y in images.batches(100))
    return round(100 * right / len(images), 1)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    add_data(options)
    add_json(options)
    options.add_argument("--networks", nargs="+", default=["torchvision/mobilenet_v2"])
    options.add_argument("--bits", nargs="+", type=bits_pair, default=[Bits(4, 8), Bits(2, 8)])
    chosen = options.parse_args(arguments)
    train = load_images(chosen.data, "train").sample(512, seed=0)
    held_out = load_images(chosen.data, "val").sample(1000, seed=0)
    print(head(["network", "bits", "by tensor", "by channel", "float weights"], texts=2))
    figures = []
    for name in chosen.networks:
        for bits in chosen.bits:
            found = measure(name, bits, train, held_out)
            cells = [
                name,
                "W{}/A{}".format(*bits),
                *(found[r] for r in ("tensor", "channel", "float")),
            ]
            print(row(cells), flush=True)
            figures.append(found)
    if chosen.json:
        write_json(chosen.json, figures)


if __name__ == "__main__":
    main()
