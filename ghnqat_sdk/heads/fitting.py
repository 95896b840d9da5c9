"""A classifier for any number of classes, in closed form, from images and labels."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ghnqat_sdk.advice import run_batch
from ghnqat_sdk.calls import Call
from ghnqat_sdk.checks import is_number, is_whole
from ghnqat_sdk.data import ImageSet, load_images
from ghnqat_sdk.errors import ArgumentError, UnfamiliarDataWarning
from ghnqat_sdk.graph.graph import ComputationGraph
from ghnqat_sdk.heads.classifiers import (
    Classifier,
    FittedHead,
    can_be_classifier,
    last_layer,
    refuse_fixed,
    traced_classifiers,
)
from ghnqat_sdk.heads.labels import LABELLED, TRAIN_INSTEAD, Labelled, labelled, naming
from ghnqat_sdk.heads.probe import require_own_scores
from ghnqat_sdk.heads.ridge import STRENGTHS
from ghnqat_sdk.heads.unlike import unlike
from ghnqat_sdk.hypernetwork.ghn import HypernetworkConfig
from ghnqat_sdk.prediction import note_fitted
from ghnqat_sdk.progress import progress_bar
from ghnqat_sdk.quantization.calibrate import calibrate, calibrate_and_look
from ghnqat_sdk.quantization.lookup import require_fake_quantized_layers
from ghnqat_sdk.quantization.state import evaluating, signature_of, uncompiled

BATCH = 64
"""Images of a data folder that are run at once."""


@dataclass(frozen=True)
class HeadReport:
    """What `fit_head` wrote, printed one line for each classifier.

    Attributes:
        heads: In the order of `layers`.
    """

    heads: tuple[FittedHead, ...]

    @property
    def accuracy(self) -> float:
        """In percent, of the only classifier or the mean over several, on images held out."""
        return sum(head.accuracy for head in self.heads) / len(self.heads)

    def __str__(self) -> str:
        return "\n".join(map(str, self.heads))


def fit_head(
    qmodel: nn.Module,
    batches: Iterable[Any],
    *,
    ridge: float | Literal["auto"] = "auto",
    layers: str | Mapping[str, int] | None = None,
    progress: bool = True,
) -> HeadReport:
    """Write the weight and bias of a fake-quantized model's classifier from labelled images, in
    place.

    One pass: the features that reach the classifier, quantized as it quantizes them, and ridge
    regression of one-hot labels on them, in closed form. Every class weighs the same, however many
    images it has. The strength is the one of nine whose quantized classifier is right most often on
    every fifth image of each class, at most 4,096 of them; then all images are fitted to. Logits
    are scaled to suit cross-entropy with labels smoothed by 0.2, which leaves training something to
    learn from; its learning rate should be a tenth of a random start's. Calibrate before: a model
    that is not calibrated runs with the statistics of each batch, and stays uncalibrated. Memory
    grows with the square of the features, not with the images.

    Args:
        qmodel: From `predict_quantized_params` or `from_float`, its classifier a linear layer or a
            1 × 1 convolution, which need not have a bias. Its scores, averaged over places, are the
            model's output but for what keeps their order, such as a softmax.
        batches: (images, labels) as a DataLoader gives them, or dicts as for `calibrate`: labels
            (N,), or (N, L) or L tensors (N,) more for several classifiers.
        ridge: Strength, in units of the mean variance of the features within a class, or "auto".
        layers: The classifier's name; or, for several, each name with the column of its labels. By
            default the one before the output.
        progress: Show a bar, on terminals only.

    Returns:
        What was written, with the accuracy on images held out.

    Raises:
        ArgumentError: no fake-quantized model or classifier, labels missing or outside the classes,
            fewer than five images of each of two classes, features that are not finite, a layer
            whose steps are learned or fixed, or that runs more than once, or a model that does not
            answer with the mean of its scores. The model is then as it was.

    Examples:
        >>> import torch, torchvision
        >>> from ghnqat_sdk import from_float
        >>> qmodel = from_float(torchvision.models.resnet18(num_classes=2), (4, 4))
        >>> images, labels = torch.randn(20, 3, 32, 32), torch.arange(20) % 2
        >>> fit_head(qmodel, [(images, labels)]).heads[0].layer
        'fc'
    """
    strengths = _strengths(ridge)
    layers_of = require_fake_quantized_layers(qmodel, "fit_head")
    stream = labelled(batches, signature_of(qmodel), next(qmodel.parameters()).device)
    first = next(stream, None)
    if first is None:
        raise ArgumentError(f"fit_head got no images. Write {LABELLED}.")
    columns, rectified = _chosen(qmodel, layers, *first)
    heads = [Classifier(name, layers_of[name], column) for name, column in columns.items()]
    whole: Iterable[Labelled] = chain([first], stream)
    with torch.no_grad(), evaluating(qmodel), uncompiled():
        for call, labels in progress_bar(whole, "fitting the head") if progress else whole:
            _run_heard(qmodel, call, heads)
            heads = _reached(heads, named=layers is not None)
            for head in heads:
                head.count(labels)
            if call is first[0]:
                require_own_scores(qmodel, heads, rectified, call)
        fits = [head.fit(strengths, rectified=head.name in rectified) for head in heads]
    for head, (linear, _) in zip(heads, fits, strict=True):
        head.write(linear)
    note_fitted(qmodel, [head.name for head in heads])
    return HeadReport(tuple(fitted for _, fitted in fits))


def fit_head_to_folder(
    qmodel: nn.Module, root: str | Path, *, size: int = 32, count: int = 4000
) -> HeadReport:
    """Calibrate a model and fit its head to the training images of a data folder, in place.

    Args:
        qmodel: As in `fit_head`, with as many classes as the folder has.
        root: As in `load_images`; images are normalized by their own mean and deviation.
        size: Side in pixels that images are resized to.
        count: At most so many images, drawn at random, the same in every call.

    Raises:
        ArgumentError: as in `calibrate` and `fit_head`.
        DataError: as in `load_images`.
    """
    images = load_images(root, "train", size, own_statistics=True)
    return fit_head_to_images(qmodel, images.sample(count, seed=0))


def fit_head_to_images(qmodel: nn.Module, images: ImageSet) -> HeadReport:
    """Calibrate a model and fit its head to labelled images, in place."""
    batches = list(images.batches(BATCH))
    calibrate(qmodel, batches)
    return fit_head(qmodel, batches)


def calibrate_and_fit(
    qmodel: nn.Module,
    batches: Iterable[Any],
    config: HypernetworkConfig,
    graph: ComputationGraph,
    *,
    fit: bool,
) -> list[str]:
    """Calibrate a predicted model, and fit its head if asked; warn of images unlike those known.

    Args:
        qmodel: Changed in place.
        batches: For `calibrate`, and with labels for `fit_head`.
        config: Of the hypernetwork that predicted it.
        graph: Of the model.
        fit: Whether to call `fit_head`.

    Returns:
        Names of the classifiers that were fitted.
    """
    if fit and isinstance(batches, Iterator):
        batches = list(batches)  # which is read twice
    remarks: list[str] = []
    report = calibrate_and_look(
        qmodel, batches, lambda call: remarks.extend(unlike(config, call, graph))
    )
    remarks += report.remarks
    heads = fit_head(qmodel, batches).heads if fit else ()
    if remarks:
        warnings.warn(" ".join(remarks), UnfamiliarDataWarning, stacklevel=3)
    return [head.layer for head in heads]


def _run_heard(qmodel: nn.Module, call: Call, heads: list[Classifier]) -> None:
    """One batch, of which each head hears its features."""
    with ExitStack() as stack:
        for head in heads:
            handle = head.layer.register_forward_pre_hook(head.hear, with_kwargs=True)
            stack.callback(handle.remove)
        run_batch(qmodel, call)


def _reached(heads: list[Classifier], named: bool) -> list[Classifier]:
    """The classifiers that the images reached: all that were named, otherwise the only one."""
    reached = [head for head in heads if head.heard is not None]
    if named and len(reached) < len(heads):
        missed = [head.name for head in heads if head.heard is None]
        raise ArgumentError(f"No image reached {', '.join(map(repr, missed))} in evaluation mode.")
    if not reached:
        raise ArgumentError(
            "No classifier runs as a layer before the output, as where a function uses its weight. "
            f"{TRAIN_INSTEAD}"
        )
    if len(reached) > 1 and not named:
        raise ArgumentError(
            f"{len(reached)} classifiers are before the output; expected one. "
            f"{naming(head.name for head in heads)}"
        )
    return reached


def _strengths(ridge: Any) -> tuple[float, ...]:
    if ridge == "auto":
        return STRENGTHS
    if not is_number(ridge) or not 0 < float(ridge) < math.inf:
        raise ArgumentError(
            f"ridge={ridge!r} is no number above 0. Write ridge='auto' or ridge=0.1."
        )
    return (float(ridge),)


def _refuse_dense(names: Iterable[str]) -> None:
    name = next(iter(names), None)
    if name is not None:
        whose = repr(name) if name else "The model"
        raise ArgumentError(
            f"{whose} scores each place of an image, and fit_head fits one class for each image. "
            f"{TRAIN_INSTEAD}"
        )


def _wanted(layers: Any) -> Mapping[str, int] | None:
    """Columns of the labels by classifier; None where none is named.

    Raises:
        ArgumentError: something else is given.
    """
    wanted = {layers: 0} if isinstance(layers, str) else layers
    columns = wanted.values() if isinstance(wanted, Mapping) else ()
    whole = all(is_whole(column) and column >= 0 for column in columns)
    if wanted is not None and (not isinstance(wanted, Mapping) or not whole):
        raise ArgumentError(
            f"layers={layers!r} is no classifier's name, and no mapping from names to columns of "
            "the labels from 0. Write layers='fc' or layers={'fc': 0}."
        )
    return wanted


def _refuse_shared(layers: Mapping[str, nn.Module]) -> None:
    """Classifiers of which one fit would overwrite the other's."""
    holders: dict[int, str] = {}
    for name, layer in layers.items():
        for parameter in layer.parameters():
            other = holders.setdefault(id(parameter), name)
            if other != name:
                raise ArgumentError(
                    f"{other!r} and {name!r} share a parameter, and each would be fitted to labels "
                    f"of its own. Write one of them: layers={other!r}."
                )


