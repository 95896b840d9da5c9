"""Classifiers of a fake-quantized model: where they are, and what is gathered of their features."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ghnqat_sdk.advice import run_batch
from ghnqat_sdk.calls import Call, tensors_in
from ghnqat_sdk.copying import copy_module
from ghnqat_sdk.errors import ArgumentError, TraceError
from ghnqat_sdk.graph.torch_calls import argument
from ghnqat_sdk.graph.trace import trace
from ghnqat_sdk.heads.labels import LABELLED, TRAIN_INSTEAD
from ghnqat_sdk.heads.ridge import ClassSums, Linear, Ridge, best_scale, choose_strength
from ghnqat_sdk.quantization.computed import storing
from ghnqat_sdk.quantization.convert import to_float
from ghnqat_sdk.quantization.state import evaluating, uncompiled

HELD_OUT_EACH = 5
"""Every fifth image of each class is held out, to choose the strength and to measure with."""
HELD_OUT_MOST = 4096
"""Features of so many images are kept; all further images are fitted to."""
WIDEST = 16_384
"""Most features of a classifier; the sums over them take 2 GB."""
_SMOOTHING = 0.2  # of labels: scores as sure as fits best leave training nothing to learn from
_SIGMAS = 4.0  # below the mean score of a place that a ReLU leaves as they are


@dataclass(frozen=True)
class FittedHead:
    """One classifier that `fit_head` wrote.

    Attributes:
        layer: Its name.
        classes: K, how many it tells apart.
        images: How many it was fitted to, those held out included.
        held_out: How many the strength was chosen on.
        strength: Of the ridge, in units of the mean variance of the features within a class.
        accuracy: In percent, on the images held out, of a fit to the others, quantized as the layer
            is.
        balanced_accuracy: The mean of the classes' accuracies, in percent.
        absent: Classes without an image, which it never answers.
        unmeasured: Classes of too few images to hold one out; accuracies say nothing of them.
    """

    layer: str
    classes: int
    images: int
    held_out: int
    strength: float
    accuracy: float
    balanced_accuracy: float
    absent: tuple[int, ...] = ()
    unmeasured: tuple[int, ...] = ()

    def __str__(self) -> str:
        remarks = {"no image": self.absent, "none held out": self.unmeasured}
        absent = "".join(
            f"; {what} of class {', '.join(map(str, classes))}"
            for what, classes in remarks.items()
            if classes
        )
        return (
            f"{self.layer or 'model'}: {self.classes} classes from {self.images:,} images, "
            f"strength {self.strength:g}; on {self.held_out:,} held out {self.accuracy:.1f} %, "
            f"mean of classes {self.balanced_accuracy:.1f} %{absent}"
        )


class Classifier:
    """A classifier, and what is gathered of its features while batches run."""

    def __init__(self, name: str, layer: Any, column: int) -> None:
        self.name, self.layer, self.column = name, layer, column
        self.classes, self.width = layer.weight.shape[0], layer.weight[0].numel()
        self.heard: Tensor | None = None
        self.sums: ClassSums | None = None
        self.seen = torch.zeros(self.classes, dtype=torch.int64, device="cpu")
        self.held: list[tuple[Tensor, Tensor]] = []
        self.held_count = 0
        self.place_scatter: Tensor | None = None

    def hear(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep the features (n, D) of a batch, as the layer quantizes them; a map's are
        averaged."""
        if self.heard is not None:
            raise ArgumentError(
                f"The model runs {self.name!r} more than once for a batch; expected once, for its "
                f"output. Let it run on the mean of its features. {TRAIN_INSTEAD}"
            )
        features = self.layer.input_quantizer(argument(args, kwargs, 0, "input")).detach()
        if isinstance(self.layer, nn.Linear):
            features = features.flatten(1, -2) if features.ndim > 2 else features.unsqueeze(1)
        else:
            features = features.flatten(2).mT  # (n, places, D)
        self.heard = features.mean(1).cpu()
        if self.place_scatter is None and features.shape[1] > 1:  # one batch is enough for it
            apart = features - features.mean(1, keepdim=True)
            apart = apart.flatten(0, 1).cpu().double()
            self.place_scatter = apart.T @ apart / len(apart)

    def count(self, columns: list[Tensor]) -> None:
        """Add what was heard, with its labels, to the sums or to what is held out."""
        assert self.heard is not None
        features, self.heard = self.heard, None
        labels = self._labels_of(columns, len(features))
        if not features.isfinite().all():
            raise ArgumentError(
                f"The features of {self.name!r} are not finite. Check the batches for NaN and "
                f"infinity, and normalize them as in training."
            )
        if self.sums is None:
            self.sums = ClassSums(self.classes, self.width)
        held = self._held_out(labels)
        self.sums.add(features[~held], labels[~held])
        self.held.append((features[held].float(), labels[held]))
        self.held_count += int(held.sum())

    def _labels_of(self, columns: list[Tensor], images: int) -> Tensor:
        if self.column >= len(columns):
            raise ArgumentError(
                f"{self.name!r} wants column {self.column} of the labels; a batch has "
                f"{len(columns)}. Write layers={{{self.name!r}: 0}}."
            )
        labels = columns[self.column]
        if len(labels) != images:
            raise ArgumentError(
                f"{len(labels)} labels came with {images} images; expected one for each. "
                f"Write {LABELLED}."
            )
        if labels.min() < 0 or labels.max() >= self.classes:
            raise ArgumentError(
                f"Labels run from {int(labels.min())} to {int(labels.max())}; {self.name!r} has "
                f"{self.classes} classes, 0 to {self.classes - 1}. Build the model with as many "
                f"classes as all of the data has, and count them from 0."
            )
        return labels

    def _held_out(self, labels: Tensor) -> Tensor:
        """(n,) bool: each fifth image of its class, counted over all batches, while there is
        room."""
        ones = nn.functional.one_hot(labels, self.classes)
        rank = self.seen[labels] + ones.cumsum(0).gather(1, labels[:, None]).squeeze(1)
        self.seen += ones.sum(0)
        held = rank % HELD_OUT_EACH == 0
        return held & (held.cumsum(0) + self.held_count <= HELD_OUT_MOST)

    def fit(self, strengths: tuple[float, ...], rectified: bool) -> tuple[Linear, FittedHead]:
        """The classifier of all images, and how the one of those not held out did on the others."""
        if self.sums is None or int((self.seen >= HELD_OUT_EACH).sum()) < 2:
            raise ArgumentError(
                f"{self.name!r} got {int(self.seen.sum())} images of {int((self.seen > 0).sum())} "
                f"classes; expected at least {HELD_OUT_EACH} of each of two or more. Write "
                f"{LABELLED} with more labelled images."
            )
        features, labels = (torch.cat(parts) for parts in zip(*self.held, strict=True))
        held_out = features, labels, self._quantized
        intercept = self.layer.bias is not None
        choice = choose_strength(Ridge(self.sums, intercept), strengths, *held_out)
        self.sums.add(features, labels)
        final = choose_strength(Ridge(self.sums, intercept), [choice.strength], *held_out)
        # At 2 bits the same strength may round worse, even on images that it was now fitted to.
        best = max(final, choice, key=lambda candidate: candidate.rank)
        scale, _ = best_scale(choice.scores, labels, smoothing=_SMOOTHING)
        linear = best.linear.scaled(scale)
        if rectified and linear.bias is not None:
            linear = self._lifted(linear)
        hits = choice.scores.argmax(1) == labels
        fitted = FittedHead(
            self.name,
            self.classes,
            int(self.seen.sum()),
            len(labels),
            choice.strength,
            100 * hits.double().mean().item(),
            choice.accuracy,
            _places(self.seen == 0),
            _places((self.seen > 0) & (labels.bincount(minlength=self.classes) == 0)),
        )
        return linear, fitted

    def _quantized(self, weight: Tensor) -> Tensor:
        """(K, D) as the layer quantizes its weight."""
        like = self.layer.weight
        shaped = weight.view(like.shape).to(like)
        return self.layer.weight_quantizer(shaped).float().cpu().view_as(weight)

    def _lifted(self, linear: Linear) -> Linear:
        """The same probabilities with all scores above 0: a ReLU follows, before places are
        averaged."""
        spread = torch.zeros(self.classes, device="cpu")
        if self.place_scatter is not None:
            weight = linear.weight.double()
            spread = ((weight @ self.place_scatter) * weight).sum(1).sqrt().float()
        features = torch.cat([rows for rows, _ in self.held])
        lowest = (linear(features) - _SIGMAS * spread).min()
        assert linear.bias is not None
        return Linear(linear.weight, linear.bias - lowest)

    def write(self, linear: Linear) -> None:
        """Into the layer's parameters."""
        with torch.no_grad():
            self.layer.weight.copy_(linear.weight.view(self.layer.weight.shape))
            if linear.bias is not None:
                self.layer.bias.copy_(linear.bias)


