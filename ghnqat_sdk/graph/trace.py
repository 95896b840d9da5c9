"""`nn.Module` to `ComputationGraph`: one run on meta tensors, without side effects."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ghnqat_sdk.errors import ArgumentError, TraceError
from ghnqat_sdk.graph.graph import ComputationGraph
from ghnqat_sdk.graph.recorder import Recorder, meta_like, tensors_in

_SIZES = (224, 32, 28, 299, 64, 96, 128, 160, 192, 240, 256, 288, 320, 384, 448, 512, 16, 8)
"""Image sizes that are tried where no example inputs are given."""

_COLOURS = 3

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of a model."""

_SPATIAL_DIMS = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}


def trace(model: nn.Module, example_inputs: Any = None) -> ComputationGraph:
    """The computation graph of `model`, recorded in one run on meta tensors.

    Nothing is computed and nothing changes: parameters, buffers, modes, gradients and the RNG state stay as they are.
    The run is in training mode, so that auxiliary heads are seen. A model whose control flow reads values is run once
    more on a copy with random numbers.

    Args:
        model: Any CNN.
        example_inputs: A tensor, a tuple of arguments, or a dict of keyword arguments; only shapes and types are
            used. By default an image of a usual size with the channels of the first convolution.

    Raises:
        ArgumentError: `model` is no nn.Module.
        TraceError: the model cannot be run this way; the message says what to pass.

    Examples:
        >>> from torch import nn
        >>> [node.op for node in trace(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())).nodes]
        ['input', 'conv', 'bias', 'relu', 'output']
    """
    return trace_with_call(model, example_inputs)[0]


def trace_with_call(model: nn.Module, example_inputs: Any = None) -> tuple[ComputationGraph, Call]:
    """As `trace`, with the arguments of the run that was recorded: tensors on the meta device, or random numbers."""
    _refuse(model)
    candidates = [_as_call(example_inputs)] if example_inputs is not None else list(_guesses(model))
    stand_ins = _stand_ins(model)
    failures: list[Exception] = []
    for training in (True, False):  # in evaluation mode only what cannot run in training mode
        for index, call in enumerate(candidates):
            try:
                on_meta = _map_tensors(call, meta_like)
                return _run(model, *on_meta, stand_ins=stand_ins, training=training), on_meta
            except Exception as error:  # whatever the user's forward raises
                failures.append(error)
                if _reads_values(error):
                    return _trace_on_numbers(model, example_inputs, candidates[index:])
    raise _explain(model, example_inputs, failures[0]) from failures[0]


