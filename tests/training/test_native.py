import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from ghnqat_sdk.training import native
from ghnqat_sdk.training.kernels import normalise_clip_round, round_weight
from ghnqat_sdk.training.rounding import ActivationRounding, Clip

COMPILES = pytest.mark.skipif(native.library() is None, reason="there is no C++ compiler here")


@pytest.fixture(autouse=True)
def _forget_the_library():
    """Each test looks for a compiler anew, and those after it as well."""
    native.library.cache_clear()
    yield
    native.library.cache_clear()


@pytest.fixture
def empty_cache(monkeypatch, tmp_path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "ghnqat-sdk"


def numbers() -> list[torch.Tensor]:
    """What a norm and a weight give, with their gradients."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 24, 5, 5, generator=generator).requires_grad_()
    gain = torch.rand(24, generator=generator).requires_grad_()
    y = normalise_clip_round(x, gain, gain, 1e-5, Clip(0.0), ActivationRounding(), compiled=True)
    w = round_weight(x, 2.6, 15, torch.float32, compiled=True)
    return [y, w, *torch.autograd.grad(y.square().sum() + w.square().sum(), [x, gain])]


def without_compiler(monkeypatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "/no/such/folder")


def broken_compiler(monkeypatch, tmp_path: Path, script: str) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text(f"#!/bin/sh\n{script}\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))


@COMPILES
def test_the_kernels_run_on_what_they_are_written_for():
    assert native.runs_on(torch.ones(2), torch.ones(2, dtype=torch.bfloat16))
    assert not native.runs_on(torch.ones(2), torch.ones(2, dtype=torch.float64))
    assert not native.runs_on(torch.ones(2, dtype=torch.float16))
    assert not native.runs_on(torch.ones(2, device="meta"))


def test_without_a_compiler_the_numbers_are_the_same(monkeypatch):
    expected = numbers()
    native.library.cache_clear()
    without_compiler(monkeypatch)
    assert native.library() is None
    assert not native.runs_on(torch.ones(2))
    torch.testing.assert_close(numbers(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "script",
    ["exit 1", "exit 0", "for last; do :; done; echo no library > kernels.so", "kill -9 $$"],
    ids=["fails", "writes nothing", "writes elsewhere", "dies"],
)
def test_a_broken_compiler_is_as_good_as_none(monkeypatch, empty_cache, tmp_path, script):
    monkeypatch.chdir(tmp_path)
    broken_compiler(monkeypatch, tmp_path, script)
    assert native.library() is None
    assert not list(empty_cache.glob("*"))
    assert all(tensor.isfinite().all() for tensor in numbers())


def test_what_a_compiler_writes_that_is_no_library_is_not_loaded(
    monkeypatch, empty_cache, tmp_path
):
    script = 'while [ "$1" != "-o" ]; do shift; done; echo "no library" > "$2"'
    broken_compiler(monkeypatch, tmp_path, script)
    assert native.library() is None


@pytest.mark.parametrize("name", ["no-such-compiler", "", "c++ -m64"])
def test_a_compiler_that_is_not_there_is_none(monkeypatch, empty_cache, name):
    without_compiler(monkeypatch)
    monkeypatch.setenv("CXX", name)
    assert native.library() is None


def test_a_cache_that_cannot_be_written_is_as_good_as_none(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert native.library() is None


def test_without_a_home_there_is_no_cache(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert native.library() is None


@COMPILES
def test_the_library_is_compiled_once_and_found_again(monkeypatch, empty_cache, tmp_path):
    (tmp_path / "small.cpp").write_text('extern "C" int answer() { return 42; }')
    monkeypatch.setattr(native, "_SOURCES", (tmp_path / "small.cpp",))
    assert native.library().answer() == 42
    assert [path.suffix for path in empty_cache.glob("*")] == [".so"]
    native.library.cache_clear()

    def refused(*arguments, **options):
        raise AssertionError("compiled again")

    monkeypatch.setattr(subprocess, "run", refused)
    assert native.library().answer() == 42


def test_another_source_or_processor_is_another_library(monkeypatch, empty_cache, tmp_path):
    script = 'while [ "$1" != "-o" ]; do shift; done; echo "no library" > "$2"'
    broken_compiler(monkeypatch, tmp_path, script)
    source = tmp_path / "kernels.cpp"
    source.write_bytes(native._SOURCES[0].read_bytes() + b"\n")
    for change in (
        lambda: None,
        lambda: monkeypatch.setattr(native, "_processor", lambda: "flags: another"),
        lambda: monkeypatch.setattr(native, "_SOURCES", (source, *native._SOURCES[1:])),
    ):
        change()
        native.library.cache_clear()
        native.library()
    assert len(list(empty_cache.glob("*.so"))) == 3


@COMPILES
def test_loading_the_library_changes_nothing_in_the_rest_of_the_process(tmp_path):
    """Some compilers link code that makes every thread take small numbers for zero."""
    copied = shutil.copy(native.library()._name, tmp_path / "again.so")
    torch.set_flush_denormal(False)
    ctypes.CDLL(str(copied))
    assert 0 < (torch.tensor([1e-40]) * 0.5).item() < 1e-40
