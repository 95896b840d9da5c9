"""A fake-quantized model on disk: model.safetensors, and its bits and ranges as
quantization.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ghnqat_sdk.copying import copy_module
from ghnqat_sdk.errors import ArgumentError, CheckpointError, problems
from ghnqat_sdk.files import digest, make_folder, replacing, require_folder, write_atomically
from ghnqat_sdk.graph.layers import quantizable_layers
from ghnqat_sdk.graph.refusals import refuse_wrapped
from ghnqat_sdk.quantization.convert import fix_learned_steps, to_fake_quantized
from ghnqat_sdk.quantization.lookup import fake_quantized_layers, require_fake_quantized_layers
from ghnqat_sdk.quantization.norms import calibrated_norms
from ghnqat_sdk.quantization.quantizers import FakeQuantizer, FrozenRange
from ghnqat_sdk.quantization.settings import LayerSettings, QuantizationSettings, Rules
from ghnqat_sdk.quantization.state import signature_of, states_of
from ghnqat_sdk.signatures import Signature

SETTINGS_FILE = "quantization.json"
WEIGHTS_FILE = "model.safetensors"


def save_quantized(qmodel: nn.Module, folder: str | Path) -> Path:
    """Write a fake-quantized model's tensors, bits and ranges into `folder`, made if needed, and
    return it.

    Raises:
        ArgumentError: the model is not fake-quantized, wrapped, or calibrated in part; its range
            rule is an object that no file can name; its `state_dict` holds something else than
            tensors with values; or `folder` is no folder's name.
        CheckpointError: the folder cannot be written.
    """
    require_fake_quantized_layers(qmodel, "save_quantized")
    folder = require_folder(folder, "save_quantized(qmodel, 'my-model')")
    _refuse_mixed(qmodel)
    qmodel = copy_module(qmodel, share=True)  # gone when it is written
    fix_learned_steps(qmodel)
    tensors = {names[0]: _stored(names[0], tensor) for names, tensor in _tensors(qmodel)}
    settings = _settings(qmodel)
    try:
        make_folder(folder)
        with replacing(folder / WEIGHTS_FILE) as temporary:
            save_file(tensors, str(temporary), metadata={"format": "pt"})
            settings = settings.model_copy(update={"sha256": digest(load_file(temporary))})
        write_atomically(folder / SETTINGS_FILE, settings.model_dump_json(indent=2).encode())
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"Cannot write to {str(folder)!r} ({error}). Name another folder."
        ) from error
    return folder


def load_quantized(model: nn.Module, folder: str | Path) -> nn.Module:
    """A fake-quantized copy of the float `model` with the tensors, bits and ranges that
    `save_quantized` wrote.

    Args:
        model: Of the architecture that was saved; its values are not used. Names and shapes are
            compared, and what else it computes is not.
        folder: Where `save_quantized` wrote.

    Raises:
        ArgumentError: `model` is no float model, wrapped, or cannot be copied; or a rule of a
            user's own is not imported.
        CheckpointError: the files are missing, damaged, of another version, or of other layers,
            names or shapes.
    """
    if not isinstance(model, nn.Module) or fake_quantized_layers(model):
        what = (
            "is fake-quantized already"
            if isinstance(model, nn.Module)
            else f"is a {type(model).__name__}"
        )
        raise ArgumentError(
            f"model {what}; expected a float nn.Module of the architecture that was saved."
        )
    refuse_wrapped(model, ArgumentError)
    qmodel = copy_module(model)
    with _checking(folder):
        settings, tensors = _read(Path(folder))
        in_float = _float_layers(settings, model)
    bits = {
        name: (layer.weight_bits, layer.activation_bits) for name, layer in settings.layers.items()
    }
    ranges, rounding = settings.made()
    state = to_fake_quantized(
        qmodel,
        bits,
        ranges,
        rounding=rounding,
        inputs=[name for name, layer in settings.layers.items() if layer.reads_inputs],
        skipped=in_float,
    )
    places = _tensors(qmodel)
    with _checking(folder):
        _load(places, tensors)
    state.calibrated = settings.calibrated
    state.normalized = settings.normalized
    state.signature = Signature(settings.inputs, settings.keywords)
    _give_ranges(qmodel, settings)
    for name, norm in calibrated_norms(qmodel).items():
        vars(norm)["reached"] = name not in settings.unreached
    return qmodel


def _settings(qmodel: nn.Module) -> QuantizationSettings:
    """All that a file says of a model without learned steps, the checksum of its tensors aside."""
    layers = fake_quantized_layers(qmodel)
    rules = Rules.of(next(iter(layers.values())).weight_quantizer)
    signature = signature_of(qmodel)
    return QuantizationSettings(
        ranges=rules.ranges,
        rounding=rules.rounding,
        calibrated=all(state.calibrated for state in states_of(qmodel)),
        normalized=all(state.normalized for state in states_of(qmodel)),
        inputs=signature.positional,
        keywords=signature.keywords,
        layers={name: LayerSettings.of(layer, rules) for name, layer in layers.items()},
        unquantized=tuple(quantizable_layers(qmodel).keys() - layers.keys()),
        unreached=tuple(n for n, x in calibrated_norms(qmodel).items() if not x.reached),
        sha256="",
    )


def _read(folder: Path) -> tuple[QuantizationSettings, dict[str, Tensor]]:
    settings = QuantizationSettings.model_validate_json((folder / SETTINGS_FILE).read_bytes())
    tensors = load_file(folder / WEIGHTS_FILE)
    if digest(tensors) != settings.sha256:
        raise ValueError(f"{WEIGHTS_FILE} does not belong to {SETTINGS_FILE}, or is damaged")
    return settings, tensors


@contextmanager
def _checking(folder: Any) -> Iterator[None]:
    """Around what only looks at the files, and compares them with the model."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error)
        if isinstance(error, ValidationError):
            reason = f"{SETTINGS_FILE}: {problems(error, most=1)}"
        raise CheckpointError(
            f"{str(folder)!r} does not hold this model: {reason}. Name a folder that "
            f"save_quantized wrote, and a model of that architecture."
        ) from error


