from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
from hub_server import TINY, FakeHub, contents, point_hub_client_to, running_hub

from ghnqat_sdk.hypernetwork.ghn import GraphHypernetwork
from ghnqat_sdk.hypernetwork.pretrained import save_pretrained


@pytest.fixture(scope="module")
def network() -> GraphHypernetwork:
    """A tiny untrained hypernetwork."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GraphHypernetwork(TINY).eval()


@pytest.fixture
def saved(network: GraphHypernetwork, tmp_path: Path) -> Path:
    """Its folder."""
    return save_pretrained(network, tmp_path / "ghn")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, saved: Path) -> Iterator[FakeHub]:
    """A hub with the repo me/ghn, which huggingface_hub takes for the real one."""
    with running_hub() as server:
        server.repos["me/ghn"] = [contents(saved)]
        point_hub_client_to(monkeypatch, server.url)
        yield server
        huggingface_hub.close_session()
