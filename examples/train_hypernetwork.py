"""Train a tiny hypernetwork for a few steps, resume it, and let it decay, to show how a run works.

    python examples/train_hypernetwork.py
    python examples/train_hypernetwork.py --output runs/demo --steps 12

A real run is `ghnqat-train run --data data/cifar10 --output runs/mine --steps 20000`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from models import SAMPLE_IMAGES

from ghnqat_sdk import HypernetworkConfig, load_pretrained
from ghnqat_sdk.data import load_images
from ghnqat_sdk.hypernetwork.decoder import DecoderConfig
from ghnqat_sdk.hypernetwork.encoders import TransformerConfig
from ghnqat_sdk.training.branch import branch
from ghnqat_sdk.training.compute import ComputeConfig
from ghnqat_sdk.training.config import BitsConfig, BitsShare, RunConfig, ValidationConfig
from ghnqat_sdk.training.run import Run
from ghnqat_sdk.training.sampler import SamplingConfig
from ghnqat_sdk.training.schedules import StableSchedule
from ghnqat_sdk.training.shares import FamiliesShare

DECAY_STEPS = 2


def tiny_config() -> RunConfig:
    return RunConfig(
        hypernetwork=HypernetworkConfig(
            encoder=TransformerConfig(width=16, layers=1, heads=2),
            decoder=DecoderConfig(hidden=16, tile=8, banks=4),
        ),
        networks=(FamiliesShare(max_macs=5e6),),
        sampling=SamplingConfig(meta_batch=2, image_batch=16, simple_until=100),
        bits=BitsConfig(settings=(BitsShare(bits=(4, 4)), BitsShare(bits=(32, 32)))),
        schedule=StableSchedule(warmup=2),
        compute=ComputeConfig(compile=False),  # compiled kernels pay in longer runs
        validation=ValidationConfig(networks=2, images=50),
    )


def advance(run: Run, steps: int) -> None:
    for report in run.run(steps):
        loss = sum(network.loss for network in report.networks) / len(report.networks)
        print(f"step {report.step}: loss {loss:.4g} at learning rate {report.learning_rate:.1e}")


def train(folder: Path, steps: int) -> None:
    config, stable, decayed = tiny_config(), folder / "stable", folder / "decayed"
    images, validation = load_images(SAMPLE_IMAGES, "train"), load_images(SAMPLE_IMAGES, "val")
    advance(Run(config, stable, images, validation), max(1, steps // 2))

    # Another process, another day: the state is in the folder.
    run = Run(config, stable, images, validation)
    run.resume()
    print(f"resumed at step {run.progress.step}")
    advance(run, steps)

    # What is used branches off, with a rate that falls to zero; the stable run could go on.
    run = Run(branch(stable, decayed, DECAY_STEPS), decayed, images, validation)
    run.resume()
    print(f"decays from step {run.progress.step}")
    advance(run, steps + DECAY_STEPS)

    hypernetwork = load_pretrained(decayed / "last")
    values = sum(p.numel() for p in hypernetwork.parameters())
    print(f"{run.progress.images} images taught a hypernetwork of {values:,} values")
    print("files:", ", ".join(sorted(path.name for path in decayed.iterdir())))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="folder of the runs (default: a temporary one)")
    parser.add_argument("--steps", type=int, default=6)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        train(options.output or Path(temporary), options.steps)


if __name__ == "__main__":
    main()
