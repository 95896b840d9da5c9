"""Which channels of which tensors a layer reads, through concatenations, shuffles and flattening.

Channel 3 of a layer's output is channel 3 wherever it is read, though a concatenation may have made
it channel 61 and a shuffle channel 122. `ChannelRecord` follows the channels of each tensor of one
run; what a layer reads is told as runs of channels, each of one part: a part is a tensor that was
concatenated, or one position of an image that was flattened.

Letters: C channels along one axis of a tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ghnqat_sdk.calls import tensors_in

_PART = 1 << 32
"""Labels of channels are part · 2³² + channel."""

_T = Tensor
_RESHAPES: tuple[Callable[..., Any], ...] = (
    *(torch.reshape, _T.reshape, _T.view, torch.flatten, _T.flatten),
    *(torch.squeeze, _T.squeeze, torch.unflatten, _T.unflatten),
)
_REARRANGES = {
    *_RESHAPES,
    *(torch.permute, _T.permute, torch.transpose, _T.transpose, torch.movedim, _T.movedim),
    *(torch.swapaxes, _T.swapaxes, torch.unsqueeze, _T.unsqueeze, _T.__getitem__),
    *(torch.chunk, _T.chunk, torch.split, _T.split, torch.tensor_split, _T.tensor_split),
    *(torch.narrow, _T.narrow, torch.select, _T.select, torch.unbind, _T.unbind),
    *(torch.index_select, _T.index_select, torch.flip, _T.flip, torch.roll, _T.roll),
    *(_T.expand, _T.contiguous, torch.channel_shuffle, torch.nn.functional.channel_shuffle),
}
"""Calls that move numbers and change none: they do to labels what they do to the tensor."""

_CONCATENATES = {torch.cat, torch.concat, torch.concatenate}


class Run(NamedTuple):
    """Channels next to each other that come from channels next to each other.

    Attributes:
        part: Of which part.
        first: The first of them there.
        length: How many.
    """

    part: int
    first: int
    length: int


Runs = tuple[Run, ...]


class ChannelRecord:
    """What the channels of each tensor of one run are; ids are those of tensors that live."""

    def __init__(self) -> None:
        self._labels: dict[int, Tensor] = {}

    def read(self, tensor: Tensor, axis: int) -> Runs:
        """What stands along an axis; () where it is one tensor's channels as they are."""
        labels = self._labels.get(id(tensor))
        if labels is None or not tensor.ndim:
            return ()
        along = _along(labels, axis % tensor.ndim)
        return () if along is None else _runs(along)

    def produced(self, outputs: Sequence[Tensor], axis: int) -> None:
        """Outputs of a layer: channels of their own along an axis."""
        for output in outputs:
            if output.ndim and axis % output.ndim != 1:
                self._labels[id(output)] = _plain(output, axis % output.ndim)

    def follow(
        self, function: Any, args: Any, kwargs: Mapping[str, Any], outputs: Sequence[Tensor]
    ) -> None:
        """Outputs of a call that is no layer's."""
        given = list(tensors_in(args)) or list(tensors_in(kwargs))
        if function in _CONCATENATES:
            self._concatenate(given, _dimension(args, kwargs), outputs)
        elif function in _REARRANGES and given:
            self._rearrange(function, given[0], args, kwargs, outputs)
        else:
            self._carry(given, outputs)

    def _concatenate(self, given: Sequence[Tensor], axis: int, outputs: Sequence[Tensor]) -> None:
        axis %= max(1, given[0].ndim)
        pieces = [_along(self._of(tensor), axis) for tensor in given]
        if any(piece is None for piece in pieces) or len(outputs) != 1:
            return self._carry(given, outputs)
        parts = 0
        moved = []
        for piece in pieces:
            assert piece is not None
            moved.append(piece + parts * _PART)
            parts += 1 + int(piece.max()) // _PART if len(piece) else 0
        self._labels[id(outputs[0])] = _spread(torch.cat(moved), outputs[0], axis)
        return None

    def _rearrange(
        self,
        function: Any,
        first: Tensor,
        args: Any,
        kwargs: Mapping[str, Any],
        outputs: Sequence[Tensor],
    ) -> None:
        labels = self._labels.get(id(first))
        kept = all(output.shape[:2] == first.shape[:2] for output in outputs)
        if labels is None and function in _RESHAPES and kept:
            return
        if not args or args[0] is not first:
            return
        try:
            moved = list(tensors_in(function(self._of(first), *args[1:], **kwargs)))
        except Exception:  # indices without values, or whatever else labels cannot follow
            return
        for output, label in zip(outputs, moved, strict=False):
            if label.shape == output.shape:
                self._labels[id(output)] = _narrowed(label)

    def _carry(self, given: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """A call that leaves channels where they are, where it gives as many; of several inputs
        those count that have the fewest parts."""
        for output in outputs:
            alike = [tensor for tensor in given if tensor.shape == output.shape]
            if any(id(tensor) not in self._labels for tensor in alike):
                self._labels.pop(id(output), None)
                continue
            known = [self._labels[id(t)] for t in (alike or given) if id(t) in self._labels]
            fitting = [found for label in known if (found := _fitted(label, output)) is not None]
            if fitting:
                self._labels[id(output)] = min(fitting, key=lambda label: int(label.max()))

    def _of(self, tensor: Tensor) -> Tensor:
        """Labels of the shape of a tensor."""
        labels = self._labels.get(id(tensor))
        return _plain(tensor, min(1, tensor.ndim - 1)) if labels is None else labels


def _dimension(args: Any, kwargs: Mapping[str, Any]) -> int:
    return int(args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis", 0)))


def _plain(tensor: Tensor, axis: int) -> Tensor:
    return _spread(torch.arange(tensor.shape[axis], device="cpu"), tensor, axis)


def _spread(along: Tensor, tensor: Tensor, axis: int) -> Tensor:
    """(C,) labels in the shape of a tensor, without memory of their own."""
    shape = [1] * tensor.ndim
    shape[axis] = len(along)
    return along.view(shape).expand(tensor.shape)


def _along(labels: Tensor, axis: int) -> Tensor | None:
    """(C,) labels along an axis; None where they differ along others."""
    if 0 in labels.shape:
        return None
    along = labels
    for other in range(labels.ndim):
        if other != axis:
            along = along.narrow(other, 0, 1)
    only = all(
        size == 1 or step == 0
        for other, (size, step) in enumerate(zip(labels.shape, labels.stride(), strict=True))
        if other != axis
    )
    if not only and not bool((labels == along).all()):
        return None
    return along.flatten()


def _narrowed(labels: Tensor) -> Tensor:
    """The same labels without memory of their own, where they differ along one axis alone."""
    for axis in range(labels.ndim):
        along = _along(labels, axis)
        if along is not None:
            return _spread(along, labels, axis)
    return labels


def _fitted(labels: Tensor, output: Tensor) -> Tensor | None:
    """Labels for an output of another size, where it has as many channels."""
    if labels.shape == output.shape:
        return labels
    if labels.ndim != output.ndim:
        return None
    for axis in range(labels.ndim):
        along = _along(labels, axis)
        if along is not None and len(along) == output.shape[axis]:
            return _spread(along, output, axis)
    return None


def _runs(labels: Tensor) -> Runs:
    """(C,) labels as runs; () where they are those of one tensor as it is."""
    if torch.equal(labels, torch.arange(len(labels))):
        return ()
    seen: dict[int, int] = {}
    parts: dict[tuple[int, int], int] = {}
    pairs = []
    for label in labels.tolist():
        part, channel = divmod(label, _PART)
        again = seen[label] = seen.get(label, -1) + 1  # the same channel at another position
        pairs.append((parts.setdefault((part, again), len(parts)), channel))
    runs = []
    for _, group in groupby(enumerate(pairs), key=lambda e: (e[1][0], e[1][1] - e[0])):
        members = [pair for _, pair in group]
        runs.append(Run(*members[0], len(members)))
    if len(parts) == 1 and len(runs) == 1 and runs[0].first == 0:
        return ()
    return tuple(runs)
