"""What a fake-quantized model computes in float, and which statistics nobody re-estimates, as its
classes and its graph tell."""

from __future__ import annotations

from torch import Tensor, nn

from ghnqat_sdk.errors import GhnqatError
from ghnqat_sdk.graph.annotate import layer_of
from ghnqat_sdk.graph.graph import ComputationGraph
from ghnqat_sdk.graph.ops import op_of
from ghnqat_sdk.quantization.classes import taken
from ghnqat_sdk.quantization.norms import CalibratedNorm, is_norm
from ghnqat_sdk.quantization.state import QuantizationState


def note_graph(qmodel: nn.Module, graph: ComputationGraph, state: QuantizationState) -> None:
    """Let the state know what classes alone do not tell: operations outside of layers, and
    functions that are handed running statistics.

    Raises:
        GhnqatError: as `left_in_float`.
    """
    own = {name for name, x in qmodel.named_modules() if not isinstance(x, CalibratedNorm)}
    what = "a function of torch's normalizes with its running statistics, which it keeps"
    stale = dict.fromkeys(own.intersection(graph.statistics) - state.unquantized.keys(), what)
    state.stale |= stale
    state.unquantized = left_in_float(graph, state)
    for name in stale:
        state.unquantized[name] = "; ".join(filter(None, [state.unquantized.get(name), what]))


def left_in_float(graph: ComputationGraph, state: QuantizationState) -> dict[str, str]:
    """Why what computes with a weight is not quantized, by module; the graph says what there is.

    Raises:
        GhnqatError: an operation that could be quantized is run by no fake-quantized layer, and
            nothing says why.
    """
    named = dict(graph.outside) | state.unquantized
    runs = [(node, layer_of(node, state.bits)) for node in graph.nodes]
    lost = [
        node.module or node.op
        for node, layer in runs
        if node.quantized and layer not in state.bits and node.module not in named
    ]
    if lost:
        raise GhnqatError(
            f"Neither fake-quantized nor left in float with a reason: {lost}. This is a bug; "
            "please report it."
        )
    used = {layer for node, layer in runs if node.quantized or node.parameters}
    unused = [name for name in state.bits if name not in used and name not in named]
    return named | dict.fromkeys(unused, "the traced run does not call it")


def why_not(module: nn.Module, layer: bool) -> str | None:
    """Why a module stays as it is that has a weight or statistics, as far as its class tells.

    `layer` says whether it is among the layers to quantize.
    """
    op, kind = op_of(module), type(module).__qualname__
    if layer or is_norm(module):
        name = taken(module)
        return None if name is None else f"{kind} has a {name!r} of its own"
    if op is not None and op.quantized:
        if "forward" in vars(module):
            return "its forward was replaced on the object"
        return "the module around it reads its weight and does not call it"
    if op is not None and op.opaque:
        return f"{kind} computes with its weights in one call of its own"
    if has_statistics(module):
        return f"{kind} is no norm of torch's: it keeps its running statistics"
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase, nn.Bilinear)):
        return f"{kind} is computed in float"
    return None


def has_statistics(module: nn.Module) -> bool:
    """Whether it has running statistics, under torch's names."""
    running = (getattr(module, name, None) for name in ("running_mean", "running_var"))
    return any(isinstance(each, Tensor) for each in running)
