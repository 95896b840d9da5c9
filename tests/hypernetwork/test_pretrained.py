from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub.constants
import huggingface_hub.file_download
import pytest
import torch
from hub_server import TINY, FakeHub, commit_id, contents, point_hub_client_to
from safetensors.torch import load_file, save_file
from torch import nn

from ghnqat_sdk.errors import ArgumentError, CheckpointError
from ghnqat_sdk.graph.graph import ComputationGraph, Node, ParameterSpec
from ghnqat_sdk.hypernetwork import pretrained
from ghnqat_sdk.hypernetwork.ghn import GraphHypernetwork
from ghnqat_sdk.hypernetwork.names import HUB_REPO
from ghnqat_sdk.hypernetwork.pretrained import load_pretrained, push_to_hub, save_pretrained

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


# Saving and loading


def test_loaded_hypernetwork_predicts_exactly_what_the_saved_one_does(network, saved):
    loaded = load_pretrained(saved)
    assert_same(loaded, network)
    assert loaded.config == TINY
    assert not loaded.training
    assert {(p.dtype, p.device.type, p.requires_grad) for p in loaded.parameters()} == {
        (torch.float32, "cpu", True)
    }


def test_str_and_path_name_the_same_folder(network, saved):
    assert_same(load_pretrained(str(saved)), load_pretrained(saved))


def test_loading_draws_no_random_numbers_and_ignores_the_default_dtype(network, saved):
    before = torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        loaded = load_pretrained(saved)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), before)
    assert_same(loaded, network)


def test_loaded_hypernetwork_does_not_depend_on_its_files(network, saved):
    loaded = load_pretrained(saved)
    weights = saved / "model.safetensors"
    weights.write_bytes(bytes(weights.stat().st_size))
    assert_same(loaded, network)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_halves_the_file_and_loads_as_float32(network, saved, tmp_path, dtype):
    half = save_pretrained(network, tmp_path / "half", dtype=dtype)
    loaded = load_pretrained(half)
    assert (half / "model.safetensors").stat().st_size < 0.6 * (
        saved / "model.safetensors"
    ).stat().st_size
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.to(dtype).float())


def test_saving_again_replaces_both_files_and_leaves_no_others(network, saved):
    other = GraphHypernetwork(TINY.model_copy(update={"num_classes": 7}))
    assert save_pretrained(other, str(saved)) == saved
    assert sorted(contents(saved)) == ["config.json", "model.safetensors"]
    assert load_pretrained(saved).config.num_classes == 7


def test_failed_save_leaves_the_old_files_whole(monkeypatch, network, saved):
    before = contents(saved)

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pretrained.os, "replace", full_disk)
    with pytest.raises(CheckpointError, match=r"No space left.*Name another folder"):
        save_pretrained(GraphHypernetwork(TINY), saved)
    assert contents(saved) == before


def test_older_vocabulary_predicts_unknown_node_types_as_other(tmp_path):
    old = GraphHypernetwork(
        TINY.model_copy(update={"vocabulary": ("input", "output", "conv", "other")})
    )
    loaded = load_pretrained(save_pretrained(old, tmp_path / "old"))
    assert predict(loaded)["1.weight"].shape == (10, 12)
    assert_same(loaded, old)


def test_file_without_a_checksum_is_read(network, saved):
    edit_weights(saved)
    assert_same(load_pretrained(saved), network)


# Arguments that cannot be meant


def test_save_refuses_a_path_that_is_a_file(network, saved):
    with pytest.raises(ArgumentError, match="not a folder"):
        save_pretrained(network, saved / "config.json")
    with pytest.raises(CheckpointError, match="Cannot write"):
        save_pretrained(network, saved / "config.json" / "below")
    with pytest.raises(ArgumentError, match="not a folder"):
        save_pretrained(network, None)


def test_save_refuses_what_is_not_a_hypernetwork(tmp_path, network):
    with pytest.raises(ArgumentError, match=r"DataParallel is no GraphHypernetwork.*\.module"):
        save_pretrained(nn.DataParallel(network), tmp_path)
    with pytest.raises(ArgumentError, match=r"dtype=torch\.int8"):
        save_pretrained(network, tmp_path, dtype=torch.int8)


