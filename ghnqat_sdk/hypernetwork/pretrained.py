"""Hypernetworks on disk and on the Hugging Face Hub: config.json and model.safetensors, never a pickle.

This is the only user of huggingface_hub.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ghnqat_sdk.errors import ArgumentError, CheckpointError
from ghnqat_sdk.hypernetwork.ghn import GraphHypernetwork, HypernetworkConfig

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
DEFAULT = "default"
"""The name of the weights that ship with the package."""

_EMBEDDED = Path(__file__).parent / "weights"


def save_pretrained(hypernetwork: GraphHypernetwork, folder: str | Path) -> Path:
    """Write `config.json` and `model.safetensors` into `folder`, which is made if needed."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: t.detach().cpu().contiguous() for name, t in hypernetwork.state_dict().items()}
    temporary = folder / f".{WEIGHTS_FILE}.tmp"
    save_file(tensors, str(temporary), {"format": "pt"})
    temporary.replace(folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(hypernetwork.config.model_dump_json(indent=2) + "\n")
    return folder


def load_pretrained(source: str | Path = DEFAULT, *, revision: str | None = None) -> GraphHypernetwork:
    """Load a hypernetwork in evaluation mode."""
    folder = _EMBEDDED if source == DEFAULT else Path(source)
    config = HypernetworkConfig.model_validate_json((folder / CONFIG_FILE).read_text())
    model = GraphHypernetwork(config)
    with safe_open(str(folder / WEIGHTS_FILE), framework="pt") as f:
        model.load_state_dict({k: f.get_tensor(k) for k in f.keys()})
    return model.eval()
