from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
import torch
from hub_server import TINY, contents
from saved_files import assert_same, edit_weights, predict
from torch import nn

from ghnqat_sdk.errors import ArgumentError, CheckpointError
from ghnqat_sdk.hypernetwork import pretrained
from ghnqat_sdk.hypernetwork.ghn import GraphHypernetwork
from ghnqat_sdk.hypernetwork.pretrained import (
    hypernetwork_of,
    load_pretrained,
    save_pretrained,
)

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


def test_predictions_read_the_embedded_weights_once_and_nobody_else_gets_them(embedded):
    pretrained._shipped.cache_clear()
    with torch.inference_mode():
        shipped = hypernetwork_of("default")
    assert not any(parameter.is_inference() for parameter in shipped.parameters())
    assert hypernetwork_of("default") is shipped
    assert load_pretrained() is not shipped
    edit_weights(embedded)
    assert hypernetwork_of("default") is shipped
    pretrained._shipped.cache_clear()


def test_embedded_weights_are_verified(embedded):
    edit_weights(embedded)
    with pytest.raises(CheckpointError, match=r"are damaged\. Reinstall the package"):
        load_pretrained()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.safetensors.sha256"])
def test_incomplete_installation_says_reinstall(embedded, name):
    (embedded / name).unlink()
    with pytest.raises(CheckpointError, match=rf"{re.escape(name)}'?\. Reinstall ghnqat-sdk"):
        load_pretrained()
