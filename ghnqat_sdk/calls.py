"""`Call`: the one meaning of "a batch" and of "example inputs", wherever a model is run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.signatures import Signature

_PLAIN = (bool, int, float, complex, str, type(None))


@dataclass(frozen=True)
class Call:
    """The arguments of one run of a model.

    Attributes:
        args: Positional arguments: tensors, or nested tuples, lists, dicts and dataclasses of them.
        kwargs: Keyword arguments.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, inputs: Any) -> Call:
        """What example inputs mean: a tensor, a tuple or list of arguments, or a dict of keywords.

        Examples:
            >>> len(Call.of((torch.empty(2, 3), torch.empty(2))).args)
            2
        """
        if isinstance(inputs, Call):
            return inputs
        if isinstance(inputs, Mapping):
            return cls(kwargs=dict(inputs))
        return cls(tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,))

    @classmethod
    def of_batch(cls, batch: Any, signature: Signature) -> Call:
        """What an entry of a DataLoader means: the first entries are inputs, what follows labels.
        In a mapping, `Signature.takes` tells them apart.

        Examples:
            >>> images, labels = torch.empty(8, 3, 32, 32), torch.zeros(8)
            >>> [tuple(x.shape) for x in Call.of_batch((images, labels), Signature()).tensors()]
            [(8, 3, 32, 32)]

        Raises:
            ArgumentError: a tensor whose rows cannot be cut, a sparse one for example, or an entry
                of a mapping that is neither an input nor a label.
        """
        whole = cls.of(batch)
        if whole.kwargs:
            call = cls(kwargs=signature.inputs_of(whole.kwargs))
        else:
            call = cls(whole.args[: signature.positional])
        for tensor in call.tensors():
            _require_dense(tensor)
        return call

    @property
    def signature(self) -> Signature:
        """Which entries of a batch fill the arguments of this call."""
        return Signature(max(1, len(self.args)), tuple(self.kwargs) or None)

    def run(self, model: Callable[..., Any]) -> Any:
        """What the model returns."""
        return model(*self.args, **self.kwargs)

    def tensors(self) -> list[Tensor]:
        """Every tensor in it, positional arguments first."""
        return list(tensors_in((self.args, self.kwargs)))

    def map(self, function: Callable[[Tensor], Any]) -> Call:
        """The same call with `function` of each tensor in its place."""
        args, kwargs = map_tensors((self.args, dict(self.kwargs)), function)
        return Call(args, kwargs)

    def to(self, device: torch.device | str) -> Call:
        """On another device."""
        return self.map(lambda tensor: tensor.to(device))

    def on_meta(self) -> Call:
        """The same shapes and types, without values."""
        return self.map(meta_like)

    def with_numbers(self) -> Call:
        """The same shapes and types on the CPU: normal floating-point numbers (seed 0), others
        0."""
        return self.map(_numbers_like)

    @property
    def listed(self) -> int:
        """How many images come as a list of tensors (C, H, W), as detectors take them; 0 if none
        do.

        Such a call can be neither cut nor joined with another.
        """
        arguments = (*self.args, *self.kwargs.values())
        return next((len(each) for each in arguments if _is_list_of_images(each)), 0)

    @property
    def rows(self) -> int:
        """N, the first size that all its tensors with dimensions share, or how many images are
        listed.

        Raises:
            ArgumentError: there is no tensor with rows, or the tensors differ in N.
        """
        if self.listed:
            return self.listed
        sizes = [(tensor.ndim, len(tensor)) for tensor in self.tensors() if tensor.ndim]
        if not sizes:
            raise ArgumentError(
                f"A batch has tensors of shapes {self.shapes()}; expected (N, ...). Write, for "
                f"example, [images] for one batch of images (N, C, H, W)."
            )
        _, rows = max(sizes)
        for key, tensor in self.by_key():
            if tensor.ndim and len(tensor) != rows:
                raise ArgumentError(_other_rows(key, tensor, rows))
        return rows

    def by_key(self) -> Iterator[tuple[int | str, Tensor]]:
        """Every tensor with the place or the name of the argument that it is in."""
        arguments: list[tuple[int | str, Any]] = [*enumerate(self.args), *self.kwargs.items()]
        for key, argument in arguments:
            for tensor in tensors_in(argument):
                yield key, tensor

    def without_rows(self) -> list[object]:
        """What all rows share: numbers, words, and the values of tensors without dimensions."""
        leaves = leaves_in((self.args, self.kwargs))
        return [
            (each.dtype, each.item()) if isinstance(each, Tensor) else each
            for each in leaves
            if (each.ndim == 0 if isinstance(each, Tensor) else isinstance(each, _PLAIN))
        ]

    def shapes(self) -> list[tuple[int, ...]]:
        """Of its tensors."""
        return [tuple(tensor.shape) for tensor in self.tensors()]

    def kind(self) -> list[tuple[object, ...]]:
        """The argument, the shape of one row and the type of each tensor: what may be put into one
        batch."""
        return [(key, *tensor.shape[1:], tensor.dtype) for key, tensor in self.by_key()]

    def cut(self, start: int, stop: int) -> Call:
        """Rows `start` to `stop`; what has no rows stays."""
        return self.map(lambda tensor: tensor[start:stop] if tensor.ndim else tensor)

    @staticmethod
    def joined(calls: Sequence[Call]) -> Call:
        """The rows of all `calls`, one after the other; what has no rows is the same in all."""
        columns = zip(*(call.tensors() for call in calls), strict=True)
        joined = iter([torch.cat(column) if column[0].ndim else column[0] for column in columns])
        return calls[0].map(lambda _: next(joined))


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor inside nested tuples, lists, dicts and dataclasses."""
    return (leaf for leaf in leaves_in(value) if isinstance(leaf, Tensor))


def leaves_in(value: Any) -> Iterator[Any]:
    """All that is inside nested tuples, lists, dicts and dataclasses, tensors or not."""
    if isinstance(value, Mapping):
        for item in value.values():
            yield from leaves_in(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from leaves_in(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for each in dataclasses.fields(value):
            yield from leaves_in(getattr(value, each.name))
    else:
        yield value


def map_tensors(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """`value` with `function` of each tensor inside nested containers; what holds none stays."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        items = {key: map_tensors(item, function) for key, item in value.items()}
        return items if type(value) is dict else _rebuilt(value, items)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(item, function) for item in value))
    if isinstance(value, (tuple, list)):
        return type(value)(map_tensors(item, function) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [each.name for each in dataclasses.fields(value) if each.init]
        changed = {name: map_tensors(getattr(value, name), function) for name in names}
        return dataclasses.replace(value, **changed)
    return value


def _other_rows(key: int | str, tensor: Tensor, rows: int) -> str:
    shared = f"batch[{key!r}]" + ("" if len(tensor) == 1 else "[None]")
    others = tensor.ndim - (len(tensor) == 1)
    return (
        f"In a batch of N = {rows}, input {key!r} has shape {tuple(tensor.shape)}; expected {rows} "
        f"rows, or a tensor without dimensions. Expand it to {rows} rows where it is the same for "
        f"all images: {shared}.expand({', '.join(map(str, (rows, *[-1] * others)))})."
    )


def _require_dense(tensor: Tensor) -> None:
    if tensor.is_nested:
        raise ArgumentError(
            "A batch is a nested tensor; expected one size for all rows. Write "
            "images.to_padded_tensor(0.0), or a batch for each size."
        )
    if tensor.layout is not torch.strided:
        raise ArgumentError(
            f"A batch has the layout {tensor.layout}; expected a dense tensor (N, C, H, W). Write "
            f"images.to_dense()."
        )


def _is_list_of_images(value: Any) -> bool:
    listed = isinstance(value, (list, tuple)) and len(value) > 0
    return listed and all(isinstance(each, Tensor) and each.ndim == 3 for each in value)


def _rebuilt(mapping: Mapping[Any, Any], items: dict[Any, Any]) -> Any:
    """A mapping of the same class where that takes items (OrderedDict), else a dict."""
    try:
        return type(mapping)(items)  # type: ignore[call-arg]
    except TypeError:
        return items


def meta_like(tensor: Tensor) -> Tensor:
    """`torch.empty_like` on the meta device, which takes several times as long as this."""
    if tensor.layout is torch.strided and tensor.is_contiguous():
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    return torch.empty_like(tensor, device="meta")


def _numbers_like(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return torch.zeros_like(tensor, device="cpu")
    generator = torch.Generator("cpu").manual_seed(0)
    wide = torch.float32
    numbers = torch.randn(tensor.shape, generator=generator, dtype=wide, device="cpu")
    return numbers.to(tensor.dtype)