def _chosen(
    qmodel: nn.Module, layers: Any, call: Call, labels: list[Tensor]
) -> tuple[dict[str, int], set[str]]:
    """The classifiers with their columns of the labels, and those with a ReLU behind them."""
    wanted = _wanted(layers)
    available = require_fake_quantized_layers(qmodel, "fit_head")
    found = traced_classifiers(qmodel, call) or last_layer(qmodel, available, call)
    if len(labels) > 1 and not isinstance(layers, Mapping):
        raise ArgumentError(
            f"Labels have {len(labels)} columns; expected one class for each image. Write "
            f"labels.argmax(1) for one-hot labels; leave out what follows the labels in a batch, "
            f"as indices. {naming(found)}"
        )
    if wanted is None:
        _refuse_dense(name for name, use in found.items() if use.dense)
        wanted = dict.fromkeys(found, 0)
    if not wanted or not all(can_be_classifier(available.get(name)) for name in wanted):
        named = ", ".join(map(repr, wanted)) or "This model"
        choices = ", ".join(repr(name) for name in available if can_be_classifier(available[name]))
        raise ArgumentError(
            f"{named}: no fake-quantized classifier there, a linear layer or a 1 × 1 convolution "
            f"without stride and padding. Name one with layers=…: {choices or 'there is none'}."
        )
    for name in wanted:
        refuse_fixed(name, available[name])
    _refuse_shared({name: available[name] for name in wanted})
    return dict(wanted), {name for name, use in found.items() if use.rectified}