def _refuse(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise ArgumentError(
            f"model is a {type(model).__name__}; expected an nn.Module. Write, for example, trace(torchvision.models."
            f"resnet18())."
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise TraceError(
            "torch.jit modules hide their operations. Pass the nn.Module that was scripted or traced."
        )
    if hasattr(model, "_orig_mod"):
        raise TraceError(
            "This is a compiled module. Pass the module that was compiled: model._orig_mod"
        )
    lazy = [
        n for n, p in model.named_parameters() if isinstance(p, nn.parameter.UninitializedParameter)
    ]
    if lazy:
        raise TraceError(
            f"{lazy[0]!r} of a lazy module has no shape yet. Run the model once on a batch before: model(images)"
        )


def _as_call(example_inputs: Any) -> Call:
    if isinstance(example_inputs, dict):
        return (), example_inputs
    return (
        tuple(example_inputs) if isinstance(example_inputs, (tuple, list)) else (example_inputs,)
    ), {}


def _guesses(model: nn.Module) -> Iterator[Call]:
    """Calls with one image, or one feature vector where the first layer is linear; batches of two for batch norm."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    first = next((m for m in model.modules() if isinstance(m, (*_SPATIAL_DIMS, nn.Linear))), None)
    if isinstance(first, nn.Linear):
        yield (torch.empty(2, first.in_features, dtype=dtype, device="meta"),), {}
    dims = next((d for kind, d in _SPATIAL_DIMS.items() if isinstance(first, kind)), 2)
    # Where the model rearranges the image before its first convolution, its channels are not the image's.
    for channels in dict.fromkeys((getattr(first, "in_channels", _COLOURS), _COLOURS)):
        for size in _SIZES:
            yield (torch.empty(2, channels, *(size,) * dims, dtype=dtype, device="meta"),), {}


def _trace_on_numbers(
    model: nn.Module, example_inputs: Any, candidates: list[Call]
) -> tuple[ComputationGraph, Call]:
    """The graph of the first of `candidates` that a copy of the model can be run on, with random numbers."""
    twin, failures = copy.deepcopy(model).cpu(), []
    for call in candidates:
        try:
            numbers = random_like(call)
            return _run(twin, *numbers, stand_ins={}, training=True), numbers
        except Exception as error:  # as above
            failures.append(error)
    raise _explain(model, example_inputs, failures[0]) from failures[0]


def _reads_values(error: Exception) -> bool:
    """Whether a run may have failed for asking a meta tensor for its values.

    Open on purpose: torch words this error differently from call to call. Where it is taken for one wrongly, the model
    runs on a copy with numbers, and the graph of a run that succeeds is right either way.
    """
    return (
        isinstance(error, NotImplementedError)
        or "meta" in str(error).lower()
        or "item()" in str(error)
    )


def _run(
    model: nn.Module, args: Any, kwargs: Any, *, stand_ins: dict[str, Tensor], training: bool
) -> ComputationGraph:
    """Record one run with `stand_ins`, on the meta device, or with the model's own parameters where there are none."""
    named = {n: stand_ins.get(n, p) for n, p in model.named_parameters()}
    recorder = Recorder(named, shapes_only=bool(stand_ins))
    with _unchanged(model, training, recorder), torch.no_grad():
        for tensor in tensors_in((args, kwargs)):
            recorder.add_input(tensor)
        with recorder:
            outputs = torch.func.functional_call(model, stand_ins, args, kwargs, tie_weights=False)
        return recorder.finish(list(tensors_in(outputs)))


def _stand_ins(model: nn.Module) -> dict[str, Tensor]:
    """A meta tensor for every parameter and buffer, by one name for each module that holds it.

    Tensors that several modules share have one stand-in. Modules with several names are listed once: functional_call
    would put back their own tensors under the first name, and stand-ins under the second.
    """
    made: dict[int, Tensor] = {}
    named: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                named[f"{path}.{name}" if path else name] = made.setdefault(
                    id(tensor), meta_like(tensor)
                )
    return named


@contextmanager
def _unchanged(model: nn.Module, training: bool, recorder: Recorder) -> Iterator[None]:
    """Modes and RNG state as before afterwards; the recorder hears which module runs."""
    modes = [(module, module.training) for module in model.modules()]
    names = {id(module): name for name, module in model.named_modules()}
    before = nn.modules.module.register_module_forward_pre_hook(
        lambda m, _: recorder.enter(names.get(id(m)))
    )
    after = nn.modules.module.register_module_forward_hook(
        lambda m, _, __: recorder.leave(), always_call=True
    )
    try:
        with torch.random.fork_rng(devices=[]):
            model.train(training)
            yield
    finally:
        before.remove()
        after.remove()
        for module, mode in modes:
            module.training = mode


def random_like(call: Call) -> Call:
    """Arguments of the same shapes and types: floating-point tensors are normal, the same in every call, others 0."""
    return _map_tensors(call, _to_numbers)


def _to_numbers(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return torch.zeros_like(tensor, device="cpu")
    generator = torch.Generator().manual_seed(0)
    return torch.randn(tensor.shape, generator=generator).to(tensor.dtype)


def _map_tensors(value: Any, function: Any) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: _map_tensors(item, function) for key, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_map_tensors(item, function) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(
            value,
            **{
                f.name: _map_tensors(getattr(value, f.name), function)
                for f in dataclasses.fields(value)
            },
        )
    return value


def _explain(model: nn.Module, example_inputs: Any, failure: Exception) -> TraceError:
    name, text = type(model).__name__, str(failure).partition("\n")[0]
    reason = f"{type(failure).__name__}: {text}"
    if example_inputs is not None:
        return TraceError(f"{name} could not be run on the example inputs given: {reason}")
    return TraceError(
        f"{name} could not be run on one image of any of the sizes {_SIZES} ({reason}). Pass inputs that it takes: "
        f"example_inputs=torch.empty(2, 3, 32, 32), a tuple of arguments, or a dict of keyword arguments."
    )