def test_save_refuses_weights_that_are_not_finite_and_writes_nothing(tmp_path):
    network = GraphHypernetwork(TINY)
    with torch.no_grad():
        network.encoder.norm.weight[0] = 1e5
    with pytest.raises(
        ArgumentError, match=r"'encoder.norm.weight' is not finite as torch.float16"
    ):
        save_pretrained(network, tmp_path / "new", dtype=torch.float16)
    with torch.no_grad():
        network.encoder.norm.weight[0] = float("nan")
    with pytest.raises(ArgumentError, match=r"not finite as torch\.float32"):
        save_pretrained(network, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("source", [None, 3, b"folder", ["a", "b"]])
def test_source_of_another_type_is_refused(source):
    with pytest.raises(ArgumentError, match=re.escape(repr(source))):
        load_pretrained(source)


@pytest.mark.parametrize(
    "source",
    ["", "nothing", "./owner/name", "a/b/c", "/no/such/folder", "x" * 5000, "a\0/b", "ü/n"],
)
def test_name_that_is_neither_folder_nor_repo_id_is_refused(source):
    with pytest.raises(CheckpointError, match=r"is not a folder\. Write 'default', a folder"):
        load_pretrained(source)


def test_path_is_never_taken_for_a_repo_id(hub):
    with pytest.raises(CheckpointError, match="not a folder"):
        load_pretrained(Path("me/ghn"))
    assert hub.log == []


def test_file_in_place_of_the_folder_is_refused(saved):
    with pytest.raises(CheckpointError, match="not a folder"):
        load_pretrained(saved / "model.safetensors")


def test_revision_of_a_local_folder_is_refused(saved):
    with pytest.raises(ArgumentError, match="for Hub repos"):
        load_pretrained(saved, revision="main")
    with pytest.raises(ArgumentError, match="for Hub repos"):
        load_pretrained(revision="main")
    with pytest.raises(ArgumentError, match="not a name"):
        load_pretrained("me/ghn", revision=3)


# Damaged files


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(
        CheckpointError, match=rf"{re.escape(name)}.*Name a folder that save_pretrained wrote"
    ):
        load_pretrained(saved)
    (saved / name).mkdir()
    with pytest.raises(CheckpointError):
        load_pretrained(saved)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"[]", b"null", b"[" * 100_000, b"{} {}"])
def test_config_that_is_no_json_object_is_refused(saved, text):
    (saved / "config.json").write_bytes(text)
    with pytest.raises(CheckpointError, match=r"config\.json.*Restore the file") as caught:
        load_pretrained(saved)
    assert len(str(caught.value)) < 600


def test_config_of_many_megabytes_is_refused_unread(saved):
    (saved / "config.json").write_bytes((saved / "config.json").read_bytes() + b" " * 1_000_000)
    with pytest.raises(CheckpointError, match="larger than 1 MB"):
        load_pretrained(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"format": 3, "novelty": 1},
            r"format is 3, and ghnqat-sdk \S+ reads format 2\..*pip install --upgrade ghnqat-sdk",
        ),
        ({"format": 1}, r"format is 1, .* too old: download it again \(newest revision\)"),
        ({"format": "two"}, r"format is 'two', .* reads format 2\. Restore the file"),
        ({"format": ...}, "missing: format"),
        ({"ranges": ..., "s_max": ...}, "missing: s_max, ranges"),
        ({"novelty": 1}, "novelty: Extra inputs are not permitted"),
        ({"num_classes": -1}, "num_classes: Input should be greater than or equal to 2"),
        ({"num_classes": "many", "s_max": 0, "a": 1, "b": 1, "c": 1}, "; and 2 more"),
        ({"encoder": {"type": "oracle"}}, "encoder: .*'oracle'"),
        ({"vocabulary": ["input", "conv"]}, "vocabulary needs 'other'"),
        ({"vocabulary": ["other", "conv", "conv"]}, "each name once"),
        ({"vocabulary": []}, "vocabulary needs 'other'"),
    ],
)
def test_config_that_this_version_cannot_read_is_refused(saved, changes, message):
    edit_config(saved, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(saved)


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: b"",
        lambda raw: raw[:5],
        lambda raw: raw[:200],
        lambda raw: raw[:-1],
        lambda raw: raw + b"\0",
        lambda raw: bytes([*raw[:7], 255, *raw[8:]]),
        lambda raw: raw.replace(b'"F32"', b'"F33"', 1),
        lambda raw: raw.replace(b'"F32"', b'"I32"', 1),
        lambda raw: raw.replace(b"encoder.norm.bias", b"encoder.norm.biaz"),
        lambda raw: raw[:-100] + bytes([raw[-100] ^ 1]) + raw[-99:],
        lambda raw: b"PK\x03\x04" + raw,
    ],
)
def test_damaged_weights_are_refused(saved, damage):
    path = saved / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=r"model\.safetensors.*is damaged.*Restore the file"):
        load_pretrained(saved)


