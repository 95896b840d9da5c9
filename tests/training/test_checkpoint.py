import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from ghnqat_sdk.errors import CheckpointError
from ghnqat_sdk.training.checkpoint import (
    CHECKPOINT_FILE,
    load_training_state,
    pack,
    save_training_state,
    unpack,
)


def test_tensors_and_facts_come_back(tmp_path, same):
    tensors = {"a": torch.randn(3, 2).T, "b.c": torch.tensor(7), "half": torch.ones(2).bfloat16()}
    facts = {"step": 3, "best": 1.5, "nested": {"list": [1, None, "x"]}}
    save_training_state(tmp_path / "new" / "folder", tensors, facts)
    found, found_facts = load_training_state(tmp_path / "new" / "folder")
    assert same(found, tensors)
    assert found_facts == facts


def test_where_there_is_nothing_nothing_is_loaded(tmp_path):
    assert load_training_state(tmp_path) is None
    assert load_training_state(tmp_path / "no" / "folder") is None


def test_what_is_packed_is_unpacked_layout_in_memory_included():
    """Eigenvectors come transposed, and their products would round differently if they were not."""
    value = {
        "state": {0: {"step": torch.tensor(2.0), "Q": [torch.randn(3, 4).T, torch.ones(2)]}},
        "image": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        "betas": (0.9, 0.99),
        "none": None,
        "tensor": 5,
    }
    tensors: dict[str, torch.Tensor] = {}
    packed = json.loads(json.dumps(pack(value, "optimizer", tensors)))
    assert all(tensor.is_contiguous() for tensor in tensors.values())
    found = unpack(packed, tensors)
    assert (found["betas"], found["none"], found["tensor"]) == ([0.9, 0.99], None, 5)
    pairs = [
        (value["state"][0]["step"], found["state"]["0"]["step"]),
        (value["image"], found["image"]),
        *zip(value["state"][0]["Q"], found["state"]["0"]["Q"], strict=True),
    ]
    for ours, theirs in pairs:
        assert torch.equal(ours, theirs)
        assert ours.stride() == theirs.stride()


def test_a_state_whose_layout_was_not_noted_is_read():
    assert torch.equal(unpack({"tensor": "a"}, {"a": torch.ones(2, 3)}), torch.ones(2, 3))


@pytest.fixture
def saved(tmp_path):
    save_training_state(tmp_path, {"a": torch.randn(1000)}, {"step": 1})
    return tmp_path / CHECKPOINT_FILE


def test_a_truncated_state_is_refused(saved):
    saved.write_bytes(saved.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="damaged"):
        load_training_state(saved.parent)


def test_a_flipped_bit_is_found(saved):
    raw = bytearray(saved.read_bytes())
    raw[-1000] ^= 1
    saved.write_bytes(raw)
    with pytest.raises(CheckpointError, match="checksum"):
        load_training_state(saved.parent)


@pytest.mark.parametrize("content", [b"", b"\x80\x04pickle", b"{}"])
def test_what_is_no_state_is_refused(saved, content):
    saved.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        load_training_state(saved.parent)


def test_a_state_without_its_facts_is_refused(saved):
    save_file(load_file(saved), saved)
    with pytest.raises(CheckpointError, match="damaged"):
        load_training_state(saved.parent)


def test_a_state_that_cannot_be_written_leaves_the_one_before(saved, monkeypatch):
    before = saved.read_bytes()

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"cannot be written.*No space left.*Make room"):
        save_training_state(saved.parent, {"a": torch.zeros(1000)}, {"step": 2})
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [CHECKPOINT_FILE]
