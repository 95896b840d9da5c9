"""From a folder of your images to a quantized network in ONNX: predict, fit the head, train
shortly, export.

    python examples/image_folder.py
    python examples/image_folder.py --data my-images --model mobilenet_v2 --size 96 --output
    my-model.onnx --plot my.png

The folder holds train/<class>/*.jpg and test/<class>/*.jpg, of any number of classes. The first
command uses the 180 training images of the tests, which show how it works and are too few to train
on. --output needs `pip install "ghnqat-sdk[onnx]"`, --plot `pip install "ghnqat-sdk[plot]"`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
import torchvision
from models import SAMPLE_IMAGES
from torch import Tensor, nn

from ghnqat_sdk import calibrate, predict_quantized_params
from ghnqat_sdk.data import ImageSet, draw_moves, load_images, move_images
from ghnqat_sdk.progress import progress_bar


def main(arguments: Sequence[str] | None = None) -> None:
    options = parsed(arguments)
    # Normalized by the mean and deviation of the training images.
    train, test = (
        load_images(options.data, split, options.size, own_statistics=True)
        for split in ("train", "test")
    )
    batches = list(train.sample(options.fit, seed=0).batches(options.batch))

    torch.manual_seed(0)
    model = torchvision.models.get_model(options.model, num_classes=len(train.classes))
    qmodel = predict_quantized_params(model, bits=(4, 4), calibration=batches, head="fit")
    print(f"predicted, with a fitted head: {100 * share_right(confusions(qmodel, test)):.1f} %")

    finetune(qmodel, train, options.steps, options.batch, options.learning_rate)
    calibrate(qmodel, batches)
    counts = confusions(qmodel, test)
    print(f"after {options.steps} steps of training: {100 * share_right(counts):.1f} %")
    print(table(counts, train.classes))
    if options.plot:
        plot(counts, train.classes, options.plot)
    if options.output:
        export(qmodel, options.output, train)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default=SAMPLE_IMAGES, help="image folder")
    parser.add_argument("--model", default="resnet18", help="of torchvision")
    parser.add_argument("--size", type=int, default=64, help="side of the images in pixels")
    parser.add_argument(
        "--fit", type=int, default=4000, help="most images to calibrate with and fit the head to"
    )
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=0.01)
    parser.add_argument("--output", metavar="FILE.onnx", help="export the network")
    parser.add_argument("--plot", metavar="FILE.png", help="draw which classes are confused")
    return parser.parse_args(arguments)


def finetune(qmodel: nn.Module, train: ImageSet, steps: int, batch: int, rate: float) -> None:
    """SGD with a cosine schedule, on images flipped and shifted by up to an eighth of their
    side."""
    optimizer = torch.optim.SGD(qmodel.parameters(), rate, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(0)
    padding = train.images.shape[-1] // 8
    qmodel.train()
    for _ in progress_bar(range(steps), "training"):
        images = train.stratified(batch, generator)
        inputs = move_images(train.normalize(images.images), draw_moves(batch, padding, generator))
        loss = nn.functional.cross_entropy(qmodel(inputs), images.labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(qmodel.parameters(), 5.0)
        optimizer.step()
        schedule.step()


@torch.inference_mode()
def confusions(qmodel: nn.Module, images: ImageSet) -> Tensor:
    """(K, K) images of each class (row) that were taken for each class (column)."""
    qmodel.eval()
    classes = len(images.classes)
    counts = torch.zeros(classes, classes, dtype=torch.int64)
    for inputs, labels in images.batches(100):
        pairs = labels * classes + qmodel(inputs).argmax(1)
        counts += torch.bincount(pairs, minlength=classes**2).view(classes, classes)
    return counts


def share_right(counts: Tensor) -> float:
    return counts.diagonal().sum().item() / counts.sum().item()


def table(counts: Tensor, classes: Sequence[str]) -> str:
    """Rows are what images show, columns what they were taken for."""
    width = max(len(name) for name in classes)
    lines = [f"{'':{width}}" + "".join(f"{name[:6]:>7}" for name in classes)]
    for name, row in zip(classes, counts.tolist(), strict=True):
        lines.append(f"{name:{width}}" + "".join(f"{count:7}" for count in row))
    return "\n".join(lines)


def plot(counts: Tensor, classes: Sequence[str], path: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    axes = figure.add_subplot()
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(classes)), classes, rotation=90)
    axes.set_yticks(range(len(classes)), classes)
    axes.set_xlabel("taken for")
    axes.set_ylabel("shown")
    figure.savefig(path)


def export(qmodel: nn.Module, path: str, train: ImageSet) -> None:
    """What training leaves in float gets its ranges from 256 images; the file says which size,
    normalization and classes they have."""
    from ghnqat_sdk.export import export_onnx

    ((images, _),) = train.sample(256, seed=0).batches(256)
    print(export_onnx(qmodel.eval(), path, images, images=train))


if __name__ == "__main__":
    main()