class _Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_pickle_in_disguise_is_refused_and_never_run(saved, tmp_path):
    trap = _Trap(tmp_path / "sprung")
    torch.save({"weight": trap}, tmp_path / "zipped")
    for disguised in (pickle.dumps(trap), (tmp_path / "zipped").read_bytes()):
        (saved / "model.safetensors").write_bytes(disguised)
        with pytest.raises(CheckpointError, match=r"torch\.save is never read"):
            load_pretrained(saved)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        (
            "encoder__norm__weight",
            None,
            r"'encoder.norm.weight' is absent, and \[16\] by config.json",
        ),
        (
            "encoder__norm__weight",
            torch.ones(17),
            r"'encoder.norm.weight' is \[17\], and \[16\] by config.json",
        ),
        (
            "encoder__norm__weight",
            torch.ones(16, dtype=torch.int32),
            "'encoder.norm.weight' is I32",
        ),
        ("backdoor", torch.ones(1), r"'backdoor' is \[1\], and absent by config.json"),
        (
            "encoder__norm__weight",
            torch.full((16,), float("inf")),
            "'encoder.norm.weight' holds NaN or infinity",
        ),
        (
            "encoder__norm__bias",
            torch.full((16,), float("nan")),
            "'encoder.norm.bias' holds NaN or infinity",
        ),
        (
            "encoder__norm__bias",
            torch.full((16,), 1e300, dtype=torch.float64),
            "holds NaN or infinity",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(saved, name, tensor, message):
    edit_weights(saved, **{name: tensor})
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(saved)


def test_config_of_absurd_size_is_refused_before_memory_is_taken(saved):
    decoder = {"hidden": 4096, "tile": 512, "kernel": 31}
    edit_config(saved, num_classes=100_000, decoder=decoder)  # about 800 GB
    with pytest.raises(CheckpointError, match=r"512, 512.*tensors differ"):
        load_pretrained(saved)


def test_header_of_absurd_size_is_refused(saved):
    header = json.dumps(
        {"a": {"dtype": "F32", "shape": [2**60, 2**60], "data_offsets": [0, 4]}}
    ).encode()
    (saved / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(CheckpointError, match="is damaged"):
        load_pretrained(saved)


# The weights that ship with the package


@pytest.fixture
def embedded(monkeypatch, network, tmp_path) -> Path:
    folder = save_pretrained(network, tmp_path / "weights", dtype=torch.float16)
    checksum = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    (folder / "model.safetensors.sha256").write_text(f"{checksum}  model.safetensors\n")
    monkeypatch.setattr(pretrained, "_EMBEDDED", folder)
    return folder


def test_default_is_the_embedded_hypernetwork_even_beside_a_folder_of_that_name(
    monkeypatch, embedded, tmp_path
):
    (tmp_path / "default").mkdir()
    monkeypatch.chdir(tmp_path)
    assert_same(load_pretrained(), load_pretrained("default"))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_pretrained("./default")


def test_embedded_weights_are_verified(embedded):
    edit_weights(embedded)
    with pytest.raises(CheckpointError, match=r"are damaged\. Reinstall the package"):
        load_pretrained()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.safetensors.sha256"])
def test_incomplete_installation_says_reinstall(embedded, name):
    (embedded / name).unlink()
    with pytest.raises(CheckpointError, match=rf"{re.escape(name)}'?\. Reinstall ghnqat-sdk"):
        load_pretrained()


# The Hub


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
    hub.repos["me/ghn"][0]["model.safetensors"] = pickle.dumps(_Trap(tmp_path / "sprung"))
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


def test_tensor_named_like_a_path_is_refused_and_nothing_is_written(saved):
    before = sorted(saved.parent.rglob("*"))
    edit_weights(saved, **{"../../outside": torch.ones(1)})
    with pytest.raises(
        CheckpointError, match=r"'../../outside' is \[1\], and absent by config\.json"
    ):
        load_pretrained(saved)
    assert sorted(saved.parent.rglob("*")) == before


def test_environment_names_the_hub_and_its_cache(hub, tmp_path):
    program = (
        "import sys; from ghnqat_sdk.hypernetwork.pretrained import load_pretrained; "
        "assert 'huggingface_hub' not in sys.modules; "
        "print(load_pretrained('me/ghn').config.num_classes)"
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
