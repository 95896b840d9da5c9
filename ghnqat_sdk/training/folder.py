"""What the folder of a run holds, and the recipes that ship; nothing slow is imported here."""

from __future__ import annotations

from pathlib import Path

from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.hypernetwork.names import CONFIG_FILE

RUN_FILE = "run.json"
"""Its config."""

CHECKPOINT_FILE = "checkpoint.safetensors"
"""Its state, to resume from."""

LOG_FILE = "log.jsonl"
"""A line of figures for each validation, or checkpoint of processes that do not wait."""

LOCK_FILE = "run.lock"
"""Held by who trains it; the file stays."""

BEST_FOLDER = "best"
"""The averaged weights that validated best, as `load_pretrained` reads them."""

LAST_FOLDER = "last"
"""Those of the last checkpoint."""

RECIPES = Path(__file__).with_name("recipes")
"""Configs of runs that have a name."""


def check_unused(folder: str | Path) -> None:
    """Refuse a folder for an adaptation that holds a run, or a hypernetwork.

    Raises:
        ArgumentError: so it does.
    """
    holds = {RUN_FILE: "a run", CHECKPOINT_FILE: "a run", CONFIG_FILE: "a hypernetwork"}
    found = [what for name, what in holds.items() if Path(folder, name).exists()]
    if found:
        raise ArgumentError(f"{str(folder)!r} holds {found[0]} already. Choose another --output.")


def recipe_names() -> list[str]:
    """Names that `load_recipe` takes."""
    return sorted(path.stem for path in RECIPES.glob("*.json"))
