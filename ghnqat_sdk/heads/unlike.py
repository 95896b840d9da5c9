"""How images and a network differ from those that a hypernetwork was trained with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from ghnqat_sdk.calls import Call, Signature
from ghnqat_sdk.graph.graph import ComputationGraph

if TYPE_CHECKING:
    from ghnqat_sdk.hypernetwork.ghn import HypernetworkConfig

_MOST_MEAN = 1.0
_DEVIATIONS = (0.33, 3.0)
_MOST_TIMES_LARGER = 3
_FEWEST_PLACES = 2
_KEEPS_SIZE = {"transposed_conv", "interpolate"}  # whose strides do not make an image smaller


def unlike(
    config: HypernetworkConfig, batch: Any, graph: ComputationGraph | None = None
) -> list[str]:
    """What of a batch, and of a network for it, the hypernetwork's training did not show it.

    Args:
        config: The hypernetwork's; `config.images` says what its images were.
        batch: Normalized images (N, C, H, W), a batch that starts with them, or a `Call`.
        graph: The network's; its strides are compared with the size of the images.

    Returns:
        A sentence for each difference; none for batches that are no images.

    Examples:
        >>> import torch
        >>> from ghnqat_sdk import HypernetworkConfig
        >>> unlike(HypernetworkConfig(), torch.randn(8, 1, 32, 32))
        ['The images have 1 channel; the hypernetwork was trained on images with 3.']
    """
    tensors = Call.of_batch(batch, Signature()).tensors()
    images = next((tensor for tensor in tensors if tensor.ndim == 4 and tensor.numel()), None)
    if images is None or images.is_meta:
        return []
    found = [_channels(config, images), _values(images), _size(config, images)]
    if graph is not None:
        found.append(_strides(images, graph))
    return [message for message in found if message]


def _channels(config: HypernetworkConfig, images: Tensor) -> str:
    channels, known = images.shape[1], len(config.images.mean)
    if channels == known:
        return ""
    ending = "" if channels == 1 else "s"
    return (
        f"The images have {channels} channel{ending}; the hypernetwork was trained on images with "
        f"{known}."
    )


def _values(images: Tensor) -> str:
    mean, deviation = images.double().mean().item(), images.double().std(correction=0).item()
    if abs(mean) <= _MOST_MEAN and _DEVIATIONS[0] <= deviation <= _DEVIATIONS[1]:
        return ""
    return (
        f"The images' values have mean {mean:.3g} and deviation {deviation:.3g}; expected about 0 "
        f"and 1. Normalize them, as ImageSet.batches does."
    )


def _size(config: HypernetworkConfig, images: Tensor) -> str:
    size, known = min(images.shape[2:]), config.images.size
    if size < _MOST_TIMES_LARGER * known:
        return ""
    return (
        f"The images have {size} pixels a side; the hypernetwork was trained on networks for "
        f"{known}. Resize them where that is enough to tell the classes apart."
    )


def _strides(images: Tensor, graph: ComputationGraph) -> str:
    size, reduction = min(images.shape[2:]), total_stride(graph)
    if size / reduction >= _FEWEST_PLACES:
        return ""
    return (
        f"The network's strides of {reduction} together leave one place of images of {size} "
        f"pixels. Resize the images to {4 * reduction}, or take strides out of the first layers."
    )


def total_stride(graph: ComputationGraph) -> int:
    """By how much a network makes an image smaller before it is pooled as a whole."""
    totals: list[int] = []
    for index, node in enumerate(graph.nodes):
        before = max((totals[source] for source in graph.predecessors[index]), default=1)
        stride = 1 if node.op in _KEEPS_SIZE else max(node.stride)
        totals.append(before * stride)
    return max(totals, default=1)
