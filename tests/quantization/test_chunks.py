"""What images share statistics."""

import re

import pytest
import torch

from ghnqat_sdk.calls import Call
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.quantization.chunks import chunks_of, rows_together
from ghnqat_sdk.signatures import Signature


def sizes(total: int, size: int, side: int = 1) -> list[int]:
    images = torch.empty(1, 1, 1, 1).expand(total, 3, side, side)
    return [chunk.rows for chunk in chunks_of(images.split(size), Signature())]


@pytest.mark.parametrize("size", [1, 64, 100, 1000])
def test_chunks_do_not_depend_on_the_batches_and_the_last_is_no_small_one(size):
    assert sizes(10, size) == [10]
    assert sizes(319, size) == [319]
    assert sizes(320, size) == [256, 64]
    assert sizes(900, size) == [256, 256, 256, 132]


@pytest.mark.parametrize(("side", "rows"), [(32, 256), (112, 256), (160, 125), (224, 64)])
def test_of_large_images_fewer_share_statistics(side, rows):
    assert rows_together(Call.of(torch.empty(1, 3, side, side, device="meta"))) == rows


def test_large_images_come_in_chunks_that_a_small_memory_holds():
    assert sizes(200, 16, side=512) == [64, 64, 72]


def test_rows_stay_in_order():
    rows = torch.arange(700.0).view(700, 1)
    chunks = list(chunks_of(rows.split(90), Signature()))
    assert torch.equal(torch.cat([chunk.args[0] for chunk in chunks]), rows)


def test_lists_of_images_are_taken_as_they_come():
    listed = ([torch.empty(3, 4, 4), torch.empty(3, 5, 5)],)
    assert [chunk.rows for chunk in chunks_of([listed, listed], Signature())] == [2, 2]


def test_batches_of_different_kinds_are_refused():
    x, y = torch.empty(2, 3), torch.empty(2, 4)
    for batches in ([x, y], [{"a": x, "b": x}, {"b": x, "a": x}], [{"a": x}, {"b": x}]):
        with pytest.raises(ArgumentError, match="different kinds"):
            list(chunks_of(batches, Signature()))


@pytest.mark.parametrize("made", [torch.tensor, float], ids=["tensors", "numbers"])
@pytest.mark.parametrize("named", [True, False])
def test_what_has_no_rows_is_the_same_in_a_chunk(made, named):
    steps = [0, 0, 1, 1, 1, 0]
    pairs = [(torch.full((4, 3), step), made(step)) for step in steps]
    batches = [{"x": x, "t": t} for x, t in pairs] if named else pairs
    chunks = list(chunks_of(batches, Signature(2)))
    assert [chunk.rows for chunk in chunks] == [8, 12, 4]
    for chunk in chunks:
        x, t = chunk.kwargs.values() if named else chunk.args
        assert (x == t).all()


@pytest.mark.parametrize(
    ("batch", "advice"),
    [
        (
            {"x": torch.empty(8, 3, 2, 2), "t": torch.empty(1, 3, 1, 1)},
            "['t'].expand(8, -1, -1, -1)",
        ),
        ({"t": torch.empty(3), "x": torch.empty(8, 3, 2, 2)}, "['t'][None].expand(8, -1)"),
        ((torch.empty(8, 3, 2, 2), torch.empty(1)), "[1].expand(8)"),
    ],
)
def test_inputs_without_rows_of_their_own_are_told_how_to_get_them(batch, advice):
    with pytest.raises(ArgumentError, match=re.escape(f"all images: batch{advice}.")) as raised:
        list(chunks_of([batch], Signature(2)))
    assert "N = 8" in str(raised.value)
