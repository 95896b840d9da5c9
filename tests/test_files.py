"""Files of the package: whole or not there, and with the mode that `open` gives."""

import json
import math
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import save_file
from torch import nn

import ghnqat_sdk as gq
from ghnqat_sdk.cli.main import main
from ghnqat_sdk.files import as_json, make_folder, replacing, write_atomically
from ghnqat_sdk.search.results import results_file
from ghnqat_sdk.training.checkpoint import writing


@pytest.fixture(autouse=True)
def umask():
    before = os.umask(0o027)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def cnn() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 9))


def predict_into(folder: Path, small: gq.GraphHypernetwork) -> None:
    weights = str(gq.save_pretrained(small, folder / "weights"))
    file = str(folder / "model.safetensors")
    assert main(["predict", "deepnets/id/20", "--hypernetwork", weights, "--output", file]) == 0


WRITERS: dict[str, Callable[[Path, gq.GraphHypernetwork], object]] = {
    "bytes": lambda folder, _: write_atomically(folder / "file", b"x"),
    "a quantized model": lambda folder, _: gq.save_quantized(gq.from_float(cnn()), folder / "m"),
    "a hypernetwork": lambda folder, small: gq.save_pretrained(small, folder / "weights"),
    "predict": predict_into,
}


@pytest.mark.parametrize("writer", WRITERS)
def test_files_have_the_mode_that_the_umask_leaves(tmp_path, small, writer):
    WRITERS[writer](tmp_path, small)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written
    assert {path.name: oct(mode(path)) for path in written} == {
        path.name: "0o640" for path in written
    }


def test_a_file_that_is_replaced_keeps_its_mode(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o604)
    write_atomically(path, b"new")
    assert (path.read_bytes(), mode(path)) == (b"new", 0o604)


def test_a_writer_that_makes_its_own_file_gets_the_mode_as_well(tmp_path):
    path = tmp_path / "file.safetensors"
    with replacing(path) as temporary:
        save_file({"x": nn.Linear(2, 2).weight.detach()}, temporary)
        temporary.chmod(0o600)
    assert mode(path) == 0o640


def test_a_block_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="full"), replacing(path) as temporary:  # noqa: PT012
        temporary.write_bytes(b"half")
        raise OSError("full")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b"])
def test_a_name_that_no_file_can_have_is_an_error_of_the_disk(tmp_path, small, name):
    folder = tmp_path / name
    for write in (lambda: write_atomically(folder, b"x"), lambda: make_folder(folder)):
        with pytest.raises(OSError, match="cannot have such a character"):
            write()
    with pytest.raises(gq.CheckpointError, match="Cannot write"):
        gq.save_quantized(gq.from_float(cnn()), folder)
    with pytest.raises(gq.CheckpointError, match="Cannot write"):
        gq.save_pretrained(small, folder)
    with pytest.raises(gq.CheckpointError, match="cannot be written"), writing(folder):
        pass
    with pytest.raises(gq.ArgumentError, match="is no file"):
        results_file(folder)


def test_numbers_that_are_not_finite_are_null_for_machines():
    facts = {"loss": math.nan, "norms": (math.inf, -math.inf, 1.5)}
    assert json.loads(as_json(facts), parse_constant=pytest.fail) == {
        "loss": None,
        "norms": [None, None, 1.5],
    }
