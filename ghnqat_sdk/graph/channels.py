"""Which channels of which tensors a layer reads, through concatenations, shuffles and flattening.

Channel 3 of a layer's output is channel 3 wherever it is read, though a concatenation may have made
it channel 61 and a shuffle channel 122. `ChannelRecord` follows the channels of each tensor of one
run; what a layer reads is told as runs of channels, each of one part: a part is a tensor that was
concatenated, or one position of an image that was flattened.

Letters: C channels along one axis of a tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ghnqat_sdk.calls import tensors_in
from ghnqat_sdk.graph.ops import BY_NAME

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
"""Calls that move numbers and change none: to places among channels they do the same."""

_MOST = 100_000
"""Channels that are followed; a layer that reads more, of an image flattened before any pooling,
reads them as counted."""

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


def count_of(runs: Runs) -> int:
    """C."""
    return sum(run.length for run in runs)


def numbers_of(runs: Runs) -> Tensor:
    """(C,) the number of each channel in its part."""
    return torch.cat([torch.arange(first, first + length) for _, first, length in runs])


class _Along(NamedTuple):
    """What stands along the only axis that has channels."""

    axis: int
    runs: Runs


class _Places(NamedTuple):
    """A tensor of places among channels, where several axes have them."""

    places: Tensor
    runs: Runs


class ChannelRecord:
    """What the channels of each tensor of one run are; ids are those of tensors that live.

    Of tensors that are not in it channels are those of axis 1, as they are.
    """

    def __init__(self) -> None:
        self._found: dict[int, _Along | _Places] = {}
        self._canonical: dict[int, tuple[Runs, Runs]] = {}  # ids stay unique while runs live

    def read(self, tensor: Tensor, axis: int) -> Runs:
        """What stands along an axis; () where it is one tensor's channels as they are."""
        if id(tensor) not in self._found:
            return ()
        found = self._told(tensor)
        if not isinstance(found, _Along) or found.axis != axis % tensor.ndim:
            return ()
        if id(found.runs) not in self._canonical:
            self._canonical[id(found.runs)] = found.runs, _canonical(found.runs)
        return self._canonical[id(found.runs)][1]

    def reads(self, op: str, data: Any) -> Runs:
        """What an operation reads of its first argument."""
        return self.read(data, BY_NAME[op].axis) if isinstance(data, Tensor) else ()

    def note(
        self,
        op: str | None,
        function: Any,
        args: Any,
        kwargs: Mapping[str, Any],
        outputs: Sequence[Tensor],
    ) -> None:
        """Take down the channels of what a call gives; `op` is its type, None for transparent
        ones."""
        if op is not None and BY_NAME[op].mixes:
            self._produced(outputs, BY_NAME[op].axis)
            return
        given = list(tensors_in(args)) or list(tensors_in(kwargs))
        if function in _CONCATENATES:
            self._concatenate(given, _dimension(args, kwargs), outputs)
        elif function in _REARRANGES and args and given and args[0] is given[0]:
            self._rearrange(function, args, kwargs, outputs)
        else:
            self._carry(given, outputs)

    def _produced(self, outputs: Sequence[Tensor], axis: int) -> None:
        """Outputs of a layer: channels of their own along an axis."""
        for output in outputs:
            if output.ndim and axis % output.ndim != 1:
                self._found[id(output)] = _plain(output, axis % output.ndim)

    def _concatenate(self, given: Sequence[Tensor], axis: int, outputs: Sequence[Tensor]) -> None:
        axis %= max(1, given[0].ndim)
        pieces = [self._told(tensor) for tensor in given]
        if any(not isinstance(piece, _Along) or piece.axis != axis for piece in pieces):
            return self._carry(given, outputs)
        runs: list[Run] = []
        parts = 0
        for piece in pieces:
            runs += [Run(part + parts, first, length) for part, first, length in piece.runs]
            parts += 1 + max((run.part for run in piece.runs), default=-1)
        self._found[id(outputs[0])] = _Along(axis, tuple(runs))
        return None

    def _rearrange(
        self, function: Any, args: Any, kwargs: Mapping[str, Any], outputs: Sequence[Tensor]
    ) -> None:
        """Do to places among channels what the call does to numbers."""
        first = args[0]
        if function in _RESHAPES and all(o.shape[:2] == first.shape[:2] for o in outputs):
            return self._carry([first], outputs)
        places, runs = self._places(first)
        try:
            moved = list(tensors_in(function(places, *args[1:], **kwargs)))
        except Exception:  # indices without values, or what else places cannot follow
            return None
        for output, found in zip(outputs, moved, strict=False):
            if found.shape == output.shape and output.numel():
                self._found[id(output)] = _Places(found, runs)
        return None

    def _carry(self, given: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """A call that leaves channels where they are, where it gives as many; of several inputs
        those count that have the fewest parts."""
        for output in outputs:
            alike = [tensor for tensor in given if tensor.shape == output.shape]
            if any(id(tensor) not in self._found for tensor in alike):
                self._found.pop(id(output), None)
                continue
            known = [self._told(t) for t in alike or given if id(t) in self._found]
            fitting = [found for found in known if _fits(found, output)]
            if fitting:
                self._found[id(output)] = min(fitting, key=lambda found: len(found.runs))

    def _told(self, tensor: Tensor) -> _Along | _Places:
        """What is known of a tensor, along one axis if only one has channels."""
        found = self._of(tensor)
        if isinstance(found, _Places):
            found = self._found[id(tensor)] = _told(*found)
        return found

    def _of(self, tensor: Tensor) -> _Along | _Places:
        found = self._found.get(id(tensor))
        if found is not None or not tensor.ndim:
            return found or _Along(0, ())
        return _plain(tensor, min(1, tensor.ndim - 1))

    def _places(self, tensor: Tensor) -> _Places:
        """Places among channels in the shape of a tensor, without memory of their own."""
        found = self._of(tensor)
        if isinstance(found, _Places):
            return found
        shape = [1] * tensor.ndim
        if shape:
            shape[found.axis] = -1
        along = torch.arange(count_of(found.runs), dtype=torch.int32, device="cpu")
        return _Places(along.view(shape).expand(tensor.shape), found.runs)


def _dimension(args: Any, kwargs: Mapping[str, Any]) -> int:
    return int(args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis", 0)))


def _plain(tensor: Tensor, axis: int) -> _Along:
    return _Along(axis, (Run(0, 0, tensor.shape[axis]),))


def _fits(found: _Along | _Places, output: Tensor) -> bool:
    """Whether an output can have these channels."""
    if isinstance(found, _Places):
        return found.places.shape == output.shape
    return found.axis < output.ndim and output.shape[found.axis] == count_of(found.runs)


def _told(places: Tensor, runs: Runs) -> _Along | _Places:
    """Places as runs, where one axis alone has channels."""
    few = places
    for axis, (size, stride) in enumerate(zip(places.shape, places.stride(), strict=True)):
        if size > 1 and stride == 0:
            few = few.narrow(axis, 0, 1)
    several = [axis for axis, size in enumerate(few.shape) if size > 1]
    for axis in sorted(several, key=lambda axis: axis != 1) or [min(1, places.ndim - 1)]:
        first = few
        for other in several:
            if other != axis:
                first = first.narrow(other, 0, 1)
        if first.numel() > _MOST:
            break
        if first.shape == few.shape or bool((few == first).all()):
            return _Along(axis, _picked(runs, first.flatten().tolist()))
    return _Places(places, runs)


def _picked(runs: Runs, places: Sequence[int]) -> Runs:
    """The channels at some places, as runs."""
    every = [(part, first + i) for part, first, length in runs for i in range(length)]
    return _joined([every[place] for place in places])


def _joined(channels: Sequence[tuple[int, int]]) -> Runs:
    """(part, channel) pairs as runs."""
    runs: list[Run] = []
    start = 0
    for end in range(1, len(channels) + 1):
        part, first = channels[start]
        if end == len(channels) or channels[end] != (part, first + end - start):
            runs.append(Run(part, first, end - start))
            start = end
    return tuple(runs)


def _canonical(runs: Runs) -> Runs:
    """Parts by where they first appear, a channel that stands there again as one of another part;
    () for one tensor's channels as they are."""
    if len(runs) == 1 and runs[0].first == 0:
        return ()
    seen: dict[tuple[int, int], int] = {}
    parts: dict[tuple[int, int], int] = {}
    channels = []
    if _apart(runs):
        return tuple(
            Run(parts.setdefault((part, 0), len(parts)), first, length)
            for part, first, length in _merged(runs)
        )
    for part, first, length in runs:
        for channel in range(first, first + length):
            again = seen[part, channel] = seen.get((part, channel), -1) + 1
            channels.append((parts.setdefault((part, again), len(parts)), channel))
    return _joined(channels)


def _apart(runs: Runs) -> bool:
    """Whether no channel stands in two runs."""
    ordered = sorted(runs)
    return all(
        before.part != after.part or before.first + before.length <= after.first
        for before, after in pairwise(ordered)
    )


def _merged(runs: Runs) -> Iterator[Run]:
    """Runs that go on in the next one become one."""
    last = runs[0]
    for run in runs[1:]:
        if run.part == last.part and run.first == last.first + last.length:
            last = last._replace(length=last.length + run.length)
        else:
            yield last
            last = run
    yield last
