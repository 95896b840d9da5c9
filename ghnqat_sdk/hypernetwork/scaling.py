"""How large a decoded tensor becomes, by the role of its parameter (GHN-2, Knyazev et al. 2021)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ghnqat_sdk.graph.graph import ComputationGraph, Node, ParameterSpec
from ghnqat_sdk.graph.torch_calls import EPSILON

VECTOR_ROLES = ("bias", "scale", "shift", "slope")
"""Roles of parameters that are vectors, one number for each channel."""


def weight_factor(node: Node, parameter: ParameterSpec) -> float:
    """What a decoded weight or table of about unit variance is multiplied by.

    Weights: sqrt(β / fan_in), β = 2, or 1 for depthwise convolutions and classifiers.
    Tables (tokens, positions): 0.02.
    """
    if parameter.role == "table":
        return 0.02
    fan_in = _fan_in(node, parameter.shape)
    beta = 1.0 if node.op in ("depthwise_conv", "classifier") else 2.0
    return math.sqrt(beta / fan_in)


def _fan_in(node: Node, shape: tuple[int, ...]) -> float:
    """How many products one output value sums: of (O, I / groups, *kernel), all but the first; of a
    transposed convolution's (I, O / groups, *kernel), those that the stride lets through."""
    if node.op != "transposed_conv" or len(shape) < 3:
        return math.prod(shape[1:]) or 1
    kernel = shape[2:]
    stride = (node.stride[0], *node.stride)[-len(kernel) :]  # that of depth is not known
    places = (max(1.0, size / step) for size, step in zip(kernel, stride, strict=True))
    return max(1, shape[0] // node.groups) * math.prod(places)


def norm_factors(graph: ComputationGraph) -> list[float]:
    """What each node's weight and bias are multiplied by, for the norm behind it.

    Training knows norms that add 1e-5 to the variance, and leaves the size of weights before them
    open. To multiply what a norm reads by sqrt(ε / 1e-5) has the effect that its own ε becomes
    1e-5, exactly. 1 where anything else than norms of one ε reads the node.
    """
    factors = [1.0] * len(graph)
    for index, node in enumerate(graph.nodes):
        found = {graph.nodes[reader].epsilon for reader in graph.readers(index)}
        if len(found) == 1 and (node.quantized or node.op == "bias"):
            (epsilon,) = found
            factors[index] = math.sqrt(epsilon / EPSILON) if epsilon else 1.0
    return factors


def scale_vectors(raw: Tensor, role: str) -> Tensor:
    """Decoded vectors (...) of about unit variance to what their role takes.

    Gains: 2 · sigmoid(raw / 2), around 1. Slopes of PReLU: around 0.25.
    Biases and shifts: tanh(0.2 · raw).
    """
    if role == "scale":
        return 2 * torch.sigmoid(raw / 2)
    if role == "slope":
        return 0.5 * torch.sigmoid(raw / 2)
    return torch.tanh(0.2 * raw)
