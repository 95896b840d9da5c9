"""Train a tiny hypernetwork for a few steps, stop, and resume it, to show how a run works.

    python examples/train_hypernetwork.py
    python examples/train_hypernetwork.py --output runs/demo --steps 12

A real run is `ghnqat-train run --data data/cifar10 --output runs/mine`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from models import SAMPLE_IMAGES

from ghnqat_sdk import HypernetworkConfig, load_pretrained
from ghnqat_sdk.hypernetwork.decoder import DecoderConfig
from ghnqat_sdk.hypernetwork.encoders import TransformerConfig
from ghnqat_sdk.training.config import BitsShare, RunConfig
from ghnqat_sdk.training.datasets import load_images
from ghnqat_sdk.training.trainer import Trainer


def tiny_config(steps: int) -> RunConfig:
    return RunConfig(
        hypernetwork=HypernetworkConfig(
            encoder=TransformerConfig(width=16, layers=1, heads=2), decoder=DecoderConfig(hidden=16, tile=8)
        ),
        steps=steps,
        meta_batch=2,
        image_batch=16,
        max_macs=1.5e6,
        bits=(BitsShare(bits=(4, 4)), BitsShare(bits=(32, 32))),
        warmup_steps=2,
        checkpoint_every=max(1, steps // 2),
        validate_every=steps,
        validation_graphs=2,
    )


def train(folder: Path, steps: int) -> None:
    config = tiny_config(steps)
    images, validation = load_images(SAMPLE_IMAGES, "train"), load_images(SAMPLE_IMAGES, "val")

    for report in Trainer(config, folder, images, validation).run():
        print(f"loss {report.loss:.3f} at learning rate {report.learning_rate:.1e}")
        if (folder / "checkpoint.safetensors").exists():
            break  # as if the machine had been switched off right after a checkpoint

    trainer = Trainer(config, folder, images, validation)
    trainer.resume()
    print(f"resumed at step {trainer.progress.step}")
    for report in trainer.run():
        print(f"loss {report.loss:.3f} at learning rate {report.learning_rate:.1e}")

    hypernetwork = load_pretrained(folder / "best")
    values = sum(p.numel() for p in hypernetwork.parameters())
    print(f"best validation accuracy {trainer.progress.best:.1f} % (a hypernetwork of {values:,} values)")
    print("files:", ", ".join(sorted(path.name for path in folder.iterdir())))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="folder of the run (default: a temporary one)")
    parser.add_argument("--steps", type=int, default=6)
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as temporary:
        train(options.output or Path(temporary) / "run", options.steps)


if __name__ == "__main__":
    main()