def _refuse_mixed(qmodel: nn.Module) -> None:
    if len({state.calibrated for state in states_of(qmodel)}) > 1:
        raise ArgumentError(
            "A part of this model is calibrated and another one is not, which one file cannot say. "
            "Write calibrate(qmodel, batches) for the whole before."
        )


def _float_layers(settings: QuantizationSettings, model: nn.Module) -> set[str]:
    """Layers of the model that the file has in float.

    Raises:
        ValueError: it has others.
    """
    layers = {*quantizable_layers(model)}
    if differing := sorted(({*settings.layers} | {*settings.unquantized}) ^ layers):
        raise ValueError(f"the layers differ: {', '.join(differing)}")
    return {*settings.unquantized}


def _give_ranges(qmodel: nn.Module, settings: QuantizationSettings) -> None:
    """Rules and fixed ranges to every layer."""
    for name, layer in fake_quantized_layers(qmodel).items():
        stored = settings.layers[name]
        of_weight = stored.rules or settings
        _give(layer.weight_quantizer, of_weight, stored.weight_range)
        _give(layer.input_quantizer, stored.input_rules or of_weight, stored.activation_range)


def _give(quantizer: FakeQuantizer, rules: Rules, fixed: FrozenRange | None) -> None:
    quantizer.ranges, quantizer.rounding = rules.made()
    quantizer.frozen_range = fixed


def _tensors(model: nn.Module) -> list[tuple[list[str], Tensor]]:
    """The tensors of a `state_dict`, each with all its names: shared ones have several.

    Raises:
        ArgumentError: it holds something else.
    """
    found: dict[int, tuple[list[str], Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):
            raise ArgumentError(
                f"{name!r} in the state_dict of this {type(model).__name__} is a "
                f"{type(tensor).__name__}; files hold tensors. Write get_extra_state so that it "
                "returns a tensor, or leave it out."
            )
        found.setdefault(id(tensor), ([], tensor))[0].append(name)
    return list(found.values())


def _stored(name: str, tensor: Tensor) -> Tensor:
    """A copy in the one memory format that the file has.

    Raises:
        ArgumentError: it is on the meta device.
    """
    if tensor.is_meta:
        raise ArgumentError(
            f"{name!r} is on the meta device and has no values. Save a model that was built on the "
            "CPU or a GPU."
        )
    return tensor.detach().clone(memory_format=torch.contiguous_format)


@torch.no_grad()
def _load(places: list[tuple[list[str], Tensor]], tensors: Mapping[str, Tensor]) -> None:
    """Copy into the tensors of a model what a file has under any name of each."""
    left = dict(tensors)
    for names, tensor in places:
        name = next((name for name in names if name in left), None)
        if name is None:
            raise ValueError(f"there is no {names[0]!r}")
        value = left.pop(name)
        if value.shape != tensor.shape:
            raise ValueError(f"{name!r} has shape {tuple(value.shape)}, not {tuple(tensor.shape)}")
        tensor.copy_(value)
    if left:
        raise ValueError(f"the model has no {', '.join(map(repr, left))}")
