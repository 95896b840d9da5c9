"""Predict W4/A4 parameters for two CNNs that the hypernetwork has never seen, and classify images
with them.

    python examples/quickstart.py

No training takes place. Both starts, predicted and random, are fake-quantized and calibrated in the
same way.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Sequence

import torch
from models import SAMPLE_IMAGES, ResNet20, SmallMobileNetV2, accuracy

from ghnqat_sdk import calibrate, load_pretrained, predict_quantized_params, prediction_report
from ghnqat_sdk.data import load_images
from ghnqat_sdk.quantization.convert import to_fake_quantized


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", default=SAMPLE_IMAGES, help="image folder (default: the images of the tests)"
    )
    parser.add_argument("--images", type=int, default=300, help="test images (default: 300)")
    parser.add_argument("--weight-bits", type=int, default=4)
    parser.add_argument("--activation-bits", type=int, default=4)
    options = parser.parse_args(arguments)
    bits = (options.weight_bits, options.activation_bits)

    test = load_images(options.data, "test").sample(options.images, seed=0)
    training = [
        images for images, _ in load_images(options.data, "train").sample(512, seed=0).batches(64)
    ]
    hypernetwork = load_pretrained()

    print(
        f"Test accuracy at W{bits[0]}/A{bits[1]} on {len(test)} CIFAR-10 (JPEG) images, without "
        "any training:\n"
    )
    print(
        f"{'network':18}{'parameters':>12}{'prediction':>13}{'predicted start':>18}"
        f"{'random start':>15}"
    )
    for network in (ResNet20, SmallMobileNetV2):
        torch.manual_seed(0)
        model = network()

        started = time.perf_counter()
        predicted = predict_quantized_params(model, bits, hypernetwork=hypernetwork)
        seconds = time.perf_counter() - started

        random = copy.deepcopy(model)
        to_fake_quantized(random, bits, hypernetwork.config.ranges)

        figures = []
        for qmodel in (predicted, random):
            calibrate(qmodel, training)
            figures.append(f"{accuracy(qmodel, test):.1f} %")
        count = sum(p.numel() for p in model.parameters())
        print(f"{network.__name__:18}{count:12,}{seconds:11.2f} s{figures[0]:>18}{figures[1]:>15}")
        assert not prediction_report(predicted).kept, "every parameter was predicted"


if __name__ == "__main__":
    main()
