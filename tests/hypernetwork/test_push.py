"""Hypernetworks pushed to the Hub."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hub_server import FakeHub, commit_id
from saved_files import assert_same

from ghnqat_sdk.errors import ArgumentError, CheckpointError
from ghnqat_sdk.hypernetwork.pretrained import load_pretrained, push_to_hub


def test_pushed_hypernetwork_is_one_commit_with_a_card_and_loads_again(hub, network, tmp_path):
    url = push_to_hub(network, "me/new", private=True, commit_message="First")
    assert url == f"{hub.url}/me/new/commit/{commit_id(0)}"
    (files,) = hub.repos["me/new"]
    assert sorted(files) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "model.safetensors.sha256",
    ]
    checksum = hashlib.sha256(files["model.safetensors"]).hexdigest()
    assert files["model.safetensors.sha256"] == f"{checksum}  model.safetensors\n".encode()
    assert b"library_name: ghnqat-sdk" in files["README.md"]
    assert b'hypernetwork="me/new"' in files["README.md"]
    assert hub.created[0]["name"] == "new"
    assert "private" in {
        hub.created[0].get("visibility"),
        "private" if hub.created[0].get("private") else None,
    }
    assert_same(load_pretrained("me/new", cache_dir=tmp_path / "cache"), network)


def test_second_push_keeps_the_card_that_the_repo_has(hub, network):
    hub.repos["me/ghn"][0]["README.md"] = b"Mine."
    push_to_hub(network, "me/ghn")
    assert hub.repos["me/ghn"][1]["README.md"] == b"Mine."


def test_push_that_says_something_for_the_card_replaces_it(hub, network):
    hub.repos["me/ghn"][0]["README.md"] = b"Mine."
    push_to_hub(network, "me/ghn", data="CIFAR-10", license="mit")
    card = hub.repos["me/ghn"][1]["README.md"].decode()
    assert "\nlicense: mit\n" in card
    assert "CIFAR-10, 32 × 32 pixels, 10 classes." in card


def test_push_with_a_file_that_is_no_evaluation_sends_nothing(hub, network, saved):
    with pytest.raises(ArgumentError, match="is no evaluation"):
        push_to_hub(network, "me/ghn", evaluations=[saved / "config.json"])
    assert (len(hub.repos["me/ghn"]), hub.log) == (1, [])


@pytest.mark.parametrize("repo", ["me/forbidden", "me/private", "me/broken", "me/two--dashes"])
def test_refused_push_says_so(hub: FakeHub, network, repo):
    with pytest.raises(CheckpointError, match=f"Cannot push to '{repo}': "):
        push_to_hub(network, repo)


@pytest.mark.parametrize("repo", [None, "", "ghn", "a/b/c", "-/x", Path("me/ghn")])
def test_push_needs_owner_and_name(network, repo):
    with pytest.raises(ArgumentError, match="is not 'owner/name'"):
        push_to_hub(network, repo)


def test_a_token_is_used_for_the_whole_push(hub, network):
    push_to_hub(network, "me/new", token="hf_mine")
    assert hub.tokens == {"Bearer hf_mine"}
