"""The batches of a calibration, put together and cut again into chunks of images that share
statistics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from ghnqat_sdk.advice import require_batches, tensor_of
from ghnqat_sdk.calls import Call
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.signatures import Signature

RANGE_ROWS = 64
"""Images whose ranges are averaged: the batch whose ranges a model is predicted for."""
ROWS = 256
POSITIONS = ROWS * 112 * 112
"""Images and pixels that share statistics; of larger images fewer do, down to `RANGE_ROWS`."""


def rows_together(call: Call) -> int:
    """How many images like those of `call` share statistics.

    Examples:
        >>> import torch
        >>> [rows_together(Call.of(torch.empty(1, 3, side, side))) for side in (32, 112, 160, 224)]
        [256, 256, 125, 64]
    """
    positions = max(math.prod(tensor.shape[2:]) for tensor in call.tensors())
    return min(ROWS, max(RANGE_ROWS, POSITIONS // max(1, positions)))


def chunks_of(batches: Iterable[Any], signature: Signature) -> Iterator[Call]:
    """The same rows in chunks of `rows_together`, whatever the batches: the last has `RANGE_ROWS`
    or more where there are so many. What has no rows, such as a number, is the same in a chunk: a
    batch with another one starts anew."""
    batches = require_batches(batches, "calibrate", "calibrate(qmodel, [images])")
    waiting: list[Call] = []
    rows = 0
    for batch in batches:
        arrived = _checked(Call.of_batch(batch, signature), batch)
        if arrived.listed:  # images of several sizes, which cannot be cut
            yield arrived
            continue
        if waiting and waiting[0].kind() != arrived.kind():
            raise ArgumentError(
                f"calibrate got batches of different kinds: {waiting[0].kind()}, then "
                f"{arrived.kind()}. Pass the same arguments, in one order and with images of one "
                "size, in every batch."
            )
        if waiting and waiting[0].without_rows() != arrived.without_rows():
            if rows:
                yield Call.joined(waiting)
            waiting, rows = [], 0
        waiting.append(arrived)
        rows += arrived.rows
        together = rows_together(arrived)
        # Keep some back, so that the last chunk is never a few leftover images.
        if rows >= together + RANGE_ROWS:
            *chunks, rest = _cut(Call.joined(waiting), together)
            yield from chunks
            waiting, rows = [rest], rest.rows
    if rows:
        yield Call.joined(waiting)


def _cut(call: Call, together: int) -> Iterator[Call]:
    """Chunks of `together` rows, and one of `RANGE_ROWS` rows or more for the rest."""
    while call.rows >= together + RANGE_ROWS:
        yield call.cut(0, together)
        call = call.cut(together, call.rows)
    yield call


def _checked(call: Call, batch: Any) -> Call:
    with_rows = [tensor for tensor in call.tensors() if tensor.ndim]
    if not with_rows:
        raise ArgumentError(
            f"calibrate got a batch of type {type(batch).__name__}; expected tensors (N, C, H, W), "
            f"tuples that start with the model's inputs, or dicts of keyword arguments. Write "
            f"calibrate(qmodel, [{tensor_of(batch) if hasattr(batch, '__array__') else 'images'}]) "
            "for a single batch."
        )
    if all(tensor.ndim < 2 for tensor in with_rows):
        raise ArgumentError(
            f"calibrate got a batch with shapes {call.shapes()}; expected (N, ...). Write "
            f"calibrate(qmodel, [images]) for a single batch."
        )
    return call
