"""Training state on disk: one safetensors file, replaced atomically, never a pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ghnqat_sdk.errors import CheckpointError
from ghnqat_sdk.files import write_atomically

CHECKPOINT_FILE = "checkpoint.safetensors"


def save_training_state(folder: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors and JSON-able facts (step, counters) as one file in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(folder / CHECKPOINT_FILE, save(contiguous, {"facts": json.dumps(dict(facts))}))


def load_training_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """What `save_training_state` wrote to `folder`, or None where there is nothing yet.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = folder / CHECKPOINT_FILE
    if not path.exists():
        return None
    try:
        with safe_open(str(path), framework="pt") as file:
            facts = json.loads((file.metadata() or {})["facts"])
            return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"{str(path)!r} is damaged ({error}). Delete it to start the run again, or restore a copy of it."
        ) from error