def _places(mask: Tensor) -> tuple[int, ...]:
    """Where it is true."""
    return tuple(mask.nonzero().flatten().tolist())


def can_be_classifier(layer: Any) -> bool:
    """Whether its scores for each place follow from the features there, so that means of both
    do."""
    if isinstance(layer, nn.Linear):
        return layer.in_features <= WIDEST
    plain = isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and layer.groups == 1
    if not plain or layer.weight[0, 0].numel() > 1 or layer.in_channels > WIDEST:
        return False
    padded = layer.padding not in ("same", "valid") and any(layer.padding)
    return not padded and set(layer.stride) == {1}


def refuse_fixed(name: str, layer: Any) -> None:
    """Raise for a layer whose weight and bias are not what its parameters say."""
    learned = any(True for _ in layer.weight_quantizer.parameters())
    if learned or getattr(layer.weight_quantizer, "frozen_range", None) is not None:
        raise ArgumentError(
            f"The weight of {name!r} has {'learned' if learned else 'fixed'} steps, which belong "
            "to the old weight. Call fit_head before learn_steps."
        )
    tensors: tuple[tuple[Literal["weight", "bias"], Any], ...] = (
        ("weight", layer.weight),
        ("bias", layer.bias),
    )
    for what, tensor in tensors:
        if tensor is not None and type(tensor) is not nn.Parameter:
            call = storing(name, layer, what) or f"layer.{what} = nn.Parameter(...)"
            raise ArgumentError(
                f"The {what} of {name!r} is computed whenever the layer is called; expected a "
                f"parameter, which can be written. Before fit_head, write {call}."
            )


