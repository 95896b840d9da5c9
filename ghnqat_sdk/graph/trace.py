"""`nn.Module` to `ComputationGraph`: one run of a copy on meta tensors, without side effects."""

from __future__ import annotations

import functools
import types
from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ghnqat_sdk.advice import SPATIAL_DIMS, advice_for
from ghnqat_sdk.calls import Call, meta_like, tensors_in
from ghnqat_sdk.copying import copy_module
from ghnqat_sdk.devices import at_home, on_cpu_by_default
from ghnqat_sdk.errors import TraceError
from ghnqat_sdk.generators import generator_states, random_numbers_stay, seed_generators
from ghnqat_sdk.graph.caches import caches_stay
from ghnqat_sdk.graph.graph import ComputationGraph
from ghnqat_sdk.graph.layers import quantizable_layers
from ghnqat_sdk.graph.merge import with_parameters_of
from ghnqat_sdk.graph.recorder import UNUSED, Recorder
from ghnqat_sdk.graph.refusals import refuse_untraceable

_SIZES = (224, 32, 28, 299, 64, 96, 128, 160, 192, 240, 256, 288, 320, 384, 448, 512, 16, 8)
"""Image sizes that are tried where no example inputs are given."""

_COLOURS = 3
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def trace(model: nn.Module, example_inputs: Any = None) -> ComputationGraph:
    """The computation graph of `model`, recorded in one run of a copy on meta tensors.

    Nothing is computed, and nothing of the model, its hooks, caches beside it and the random number
    generators changes. The run is in training mode, so that auxiliary heads are seen; a model that
    does not run in it runs in the modes in which its modules are, or in evaluation mode. Where that
    run drew random numbers or left a parameter out, as one does that drops layers by chance, the
    graph is that of evaluation mode, with what only training uses. Where control flow reads values,
    the copy runs on random numbers.

    Args:
        model: Any CNN.
        example_inputs: A tensor, a tuple of arguments, or a dict of keyword arguments; only shapes
            and types are used. By default an image of a usual size with the channels of the first
            convolution.

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
    """As `trace`, with the arguments of the run that was recorded: meta tensors, or numbers."""
    refuse_untraceable(model)
    given = example_inputs is not None
    candidates = [Call.of(example_inputs)] if given else list(_guesses(model))
    failures: list[Exception] = []
    with random_numbers_stay(), at_home(model), torch.no_grad():
        for mode in (True, None, False):
            found = _trace_in(model, candidates, mode, failures)
            if found is not None:
                return (found.completed(model) if mode is not False else found.graph), found.call
    raise _explain(model, candidates[0] if given else None, failures[0]) from failures[0]


class _Found(NamedTuple):
    """A run that was recorded.

    Attributes:
        graph: Of the run.
        call: Its arguments: meta tensors or numbers.
        drew: Whether it drew random numbers.
    """

    graph: ComputationGraph
    call: Call
    drew: bool

    def completed(self, model: nn.Module) -> ComputationGraph:
        """The graph, whatever was left out by chance or is of evaluation alone."""
        if not self.drew and UNUSED not in self.graph.unreached.values():
            return self.graph
        evaluated = _trace_in(model, [self.call], False, [])
        if evaluated is None:
            return self.graph
        if self.drew or evaluated.graph.parameters.keys() - self.graph.parameters.keys():
            return with_parameters_of(evaluated.graph, self.graph)
        return self.graph


def _record(model: nn.Module, call: Call, mode: bool | None, shapes_only: bool) -> _Found:
    """One run of a copy, always with the same random numbers."""
    before = seed_generators()
    with nullcontext() if shapes_only else on_cpu_by_default(), caches_stay(model):
        graph = _run(_twin(model, shapes_only), call, mode, shapes_only)
    return _Found(graph, call, generator_states() != before)


def _trace_in(
    model: nn.Module, calls: Sequence[Call], mode: bool | None, failures: list[Exception]
) -> _Found | None:
    """The run on the first of `calls` that a copy of the model runs on, in one mode."""
    for index, call in enumerate(calls):
        try:
            return _record(model, call.on_meta(), mode, shapes_only=True)
        except Exception as error:  # whatever the user's forward raises
            failures.append(error)
            if _reads_values(error):
                return _trace_on_numbers(model, calls[index:], mode, failures)
    return None


def _guesses(model: nn.Module) -> Iterator[Call]:
    """Calls with two images, or feature vectors where the first layer is linear; two for norms."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    first = next((m for m in model.modules() if isinstance(m, (*SPATIAL_DIMS, nn.Linear))), None)
    if isinstance(first, nn.Linear):
        yield Call((torch.empty(2, first.in_features, dtype=dtype, device="meta"),))
    dims = next((d for kind, d in SPATIAL_DIMS.items() if isinstance(first, kind)), 2)
    # Where the model rearranges the image before its first convolution, its channels are not the
    # image's.
    for channels in dict.fromkeys((getattr(first, "in_channels", _COLOURS), _COLOURS)):
        for size in _SIZES:
            yield Call((torch.empty(2, channels, *(size,) * dims, dtype=dtype, device="meta"),))


