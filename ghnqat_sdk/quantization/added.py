"""What was put into a model, or around it, after its quantization: norms are taken in, and what
computes in float is named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from torch import nn

from ghnqat_sdk.graph.layers import quantizable_layers
from ghnqat_sdk.quantization.classes import CHANGED, change_class, taken
from ghnqat_sdk.quantization.lookup import fake_quantized_layers
from ghnqat_sdk.quantization.norms import CalibratedNorm, is_norm
from ghnqat_sdk.quantization.state import QuantizationState, states_of
from ghnqat_sdk.quantization.unquantized import why_not

ADDED = "put in after the quantization"


def take_in_norms(qmodel: nn.Module) -> None:
    """Let norms that were put in later be calibrated and frozen as the others are, in place.

    They evaluate with the statistics that they have until then, which belong to their own weights.
    """
    state = states_of(qmodel)[0]
    for module in qmodel.modules():
        late = is_norm(module) and not isinstance(module, CalibratedNorm)
        if late and taken(module) is None:
            change_class(module, state)
            vars(module)["reached"] = True


def in_float(qmodel: nn.Module) -> dict[str, str]:
    """Modules that compute with a weight in float or keep running statistics, name to reason, as
    the model is now."""
    modules = dict(qmodel.named_modules(remove_duplicate=False))
    layers = quantizable_layers(qmodel)
    found: dict[str, str] = {}
    for start, state in _parts(qmodel):
        noted = ((_inside(start, name), why) for name, why in state.unquantized.items())
        found |= {name: why for name, why in noted if name in modules}
        replaced = (_inside(start, name) for name in state.bits)
        found |= {n: ADDED for n in replaced if n in layers and not isinstance(layers[n], CHANGED)}
    for name, module in qmodel.named_modules():
        if name in found or isinstance(module, CHANGED):
            continue
        why = ADDED if name in layers else why_not(module, layer=False)
        if why is not None:
            found[name] = why
    return found


def stale_statistics(qmodel: nn.Module) -> dict[str, str]:
    """Modules of predicted models whose running statistics are of other weights, and are not
    re-estimated: name to reason."""
    modules = dict(qmodel.named_modules(remove_duplicate=False))
    return {
        inside: why
        for start, state in _parts(qmodel)
        if state.normalized
        for name, why in state.stale.items()
        if (inside := _inside(start, name)) in modules
        and not isinstance(modules[inside], CalibratedNorm)
    }


def _parts(qmodel: nn.Module) -> Iterator[tuple[str, QuantizationState]]:
    """The models that it is put together of, one most often: what names in it start with."""
    layers = fake_quantized_layers(qmodel)
    for state in states_of(qmodel):
        own = {name for name, layer in layers.items() if layer.quantization is state}
        # Most layers are where they were at the quantization: their names tell where the model is.
        starts = Counter(
            name.removesuffix(end)
            for name in own
            for end in state.bits
            if f".{name}".endswith(f".{end}")
        )
        yield max(starts, key=lambda start: (starts[start], -len(start)), default=""), state


def _inside(start: str, name: str) -> str:
    return (start + name).removesuffix(".")