class Use(NamedTuple):
    """What a model does with the scores of a classifier.

    Attributes:
        rectified: A ReLU follows it.
        dense: The model's output has them for each place of an image.
    """

    rectified: bool = False
    dense: bool = False


def traced_classifiers(qmodel: nn.Module, call: Call) -> dict[str, Use]:
    """The classifiers by the graph, each with its use; none if it has no graph."""
    # Images that are listed have their channels first, of which none is cut away.
    few = call if call.listed else call.cut(0, 2)
    try:
        graph = trace(to_float(copy_module(qmodel, share=True), inplace=True), few)
    except TraceError:
        return {}
    found: dict[str, Use] = {}
    for node, _, readers in graph.classifiers():
        rectified = any(graph.nodes[reader].op == "relu" for reader in readers)
        found[node.module] = Use(rectified, node.parameters[0].name in graph.dense)
    return found


def last_layer(qmodel: nn.Module, layers: dict[str, Any], call: Call) -> dict[str, Use]:
    """The layer whose output is the model's own, for models without a graph; none if there is
    none."""
    outputs: dict[str, int] = {}

    def keep(name: str) -> Any:
        return lambda _, __, output: outputs.update({name: output.untyped_storage().data_ptr()})

    with torch.no_grad(), ExitStack() as stack:
        stack.enter_context(evaluating(qmodel))
        stack.enter_context(uncompiled())
        for name, layer in layers.items():
            stack.callback(layer.register_forward_hook(keep(name)).remove)
        result = run_batch(qmodel, call)
    own = {tensor.untyped_storage().data_ptr() for tensor in tensors_in(result)}
    return {name: Use() for name, storage in outputs.items() if storage in own}
