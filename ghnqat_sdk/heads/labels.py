"""Batches with labels: what the model takes, and the classes that are told apart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ghnqat_sdk.advice import require_batches
from ghnqat_sdk.calls import Call
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.signatures import LABELS, Signature

LABELLED = "fit_head(qmodel, [(images, labels)])"
TRAIN_INSTEAD = "Train it instead: loss = cross_entropy(qmodel.train()(images), labels)."

Labelled = tuple[Call, list[Tensor]]
"""A batch: what the model takes, and the columns of its labels, each (N,) int64."""


def labelled(batches: Any, signature: Signature, device: torch.device) -> Iterator[Labelled]:
    """Batches with images in them, on the model's device, and their labels, on the CPU."""
    for batch in require_batches(batches, "fit_head", LABELLED):
        call = Call.of_batch(batch, signature)
        labels = _labels_of(batch, signature)
        if call.rows:
            yield call.to(device), [column for part in labels for column in _columns(part)]


def _labels_of(batch: Any, signature: Signature) -> list[Any]:
    """What follows the model's inputs."""
    if isinstance(batch, Mapping):
        labels = [value for name, value in batch.items() if not signature.takes(name)]
        if labels:
            return labels
        entries = "".join(f"{name!r}: batch[{name!r}], " for name in batch)
        raise ArgumentError(
            f"fit_head got a batch of {type(batch).__name__} without labels, an entry called one "
            f"of {', '.join(map(repr, LABELS))}. Write fit_head(qmodel, [{{{entries}'labels': "
            "labels}])."
        )
    if isinstance(batch, (tuple, list)) and len(batch) > signature.positional:
        return list(batch[signature.positional :])
    listed = isinstance(batch, (tuple, list))
    count = f" of {len(batch)}, the inputs of the model" if listed else ""
    raise ArgumentError(
        f"fit_head got a batch that is a {type(batch).__name__}{count}, without labels. Write "
        f"{LABELLED}."
    )


def _columns(labels: Any) -> list[Tensor]:
    """The columns, each (N,) int64, of labels (N,) or (N, L), or of a list of such."""
    if not isinstance(labels, Tensor):
        several = isinstance(labels, (tuple, list)) and len(labels) > 0
        if several and all(isinstance(each, Tensor) and each.ndim for each in labels):
            return [column for each in labels for column in _columns(each)]
        raise ArgumentError(_no_tensor(labels))
    if labels.is_floating_point() or labels.is_complex():
        numbers = (
            "labels.argmax(1)" if labels.ndim == 2 and labels.shape[1] > 1 else "labels.long()"
        )
        raise ArgumentError(
            f"Labels are {labels.dtype}; expected whole numbers (N,). Write "
            f"fit_head(qmodel, [(images, {numbers})])."
        )
    if labels.ndim > 2:
        raise ArgumentError(
            f"Labels have shape {tuple(labels.shape)}, a class for each place of an image, and "
            f"fit_head fits one class for each image (N,). Train it instead: "
            "loss = cross_entropy(qmodel.train()(images), labels)."
        )
    if labels.ndim == 0:
        raise ArgumentError(f"Labels are one number, not one for each image. Write {LABELLED}.")
    return list(labels.cpu().long().view(len(labels), -1).unbind(1))


def _no_tensor(labels: Any) -> str:
    """What is wrong with labels that are none, or with what follows them in a batch."""
    words = isinstance(labels, str) or (
        isinstance(labels, (tuple, list)) and any(isinstance(each, str) for each in labels)
    )
    instead = (
        "[(images, numbers)], a number from 0 for each name; leave out paths and other words that "
        "follow the labels"
        if words
        else "[(images, torch.tensor(labels))]"
    )
    return (
        f"Labels are a {type(labels).__name__}; expected a tensor of whole numbers (N,). Write "
        f"fit_head(qmodel, {instead})."
    )


def naming(classifiers: Iterable[str]) -> str:
    """What to write where there are several classifiers, or columns of labels."""
    columns = ", ".join(f"{name!r}: {column}" for column, name in enumerate(classifiers))
    return (
        f"For several heads, predict with head='keep' and name the column of each: "
        f"fit_head(qmodel, batches, layers={{{columns}}})."
    )
