"""What tests of saved hypernetworks share: a graph to predict for, and edits of the files."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from ghnqat_sdk.graph.graph import ComputationGraph, Node, ParameterSpec
from ghnqat_sdk.hypernetwork.ghn import GraphHypernetwork

GRAPH = ComputationGraph(
    (
        Node("input"),
        Node(
            "conv",
            "0",
            (
                ParameterSpec("0.weight", (12, 3, 3, 3), "weight"),
                ParameterSpec("0.bias", (12,), "bias"),
            ),
            (3, 3),
        ),
        Node("classifier", "1", (ParameterSpec("1.weight", (10, 12), "weight"),)),
        Node("output"),
    ),
    ((0, 1), (1, 2), (2, 3)),
).with_bits((4, 4))


def predict(network: GraphHypernetwork) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return network([GRAPH])[0]


def assert_same(a: GraphHypernetwork, b: GraphHypernetwork) -> None:
    torch.testing.assert_close(predict(a), predict(b), rtol=0, atol=0)


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    changed = {key: value for key, value in {**config, **changes}.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(changed))


def edit_weights(folder: Path, **changes: torch.Tensor | None) -> None:
    """Change tensors behind the checksum's back, as another program would."""
    path = folder / "model.safetensors"
    tensors = {
        **load_file(path),
        **{name.replace("__", "."): tensor for name, tensor in changes.items()},
    }
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)
