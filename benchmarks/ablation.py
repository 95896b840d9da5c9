"""What banks and hints are worth: validation accuracy of short runs that differ in them alone.

    ghnqat-train teacher --data data/cifar10 --output teacher.safetensors
    python benchmarks/ablation.py --data data/cifar10 --steps 500 --set bits.float_until=0
    python benchmarks/ablation.py --data data/cifar10 --steps 500 --variants both \\
        --set optimizer.learning_rate=0.002 --output runs/faster

All variants have one seed, and see the same networks and bit-widths in the same order. --set
changes a field of the recipe for all of them, as `ghnqat-train run` does. Each trains in a folder
of its own under --output, and goes on where it was interrupted. Cells are mean top-1 in percent,
of validation networks on validation images after the last step, by space and bits.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common
import torch

from ghnqat_sdk.cli.train_config import assign
from ghnqat_sdk.data import ImageSet
from ghnqat_sdk.progress import progress_bar
from ghnqat_sdk.training.config import RunConfig, load_recipe
from ghnqat_sdk.training.distributed import Processes
from ghnqat_sdk.training.hints import HintConfig
from ghnqat_sdk.training.process import settle_process, sparing_old_objects
from ghnqat_sdk.training.run import LOG_FILE, Run, open_features

VARIANTS = ("base", "banks", "hints", "both")


def configured(recipe: str, changes: Sequence[str]) -> RunConfig:
    """A recipe with some fields changed."""
    fields = load_recipe(recipe).model_dump(mode="json")
    for change in changes:
        assign(fields, change)
    return RunConfig.model_validate_json(json.dumps(fields))


def variant(config: RunConfig, name: str) -> RunConfig:
    """The run with what its name says, as the recipe has it, and without the rest."""
    hints = config.hints or HintConfig()
    banks = config.hypernetwork.decoder.banks or 16
    decoder = config.hypernetwork.decoder.model_copy(
        update={"banks": banks if name in ("banks", "both") else 0}
    )
    changes: dict[str, Any] = {
        "hypernetwork": config.hypernetwork.model_copy(update={"decoder": decoder}),
        "hints": hints if name in ("hints", "both") else None,
    }
    return config.model_copy(update=changes)


def trained(
    config: RunConfig, folder: Path, train: ImageSet, validation: ImageSet, steps: int
) -> dict[str, Any]:
    """What the log says after so many steps."""
    features = open_features(config, train, Processes())
    run = Run(config, folder, train, validation, features=features)
    run.resume()
    with sparing_old_objects() as spare:
        for report in progress_bar(run.run(steps), folder.name, steps - run.progress.step):
            if report.step % 50 == 0:
                spare()
    entries = [json.loads(line) for line in (folder / LOG_FILE).read_text().splitlines()]
    return next(entry for entry in reversed(entries) if entry["step"] == steps)


def table(entries: dict[str, dict[str, Any]]) -> str:
    columns = list(next(iter(entries.values()))["validation"])
    lines = [common.head(["", *columns, "mean", "images", "processor, s"])]
    for name, entry in entries.items():
        figures = [*entry["validation"].values(), entry["mean"]]
        cells = [name, *(f"{figure:.1f}" for figure in figures), f"{entry['images']:,}"]
        lines.append(common.row([*cells, f"{entry['cpu_seconds']:.0f}"]))
    return "\n".join(lines)


def main() -> None:
    parser = common.parser(__doc__)
    common.add_data(parser)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--recipe", default="all-bits")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--output", type=Path, default=Path("runs/ablation"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    settle_process()
    config = configured(options.recipe, options.set)
    train, validation = (config.data.load(options.data, split) for split in ("train", "val"))
    entries = {}
    for name in options.variants:
        folder = options.output / name
        entries[name] = trained(variant(config, name), folder, train, validation, options.steps)
    print(table(entries))


if __name__ == "__main__":
    main()
