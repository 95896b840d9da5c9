"""Files that are missing, damaged, absurd or of another version are refused, and said why."""

from __future__ import annotations

import json
import pickle
import re

import pytest
import torch
from saved_files import Trap, edit_config, edit_weights

from ghnqat_sdk.errors import CheckpointError
from ghnqat_sdk.hypernetwork.pretrained import load_pretrained


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
        ({"novelty": 1}, "novelty: there is no field of this name"),
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


def test_pickle_in_disguise_is_refused_and_never_run(saved, tmp_path):
    trap = Trap(tmp_path / "sprung")
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


def test_tensor_named_like_a_path_is_refused_and_nothing_is_written(saved):
    before = sorted(saved.parent.rglob("*"))
    edit_weights(saved, **{"../../outside": torch.ones(1)})
    with pytest.raises(
        CheckpointError, match=r"'../../outside' is \[1\], and absent by config\.json"
    ):
        load_pretrained(saved)
    assert sorted(saved.parent.rglob("*")) == before
