import gc
import os
import subprocess
import sys

import pytest
import torch

from ghnqat_sdk.training.process import (
    flush_denormals,
    keep_compiled_convolutions,
    keep_freed_memory,
    sparing_old_objects,
    take_huge_pages,
)

MANY_SHAPES_TWICE = """
import torch
{call}
for turn in range(2):
    print("turn", turn, flush=True)
    for shape in range(700):  # each with a reorder at least, which is kept as well
        image = torch.ones(4, 8, 10 + shape // 25, 10 + shape % 25)
        torch.nn.functional.conv2d(image, torch.ones(8, 8, 3, 3))
"""

MANY_TENSORS_AT_ONCE_AND_AGAIN = """
import resource, torch
{call}
pages = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for turn in range(4):
    if turn == 1:  # the first turn takes its memory from the system in any case
        before = pages()
    tensors = [torch.ones(2_000_000) for _ in range(50)]
    while tensors:
        tensors.pop()
print(pages() - before)
"""


A_LARGE_TENSOR = """
import resource, torch
{call}
pages = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = pages()
torch.ones(50_000_000)
print(pages() - before)
"""
AS_MUCH_ON_LARGE_PAGES = """
import mmap, resource
{call}
memory = mmap.mmap(-1, 200_000_000, flags=mmap.MAP_PRIVATE)
memory.madvise(mmap.MADV_HUGEPAGE)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for place in range(0, 200_000_000, 4096):
    memory[place] = 1
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def compiled_in_the_second_turn(call: str) -> int:
    """Convolutions that oneDNN compiles when 700 shapes come by once more."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("ONEDNN_")
    }
    script = [sys.executable, "-c", MANY_SHAPES_TWICE.format(call=call)]
    done = subprocess.run(
        script,
        env=environment | {"ONEDNN_VERBOSE": "2"},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.split("turn 1")[1].splitlines()
    return sum("create:cache_miss" in line and ",convolution," in line for line in lines)


def test_convolutions_of_many_shapes_are_compiled_once():
    if not compiled_in_the_second_turn(""):
        pytest.skip("oneDNN computes no convolution here")
    ours = "from ghnqat_sdk.training.process import keep_compiled_convolutions as keep; keep()"
    assert compiled_in_the_second_turn(ours) == 0


def test_a_capacity_of_the_environment_stays(monkeypatch):
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "77")
    keep_compiled_convolutions()
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "77"


def new_pages(script: str, call: str) -> int:
    """What `script` says that it took from the system, after `call`."""
    command = [sys.executable, "-c", script.format(call=call)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_large_tensors_lie_on_large_pages(monkeypatch):
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    before = new_pages(A_LARGE_TENSOR, "")
    ours = "from ghnqat_sdk.training.process import take_huge_pages as take; take()"
    after, spared = [], [new_pages(AS_MUCH_ON_LARGE_PAGES, "")]
    for _ in range(3):  # what the system has to spare changes while others run
        after.append(new_pages(A_LARGE_TENSOR, ours))
        spared.append(new_pages(AS_MUCH_ON_LARGE_PAGES, ""))
    if before < 40_000 or max(spared) > before / 10:
        pytest.skip("this system always has large pages, or none to spare for those who ask")
    assert min(after) < before / 10


@pytest.mark.parametrize(("given", "kept"), [(None, "1"), ("0", "0")])
def test_torch_is_asked_for_large_pages_unless_the_environment_says_otherwise(
    given, kept, monkeypatch
):
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", given or "")
    if given is None:
        monkeypatch.delenv("THP_MEM_ALLOC_ENABLE")
    take_huge_pages()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == kept


def test_freed_memory_is_used_again():
    before = new_pages(MANY_TENSORS_AT_ONCE_AND_AGAIN, "")
    if before < 50_000:
        pytest.skip("this machine's malloc keeps what is freed, or its pages are large")
    ours = "from ghnqat_sdk.training.process import keep_freed_memory as keep; keep()"
    assert new_pages(MANY_TENSORS_AT_ONCE_AND_AGAIN, ours) < before / 5


def test_keeping_memory_needs_no_glibc(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert keep_freed_memory() is None


def test_small_numbers_are_taken_for_zero_where_that_is_asked_for():
    assert (torch.tensor([1e-40]) * 0.5).item() > 0
    flush_denormals()
    try:
        assert (torch.tensor([1e-40]) * 0.5).item() == 0
    finally:
        torch.set_flush_denormal(False)


def test_old_objects_are_spared_inside_the_block_only():
    thresholds = gc.get_threshold()
    with sparing_old_objects() as spare:
        before = gc.get_freeze_count()  # Python 3.12 freezes some objects itself
        spare()
        assert gc.get_freeze_count() > before + 10_000
        assert gc.get_threshold()[0] > 10_000  # a network's own objects are no reason to collect
    assert gc.get_freeze_count() == 0
    assert gc.get_threshold() == thresholds
