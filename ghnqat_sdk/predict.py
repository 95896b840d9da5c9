"""The main job in one call: a model becomes a graph, the graph becomes parameters, the parameters
go into a copy."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ghnqat_sdk.accounting import PredictionReport, left_in_float
from ghnqat_sdk.bits import FLOAT_BITS, Bits, Pair, parse_bits, resolve_bits
from ghnqat_sdk.errors import ArgumentError, RandomHeadWarning, ReplacedWeightsWarning
from ghnqat_sdk.filling import copy_into, copy_with
from ghnqat_sdk.graph.annotate import annotate_bits, first_last_layers
from ghnqat_sdk.graph.graph import ComputationGraph
from ghnqat_sdk.graph.ops import quantizable_layers
from ghnqat_sdk.graph.trace import trace_with_call
from ghnqat_sdk.heads import use_images
from ghnqat_sdk.hypernetwork.ghn import GraphHypernetwork
from ghnqat_sdk.hypernetwork.pretrained import DEFAULT, load_pretrained
from ghnqat_sdk.quantization.convert import to_fake_quantized, to_float
from ghnqat_sdk.quantization.layers import fake_quantized_layers
from ghnqat_sdk.quantization.ranges import RangeRule, range_rule

Head = Literal["auto", "predict", "keep", "fit"]
_FLOAT = Bits(FLOAT_BITS, FLOAT_BITS)
_OTHER_CLASSES = "its classifier has"


def predict_quantized_params(
    model: nn.Module,
    bits: Pair | Mapping[str, Pair] = (4, 4),
    *,
    first_last_bits: int | None = None,
    ranges: RangeRule | str | None = None,
    hypernetwork: str | Path | GraphHypernetwork = DEFAULT,
    revision: str | None = None,
    example_inputs: Any = None,
    calibration: Iterable[Any] | None = None,
    head: Head = "auto",
    inplace: bool = False,
) -> nn.Module:
    """A fake-quantized copy of `model` whose parameters come from a hypernetwork (GHN-QAT, Yun &
    Wong 2023).

    The copy has the float model's `state_dict` keys, dtypes, devices, `requires_grad` and mode;
    `model` itself, its buffers and the RNG state are untouched. Evaluate it after `calibrate`, or
    pass `calibration`.

    Args:
        model: Any CNN.
        bits: (weight, activation), each 2 to 8, or 32 for float. Or a mapping from patterns of
            layer names to such pairs, of which the first that matches holds: {"stem*": (8, 8), "*":
            (4, 4)}. The hypernetwork is told the bits of each layer.
        first_last_bits: Of the weights and activations of the first and last layers; else as `bits`
            says.
        ranges: How ranges follow from tensors, by default as in the hypernetwork's training;
            `ClippedRanges(per_channel=True)` gives each output channel of a weight its own.
        hypernetwork: "default" for the weights that ship with the package, a Hub repo id, a local
            folder, or an object.
        revision: Branch, tag or commit of a Hub repo.
        example_inputs: A tensor, a tuple of arguments, or a dict of keyword arguments; needed only
            where shapes cannot be guessed. Only their shapes are used.
        calibration: Batches for `calibrate`, called on the result.
        head: What happens to a classifier whose class count differs from the hypernetwork's: "auto"
            keeps the user's values and warns, "predict" predicts it all the same. "keep" keeps
            every classifier. "fit" calls `fit_head` on the result, for any number of classes;
            `calibration` then holds (images, labels).
        inplace: Change `model` itself and return it.

    Returns:
        The fake-quantized model; `prediction_report` tells what was predicted.

    Raises:
        ArgumentError: a wrong argument.
        TraceError: the model could not be traced.
        CheckpointError: the hypernetwork could not be loaded.

    Examples:
        >>> import torch, torchvision
        >>> from ghnqat_sdk import calibrate, predict_quantized_params
        >>> model = torchvision.models.resnet18(num_classes=10)
        >>> qmodel = predict_quantized_params(model, bits=(4, 4))
        >>> report = calibrate(qmodel, [torch.randn(64, 3, 32, 32)])
        >>> qmodel.eval()(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    _check_arguments(model, head, calibration)
    by_layer = resolve_bits(bits, quantizable_layers(model))
    network = hypernetwork
    if not isinstance(network, GraphHypernetwork):
        network = load_pretrained(network, revision=revision)
    rule = range_rule(network.config.ranges if ranges is None else ranges)
    with _plain_tensors():
        graph, call = trace_with_call(model, example_inputs)
        graph = _told(graph, by_layer, bits, first_last_bits)
        _warn_of_trained_weights(model)
        predicted, kept = _predict(network, graph, head)
        result = model if inplace else copy_with(model, predicted)
        with _restored_after_failure(result if inplace else None):
            names, kept = copy_into(result, predicted, kept | _not_floating(result))
            state = to_fake_quantized(result, by_layer, rule)
            state.signature = call.signature
            state.unquantized = left_in_float(graph, state)
            if calibration is not None:
                fitted = use_images(result, calibration, network.config, graph, fit=head == "fit")
                names = tuple(name for name in names if name not in fitted)
                kept |= dict.fromkeys(fitted, "fitted to the labels")
        vars(result)["ghnqat_report"] = PredictionReport(names, kept, state.unquantized)
    if head == "auto" and (reason := _random_head(kept)):
        warnings.warn(reason, RandomHeadWarning, stacklevel=2)
    return result


@contextmanager
def _plain_tensors() -> Iterator[None]:
    """Neither inference mode, whose tensors could never be trained, nor autocast, which rounds."""
    with (
        torch.inference_mode(False),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
    ):
        yield


def _told(
    graph: ComputationGraph,
    by_layer: dict[str, Bits],
    bits: Pair | Mapping[str, Pair],
    first_last_bits: int | None,
) -> ComputationGraph:
    """The graph with the bits of every node; `by_layer` takes on those of the first and last
    layers."""
    if first_last_bits is not None:
        pair = parse_bits((first_last_bits, first_last_bits))
        by_layer |= dict.fromkeys(first_last_layers(graph, by_layer), pair)
    elsewhere = next(iter(by_layer.values()), _FLOAT) if isinstance(bits, Mapping) else bits
    return annotate_bits(graph, by_layer, parse_bits(elsewhere))


@contextmanager
def _restored_after_failure(model: nn.Module | None) -> Iterator[None]:
    """Where `model` is changed in place: the float model that it was, with its values, if that
    fails."""
    if model is None:
        yield
        return
    tensors = (*model.named_parameters(), *model.named_buffers())
    before = {name: tensor.detach().clone() for name, tensor in tensors}
    try:
        yield
    except BaseException:
        to_float(model, inplace=True)
        with torch.no_grad():
            for name, tensor in (*model.named_parameters(), *model.named_buffers()):
                tensor.copy_(before[name])
        raise


def _not_floating(model: nn.Module) -> dict[str, str]:
    parameters = model.named_parameters()
    return {n: "not floating-point" for n, p in parameters if not p.is_floating_point()}


def _warn_of_trained_weights(model: nn.Module) -> None:
    """Say that weights are replaced, where running statistics tell that the model was trained."""
    statistics = (getattr(module, "running_mean", None) for module in model.modules())
    if any(isinstance(mean, Tensor) and not mean.is_meta and mean.any() for mean in statistics):
        warnings.warn(
            f"This {type(model).__name__} has been trained, and the prediction replaces its "
            f"weights. To quantize the weights that it has, write "
            f"ghnqat_sdk.from_float(model, bits=(4, 4)).",
            ReplacedWeightsWarning,
            stacklevel=3,
        )


def _random_head(kept: Mapping[str, str]) -> str | None:
    """What to say of a classifier that is kept for its class count."""
    found = next((name for name, why in kept.items() if why.startswith(_OTHER_CLASSES)), None)
    if found is None:
        return None
    return (
        f"{found!r} keeps its values: {kept[found]}. Fit it to labelled images: "
        f"ghnqat_sdk.fit_head(qmodel, batches), or head='fit' with calibration=batches."
    )


def _check_arguments(model: Any, head: Any, calibration: Any) -> None:
    if not isinstance(model, nn.Module):
        raise ArgumentError(
            f"model is a {type(model).__name__}; expected an nn.Module. Write, for example, "
            f"predict_quantized_params(torchvision.models.resnet18())."
        )
    if head not in ("auto", "predict", "keep", "fit"):
        raise ArgumentError(
            f"head={head!r} is unknown. Write head='auto', 'predict', 'keep' or 'fit'."
        )
    if head == "fit" and calibration is None:
        raise ArgumentError(
            "head='fit' needs labelled images. Pass calibration=[(images, labels), ...]."
        )
    if fake_quantized_layers(model):
        raise ArgumentError(
            f"This {type(model).__name__} is fake-quantized already. Write "
            "predict_quantized_params(to_float(qmodel)) "
            f"to predict it again."
        )


@torch.no_grad()
def _predict(
    network: GraphHypernetwork, graph: ComputationGraph, head: Head
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Predicted tensors, and the reasons for what is kept."""
    kept = dict(graph.unreached)
    kept |= _kept_heads(graph, network.config.num_classes, head)
    (predicted,) = network([graph], channels_last=False)
    return {name: tensor for name, tensor in predicted.items() if name not in kept}, kept


def _kept_heads(graph: ComputationGraph, num_classes: int, head: Head) -> dict[str, str]:
    """Parameters of classifiers, with their biases, that keep the user's values, and why."""
    kept: dict[str, str] = {}
    for index, node in enumerate(graph.nodes):
        if node.op != "classifier" or head == "predict":
            continue
        classes = node.parameters[0].shape[0]
        if head != "keep" and classes == num_classes:
            continue
        why = (
            f"{_OTHER_CLASSES} {classes} classes, the hypernetwork's {num_classes}; "
            f"head='predict' predicts it"
        )
        biases = [
            graph.nodes[t] for s, t in graph.edges if s == index and graph.nodes[t].op == "bias"
        ]
        kept |= {
            p.name: "head='keep'" if head == "keep" else why
            for n in (node, *biases)
            for p in n.parameters
        }
    return kept
