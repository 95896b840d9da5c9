"""Transformer encoders that run the layers inside them, one by one.

Without autograd, torch's own read the layers' weights and compute in one float call of their own.
"""

from __future__ import annotations

from torch import nn


class Unfused:
    """What modules have in common that are kept from a fused call."""


class UnfusedLayer(Unfused):
    """Says of its activation that no fused call has it."""

    activation_relu_or_gelu = property(lambda _: 0)


class UnfusedEncoder(Unfused):
    """Says of its layers that they take no nested tensors."""

    use_nested_tensor = property(lambda _: False)


class UnfusedTransformerEncoderLayer(UnfusedLayer, nn.TransformerEncoderLayer):
    """`nn.TransformerEncoderLayer` that always runs its layers."""


class UnfusedTransformerEncoder(UnfusedEncoder, nn.TransformerEncoder):
    """`nn.TransformerEncoder` that always runs its layers."""
