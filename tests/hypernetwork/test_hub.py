"""Weights from the Hub: which commit, what is cached, and what a refusal says."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub.constants
import huggingface_hub.file_download
import pytest
from hub_server import TINY, commit_id, contents, point_hub_client_to
from saved_files import Trap, assert_same

from ghnqat_sdk.errors import ArgumentError, CheckpointError
from ghnqat_sdk.hypernetwork import pretrained
from ghnqat_sdk.hypernetwork.ghn import GraphHypernetwork
from ghnqat_sdk.hypernetwork.names import HUB_REPO
from ghnqat_sdk.hypernetwork.pretrained import load_pretrained, push_to_hub, save_pretrained


def test_hub_repo_loads_from_one_commit_and_then_from_the_cache(
    monkeypatch, hub, network, tmp_path
):
    assert_same(load_pretrained("me/ghn", cache_dir=tmp_path / "cache"), network)
    assert f"GET /me/ghn/resolve/{commit_id(0)}/model.safetensors" in hub.log
    assert not [line for line in hub.log if "main/model.safetensors" in line]
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    hub.log.clear()
    assert_same(load_pretrained("me/ghn", cache_dir=tmp_path / "cache"), network)
    assert hub.log == []


def test_hub_is_the_name_of_the_published_weights_even_beside_a_folder_of_that_name(
    monkeypatch, hub, network, tmp_path
):
    (tmp_path / "hub").mkdir()
    monkeypatch.chdir(tmp_path)
    hub.repos[HUB_REPO] = hub.repos["me/ghn"]
    assert_same(load_pretrained("hub", cache_dir=tmp_path / "cache"), network)
    assert f"GET /{HUB_REPO}/resolve/{commit_id(0)}/model.safetensors" in hub.log


def test_published_weights_that_are_absent_say_so(hub, tmp_path):
    with pytest.raises(CheckpointError, match=f"'{HUB_REPO}'.*there is no such repo"):
        load_pretrained("hub", cache_dir=tmp_path / "cache")


def test_revision_names_an_older_commit(hub, network, saved, tmp_path):
    save_pretrained(GraphHypernetwork(TINY.model_copy(update={"num_classes": 7})), saved)
    hub.repos["me/ghn"].append(contents(saved))
    assert load_pretrained("me/ghn", cache_dir=tmp_path / "cache").config.num_classes == 7
    assert_same(
        load_pretrained("me/ghn", revision=commit_id(0), cache_dir=tmp_path / "cache"), network
    )


def test_local_folder_comes_before_a_hub_repo_of_the_same_name(
    monkeypatch, hub, network, saved, tmp_path
):
    shutil.copytree(saved, tmp_path / "me" / "ghn")
    monkeypatch.chdir(tmp_path)
    assert_same(load_pretrained("me/ghn"), network)
    assert hub.log == []


@pytest.mark.parametrize(
    ("repo", "revision", "message"),
    [
        (
            "me/absent",
            None,
            "no local folder has that name, and from the Hub: there is no such repo",
        ),
        ("me/ghn", "v9", "there is no such revision"),
        ("me/empty", None, "config.json or model.safetensors is missing"),
        ("me/half", None, "config.json or model.safetensors is missing"),
        ("me/gated", None, "the repo is gated. Accept its terms"),
        ("me/private", None, "hf auth login"),
        ("me/forbidden", None, "the Hub refused"),
        ("me/broken", None, "the Hub refused"),
        ("me/two--dashes", None, "not a repo id"),
    ],
)
def test_refusal_of_the_hub_says_what_to_do(hub, tmp_path, repo, revision, message):
    hub.repos["me/empty"] = [{}]
    hub.repos["me/half"] = [{"config.json": hub.repos["me/ghn"][0]["config.json"]}]
    with pytest.raises(CheckpointError, match=message) as caught:
        load_pretrained(repo, revision=revision, cache_dir=tmp_path / "cache")
    assert repr(repo) in str(caught.value)
    assert len(str(caught.value)) < 500


def test_damaged_file_from_the_hub_is_refused(hub, tmp_path):
    hub.repos["me/ghn"][0]["model.safetensors"] = pickle.dumps(Trap(tmp_path / "sprung"))
    with pytest.raises(CheckpointError, match="never read"):
        load_pretrained("me/ghn", cache_dir=tmp_path / "cache")
    assert not (tmp_path / "sprung").exists()


def test_offline_without_a_cached_copy_says_so(monkeypatch, hub, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE is set"):
        load_pretrained("me/ghn", cache_dir=tmp_path / "cache")
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE is set"):
        push_to_hub(load_pretrained(tmp_path / "ghn"), "me/ghn")


def test_unreachable_hub_says_so(monkeypatch, network, tmp_path):
    point_hub_client_to(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(CheckpointError, match=r"cannot be reached.*ConnectError"):
        load_pretrained("me/ghn", cache_dir=tmp_path / "cache")
    with pytest.raises(
        CheckpointError, match=r"Cannot push to 'me/ghn': the Hub cannot be reached"
    ):
        push_to_hub(network, "me/ghn")


def test_unreachable_hub_is_asked_once(monkeypatch, tmp_path):
    """A misspelt local path is told so at once."""
    point_hub_client_to(monkeypatch, "http://127.0.0.1:9")
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    with pytest.raises(CheckpointError, match="no local folder has that name, and from the Hub"):
        load_pretrained("my/folder", cache_dir=tmp_path / "cache")
    assert pauses == []


def test_unreachable_hub_leaves_what_is_in_the_cache(monkeypatch, hub, network, tmp_path):
    load_pretrained("me/ghn", cache_dir=tmp_path / "cache")
    point_hub_client_to(monkeypatch, "http://127.0.0.1:9")
    assert_same(load_pretrained("me/ghn", cache_dir=tmp_path / "cache"), network)
    (weights,) = (tmp_path / "cache").glob("models--me--ghn/snapshots/*/model.safetensors")
    weights.unlink()
    with pytest.raises(CheckpointError, match="cannot be reached"):
        load_pretrained("me/ghn", cache_dir=tmp_path / "cache")


def test_silent_hub_times_out(monkeypatch, hub, tmp_path):
    def never(*_, **__):
        raise TimeoutError("The read operation timed out")

    monkeypatch.setattr(huggingface_hub.file_download, "get_hf_file_metadata", never)
    with pytest.raises(CheckpointError, match=r"cannot be reached.*timed out"):
        load_pretrained("me/ghn", cache_dir=tmp_path / "cache")


def test_slow_hub_is_waited_for(hub, network, tmp_path):
    hub.pause = 0.3
    assert_same(load_pretrained("me/ghn", cache_dir=tmp_path / "cache"), network)


def test_download_that_breaks_off_leaves_nothing_that_is_taken_for_whole(hub, network, tmp_path):
    hub.cuts = 1000
    for _ in range(2):
        with pytest.raises(CheckpointError, match="Cannot load 'me/ghn'"):
            load_pretrained("me/ghn", cache_dir=tmp_path / "cache")
    hub.cuts = 0
    assert_same(load_pretrained("me/ghn", cache_dir=tmp_path / "cache"), network)


def test_half_written_cache_is_completed(hub, network, tmp_path):
    load_pretrained("me/ghn", cache_dir=tmp_path / "cache")
    weights = next((tmp_path / "cache").glob("models--me--ghn/snapshots/*/model.safetensors"))
    blob = weights.resolve()
    blob.rename(blob.with_name(f"{blob.name}.incomplete"))  # what a download killed half-way leaves
    with blob.with_name(f"{blob.name}.incomplete").open("r+b") as file:
        file.truncate(100)
    assert_same(load_pretrained("me/ghn", cache_dir=tmp_path / "cache"), network)


def test_truncated_file_in_the_cache_is_refused(hub, tmp_path):
    load_pretrained("me/ghn", cache_dir=tmp_path / "cache")
    weights = next((tmp_path / "cache").glob("models--me--ghn/snapshots/*/model.safetensors"))
    weights.resolve().write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="is damaged"):
        load_pretrained("me/ghn", cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("folder", ["/proc/nowhere", "a file"])
def test_cache_that_cannot_be_written_says_so(hub, tmp_path, folder):
    (tmp_path / "a file").write_text("")
    with pytest.raises(
        CheckpointError, match="Check the connection, HF_ENDPOINT and the cache folder"
    ):
        load_pretrained("me/ghn", cache_dir=tmp_path / folder)


def test_cache_is_only_read_once_it_is_complete(monkeypatch, hub, network, tmp_path):
    """As on a machine whose cache somebody else filled, and which may not write there."""
    load_pretrained("me/ghn", cache_dir=tmp_path / "cache")
    before = {
        path: path.lstat().st_mtime_ns for path in (tmp_path / "cache").rglob("*") if path.is_file()
    }
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert_same(load_pretrained("me/ghn", cache_dir=tmp_path / "cache"), network)
    assert {
        path: path.lstat().st_mtime_ns for path in (tmp_path / "cache").rglob("*") if path.is_file()
    } == before


def test_two_processes_that_download_at_once_both_load(hub, tmp_path):
    hub.pause = 0.2
    program = (
        "from ghnqat_sdk import load_pretrained; "
        "print(load_pretrained('me/ghn').config.num_classes)"
    )
    root = Path(pretrained.__file__).parents[2]
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "PYTHONPATH": str(root),
    }
    environment |= {"HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub")}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    assert [process.communicate()[0].strip() for process in both] == ["10", "10"]


@pytest.mark.parametrize(
    "source", ["../me/ghn", "me/../../etc", "me/..", "~root/x", "me/ghn/../../x", "//host/x"]
)
def test_path_out_of_the_folder_is_never_asked_of_the_hub(hub, source):
    with pytest.raises(CheckpointError, match="is not a folder"):
        load_pretrained(source)
    assert hub.log == []


@pytest.mark.parametrize("revision", ["../../../other/repo", "..", "%2e%2e", "refs/../main"])
def test_revision_out_of_the_repo_is_refused(hub, tmp_path, revision):
    hub.repos["other/repo"] = hub.repos["me/ghn"]
    with pytest.raises(
        (ArgumentError, CheckpointError), match=r"is not a name|there is no such revision"
    ):
        load_pretrained("me/ghn", revision=revision, cache_dir=tmp_path / "cache")
    assert not [path for path in tmp_path.rglob("*.safetensors") if "cache" in path.parts]


def test_environment_names_the_hub_and_its_cache(hub, tmp_path):
    program = (
        "import sys; from ghnqat_sdk.hypernetwork.pretrained import load_pretrained; assert "
        "'huggingface_hub' not in sys.modules; print(load_pretrained('me/ghn').config.num_classes)"
    )
    root = Path(pretrained.__file__).parents[2]
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "PYTHONPATH": str(root),
    }
    environment |= {"HF_HUB_CACHE": str(tmp_path / "home" / "hub"), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "10", done.stderr
    assert list((tmp_path / "home" / "hub").glob("models--me--ghn/snapshots/*/model.safetensors"))
