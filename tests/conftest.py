import importlib
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

from ghnqat_sdk.graph.graph import ComputationGraph, Node, ParameterSpec
from ghnqat_sdk.hypernetwork.decoder import DecoderConfig
from ghnqat_sdk.hypernetwork.encoders import TransformerConfig
from ghnqat_sdk.hypernetwork.ghn import GraphHypernetwork, HypernetworkConfig

torch.set_num_threads(1)
if not torch.cuda.is_available():
    # Kernels in Triton are then run by its interpreter; it looks when it is imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")

DATA = Path(__file__).parent / "data" / "cifar10"
SMALL = HypernetworkConfig(
    encoder=TransformerConfig(width=16, layers=1, heads=2),
    decoder=DecoderConfig(hidden=16, tile=8, kernel=3),
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Processes for `-n auto`: none of their own for files that are named, else up to four."""
    named = any(argument.partition("::")[0].endswith(".py") for argument in config.args)
    return 0 if named else min(4, os.cpu_count() or 1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what needs a CUDA device where there is none."""
    if not torch.cuda.is_available():
        items[:] = [item for item in items if item.get_closest_marker("cuda") is None]


@pytest.fixture
def data() -> Path:
    """500 real images: 20 for training and 30 for testing of each class."""
    return DATA


@pytest.fixture
def benchmark_module(monkeypatch) -> Callable[[str], ModuleType]:
    """Imports a script of `benchmarks/` by its name."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return importlib.import_module


@pytest.fixture
def small() -> GraphHypernetwork:
    """A small untrained hypernetwork, the same in every test."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GraphHypernetwork(SMALL).eval()


@pytest.fixture
def diamond() -> ComputationGraph:
    """input → conv → (relu, conv) → sum → classifier → output."""
    nodes = (
        Node("input"),
        Node("conv", "a", (ParameterSpec("a.weight", (12, 3, 3, 3), "weight"),), kernel=(3, 3)),
        Node("relu"),
        Node("conv", "b", (ParameterSpec("b.weight", (12, 12, 1, 1), "weight"),)),
        Node("sum"),
        Node("classifier", "c", (ParameterSpec("c.weight", (10, 12), "weight"),)),
        Node("output"),
    )
    return ComputationGraph(nodes, ((0, 1), (1, 2), (1, 3), (2, 4), (3, 4), (4, 5), (5, 6)))
