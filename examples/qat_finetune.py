"""Quantization-aware training from predicted parameters: predict, calibrate, train, calibrate
again, evaluate.

    python examples/qat_finetune.py
    python examples/qat_finetune.py --data data/cifar10 --steps 2000 --batch 128 \\
        --learning-rate 0.01

The first command uses the 200 training images of the tests, which teach little: few steps at a
small rate. The second one wants CIFAR-10, see `ghnqat-train download`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from models import SAMPLE_IMAGES, SmallMobileNetV2, accuracy

from ghnqat_sdk import calibrate, predict_quantized_params
from ghnqat_sdk.data import draw_moves, load_images, move_images


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
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=0.001)
    options = parser.parse_args(arguments)
    train, test = (
        load_images(options.data, "train"),
        load_images(options.data, "test").sample(options.images, seed=0),
    )
    calibration = [images for images, _ in train.sample(512, seed=0).batches(64)]

    torch.manual_seed(0)
    qmodel = predict_quantized_params(SmallMobileNetV2(), bits=(4, 4), calibration=calibration)
    print(f"predicted: {accuracy(qmodel, test):.1f} %")

    optimizer = torch.optim.SGD(
        qmodel.parameters(), options.learning_rate, momentum=0.9, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    generator = torch.Generator().manual_seed(0)
    qmodel.train()
    for _ in range(options.steps):
        batch = train.take(torch.randint(len(train), (options.batch,), generator=generator))
        moves = draw_moves(options.batch, 4, generator)  # flips, and shifts by up to 4 pixels
        logits = qmodel(move_images(train.normalise(batch.images), moves))
        loss = torch.nn.functional.cross_entropy(logits, batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()

    # Training moves the weights, and with them the batch-norm statistics and the ranges of the
    # activations.
    calibrate(qmodel, calibration)
    print(
        f"after {options.steps} steps: {accuracy(qmodel, test):.1f} % (training loss "
        f"{loss.item():.2f})"
    )


if __name__ == "__main__":
    main()
