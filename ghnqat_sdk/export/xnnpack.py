"""Which values XNNPACK, in ExecuTorch, needs quantized beside the inputs of layers.

It runs a layer on integers only between two quantizations, and some operations only where what they
read and what they give are quantized alike.
"""

from __future__ import annotations

from typing import Any

import torch

_aten = torch.ops.aten
INTEGER_LAYERS = {_aten.conv2d.default, _aten.linear.default}
"""What it runs on integers."""

_FUSED = {
    _aten.relu.default, _aten.relu_.default, _aten.relu6.default, _aten.relu6_.default,
    _aten.hardtanh.default, _aten.hardtanh_.default,
}  # fmt: skip
"""What it does to a layer's result at once."""

_ALIKE = _FUSED | {
    _aten.cat.default, _aten.clamp.default, _aten.dropout.default, _aten.flatten.using_ints,
    _aten.max_pool2d.default, _aten.permute.default, _aten.reshape.default, _aten.slice.Tensor,
    _aten.squeeze.dim, _aten.transpose.int, _aten.unsqueeze.default, _aten.view.default,
}  # fmt: skip
"""What it does only where input and output are quantized alike."""


def quantized_outputs(nodes: Any, inputs: dict[Any, Any]) -> dict[Any, Any]:
    """The nodes whose outputs are to be quantized as well, each as all that reads it does, or None
    where ranges must be observed.

    Args:
        nodes: Of the exported model, in their order.
        inputs: How each layer's inputs are quantized; gains what stands between layers, with None
            for what is read in float.
    """
    outputs: dict[Any, Any] = {}
    for node in reversed(nodes):
        numbers = _read_as(node, inputs)
        if node.target in _ALIKE and numbers:
            tensors = [source for source in node.all_input_nodes if not _is_size(source)]
            inputs[node] = dict.fromkeys(tensors, numbers)
        elif node.target in INTEGER_LAYERS and node.args[1] in inputs[node]:
            if [reader.target in _FUSED for reader in node.users] == [True]:
                (node,) = node.users
                inputs.pop(node, None)
                numbers = _read_as(node, inputs)
            if not numbers or len(node.users) > 1:
                outputs[node] = numbers
    _read_alone(outputs, inputs)
    return outputs


def _read_alone(outputs: dict[Any, Any], inputs: dict[Any, Any]) -> None:
    """Have each reader of a quantized output dequantize it for itself.

    XNNPACK takes a dequantization for part of the integer operation after it: what reads the same
    one in float, such as the product with a gate beside the pooling before that gate, would be
    given integers. What gives its result as it reads it needs the numbers of its result, and others
    take those of the output.
    """
    for node, numbers in outputs.items():
        for reader in node.users:
            own = inputs.setdefault(reader, {})
            alike = not numbers and reader.target in _ALIKE
            own[node] = own.get(node) if alike else None


def _is_size(node: Any) -> bool:
    """Whether a node is a number, such as the size of a batch in a program for any batch size."""
    return isinstance(node.meta.get("val"), (int, torch.SymInt))


def _read_as(node: Any, inputs: dict[Any, Any]) -> Any:
    """How every reader of a node quantizes it, where that is the same."""
    found = [inputs.get(reader, {}).get(node) for reader in node.users]
    same = None not in found and len({n.key for n in found}) == 1
    return found[0] if same else None
