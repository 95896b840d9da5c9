"""The loss of one predicted network on one batch of images, and its gradient with respect to the prediction."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghnqat_sdk.graph.graph import ComputationGraph
from ghnqat_sdk.graph.trace import trace
from ghnqat_sdk.parameters import apply_functionally
from ghnqat_sdk.quantization.bits import Bits
from ghnqat_sdk.quantization.convert import fake_quantized_layers, to_fake_quantized
from ghnqat_sdk.quantization.quantizers import ClippedRanges, MinMaxRanges
from ghnqat_sdk.training.spaces import Architecture


@dataclass(frozen=True)
class Network:
    """An architecture ready for predicted parameters.

    Attributes:
        model: Fake-quantized, in evaluation mode and uncalibrated, so that batch norm uses batch statistics; its own
            parameters are on the meta device: it runs with predicted ones only.
        graph: Its graph with bit-widths.
    """

    model: nn.Module
    graph: ComputationGraph

    def at(self, bits: Bits) -> Network:
        """The same network, its module included, at other bit-widths; what was made before runs at these as well."""
        for layer in fake_quantized_layers(self.model).values():
            layer.weight_quantizer.bits, layer.input_quantizer.bits = bits
        return Network(self.model, self.graph.with_bits(bits))


def prepare_network(
    architecture: Architecture,
    bits: Bits,
    ranges: MinMaxRanges | ClippedRanges,
    num_classes: int,
    noise: bool = False,
) -> Network:
    """Build, trace and fake-quantize `architecture` without allocating its parameters."""
    with torch.device("meta"):
        model = architecture.build(num_classes)
        image = torch.empty(2, 3, 32, 32)
    graph = trace(model, image).with_bits(bits)
    to_fake_quantized(model, bits, ranges, noise=noise, warn=False)
    return Network(model.eval(), graph)


@dataclass(frozen=True)
class NetworkLoss:
    """Loss of one network (a Python float) and the gradients of its parameters, by name."""

    loss: float
    accuracy: float
    gradients: dict[str, Tensor]


def network_loss(
    network: Network, predicted: dict[str, Tensor], images: Tensor, labels: Tensor, label_smoothing: float = 0.0
) -> NetworkLoss:
    """Cross-entropy of the network with `predicted` parameters, and its gradients with respect to them.

    The gradients stop at the prediction: the trainer runs the hypernetwork backward once for a whole meta-batch,
    so that only one network's activations are alive at a time.

    Args:
        network: See `prepare_network`.
        predicted: Name to tensor, from the hypernetwork.
        images: (N, 3, H, W) float32.
        labels: (N,) int64.
        label_smoothing: As in `torch.nn.functional.cross_entropy`.
    """
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in predicted.items()}
    logits = apply_functionally(network.model, leaves, images)
    loss = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    named = {name: g for name, g in zip(leaves, gradients, strict=True) if g is not None}
    accuracy = (logits.detach().argmax(1) == labels).float().mean().item()
    return NetworkLoss(loss.item(), accuracy, named)