def _trace_on_numbers(
    model: nn.Module, calls: Sequence[Call], mode: bool | None, failures: list[Exception]
) -> _Found | None:
    """The run on the first of `calls` that a copy of the model can be run on with numbers."""
    for call in calls:
        try:
            return _record(model, call.with_numbers(), mode, shapes_only=False)
        except Exception as error:  # as above
            failures.append(error)
    return None


def _reads_values(error: Exception) -> bool:
    """Whether a run may have failed for asking a meta tensor for its values.

    Open on purpose: torch words this error differently from call to call. Where it is taken for
    one wrongly, the copy runs on numbers, and the graph of a run that succeeds is right either way.
    """
    text = str(error)
    return isinstance(error, NotImplementedError) or "meta" in text.lower() or "item()" in text


def _twin(model: nn.Module, shapes_only: bool) -> nn.Module:
    """A copy to run and throw away, on the meta device or the CPU, without the user's hooks.

    Hooks that are objects of their own (weight norm, pruning) are copied with the model, and make
    its weights, as do methods of its modules. Others are left out: what they change is not the
    copy's.
    """
    tensor = _stand_in if shapes_only else None
    twin = copy_module(model, share=True, tensor=tensor)
    if not shapes_only:
        twin.cpu()
    modules = list(twin.modules())
    own = {id(module) for module in modules}
    for module in modules:
        for hooks in _HOOKS:
            kept = getattr(module, hooks)
            for key in [key for key, hook in kept.items() if not _makes_weights(hook, own)]:
                del kept[key]
    return twin


def hooks_of_objects(module: nn.Module) -> list[Any]:
    """The hooks before a module's forward that are objects of their own, such as those of weight
    norm and pruning, which make its weight."""
    return [hook for hook in module._forward_pre_hooks.values() if _is_object(hook)]


def _makes_weights(hook: Any, own: Collection[int]) -> bool:
    """Whether a hook is an object of the copy; `own` holds the ids of its modules."""
    if isinstance(hook, types.MethodType):
        return id(hook.__self__) in own
    return _is_object(hook)


def _is_object(hook: Any) -> bool:
    functions = (types.FunctionType, types.BuiltinFunctionType, types.MethodType)
    return not isinstance(hook, (*functions, functools.partial))


def _stand_in(tensor: Tensor) -> Tensor:
    meta = meta_like(tensor)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(meta, tensor.requires_grad)
    return meta


def _run(twin: nn.Module, call: Call, mode: bool | None, shapes_only: bool) -> ComputationGraph:
    """Record one run; `mode` is training, evaluation, or None for each module's own."""
    if mode is not None:
        twin.train(mode)
    layers = quantizable_layers(twin)
    recorder = Recorder(dict(twin.named_parameters()), layers, shapes_only)
    for name, module in twin.named_modules():
        _announce(module, name, recorder)
    for tensor in call.tensors():
        recorder.add_input(tensor)
    with recorder:
        outputs = call.run(twin)
    return recorder.finish(list(tensors_in(outputs)))


def _announce(module: nn.Module, name: str, recorder: Recorder) -> None:
    """Let the recorder know when a module of the copy runs, by a call or by its forward alone."""
    forward = getattr(module, "_orig_mod", module.forward)  # what torch.compile has wrapped

    def announced(*args: Any, **kwargs: Any) -> Any:
        recorder.enter(name)
        output = None
        try:
            output = forward(*args, **kwargs)
        finally:
            recorder.leave(output)
        return output

    vars(module)["forward"] = announced


def _explain(model: nn.Module, given: Call | None, failure: Exception) -> TraceError:
    name, text = type(model).__name__, str(failure).partition("\n")[0].rstrip(":")
    reason = f"{type(failure).__name__}: {text}"
    images = (call.args[0] for call in _guesses(model) if call.args[0].ndim > 2)
    channels = next(images).shape[1]
    advice = (
        f"example_inputs=torch.empty(2, {channels}, 32, 32), with the height and width of its "
        "images, a tuple of arguments, or a dict of keyword arguments."
    )
    if given is not None:
        instead = advice_for(model, given, failure) or f"Pass inputs that it takes: {advice}"
        shapes = f" of shapes {given.shapes()}" if given.tensors() else ""
        return TraceError(
            f"{name} could not be run on the example inputs given{shapes}: {reason}. {instead}"
        )
    return TraceError(
        f"{name} could not be run on one image of any of the sizes {_SIZES} ({reason}). Pass "
        f"inputs that it takes: {advice}"
    )
