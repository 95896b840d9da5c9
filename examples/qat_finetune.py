"""Quantization-aware training from predicted parameters: predict, calibrate, train, evaluate.

    python examples/qat_finetune.py
    python examples/qat_finetune.py --evaluate-on data/cifar10
    python examples/qat_finetune.py --data data/cifar10 --labels --steps 2000 --batch 128 \\
        --learning-rate 0.01

The first command has only the 200 training images of the tests. Their labels would soon be known by
heart, so a larger network, itself predicted and not trained, says what it sees in mixtures of two
images. The 300 test images beside them tell no single points apart: the second command evaluates on
all of CIFAR-10's, see `ghnqat-train download`. The third one trains on CIFAR-10 and its labels.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence

import torch
from models import SAMPLE_IMAGES, SmallMobileNetV2, accuracy
from torch import Tensor, nn
from torchvision.models import resnet18

from ghnqat_sdk import calibrate, predict_quantized_params
from ghnqat_sdk.data import draw_moves, load_images, move_images
from ghnqat_sdk.errors import UnfamiliarDataWarning


def mixed(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image (N, 3, H, W) with up to half of another one."""
    share = 0.5 + 0.5 * torch.rand(len(images), 1, 1, 1, generator=generator)
    order = torch.randperm(len(images), generator=generator)
    return share * images + (1 - share) * images[order]


def optimizer_of(qmodel: nn.Module, labels: bool, rate: float) -> torch.optim.Optimizer:
    if labels:
        return torch.optim.SGD(qmodel.parameters(), rate, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(qmodel.parameters(), rate, weight_decay=0)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", default=SAMPLE_IMAGES, help="image folder, or torchvision's CIFAR-10"
    )
    parser.add_argument(
        "--images", type=int, default=10_000, help="test images (default: 10000, or all there are)"
    )
    parser.add_argument("--evaluate-on", metavar="DATA", help="other data to take test images from")
    parser.add_argument("--labels", action="store_true", help="train on labels, by SGD")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=0.001)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    train, test = (
        load_images(options.data, "train"),
        load_images(options.evaluate_on or options.data, "test").sample(options.images, seed=0),
    )
    calibration = [images for images, _ in train.sample(512, seed=0).batches(64)]

    torch.manual_seed(options.seed)
    qmodel = predict_quantized_params(SmallMobileNetV2(), bits=(4, 4), calibration=calibration)
    print(f"predicted: {accuracy(qmodel, test):.1f} %")
    with warnings.catch_warnings():  # made for larger images, it tells these apart all the same
        warnings.simplefilter("ignore", UnfamiliarDataWarning)
        teacher = predict_quantized_params(
            resnet18(num_classes=10), bits=(32, 32), calibration=calibration
        ).eval()

    optimizer = optimizer_of(qmodel, options.labels, options.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    generator = torch.Generator().manual_seed(options.seed)
    qmodel.train()
    for _ in range(options.steps):
        batch = train.take(torch.randint(len(train), (options.batch,), generator=generator))
        moves = draw_moves(options.batch, 4, generator)  # flips, and shifts by up to 4 pixels
        images = move_images(train.normalize(batch.images), moves)
        targets = batch.labels
        if not options.labels:
            images = mixed(images, generator)
            with torch.no_grad():
                targets = teacher(images).softmax(1)
        loss = nn.functional.cross_entropy(qmodel(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()

    # Parameters have moved, and with them the statistics of norms and the ranges of activations.
    calibrate(qmodel, calibration)
    print(
        f"after {options.steps} steps: {accuracy(qmodel, test):.1f} % (training loss "
        f"{loss.item():.2f})"
    )


if __name__ == "__main__":
    main()
