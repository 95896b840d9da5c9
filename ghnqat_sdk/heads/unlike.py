"""How images and a network differ from those that a hypernetwork was trained with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from ghnqat_sdk.calls import Call
from ghnqat_sdk.graph.graph import ComputationGraph
from ghnqat_sdk.quantization.normalized import images_of, not_normalized
from ghnqat_sdk.signatures import Signature

if TYPE_CHECKING:
    from ghnqat_sdk.hypernetwork.ghn import HypernetworkConfig

_MOST_TIMES_LARGER = 3
_FEWEST_PLACES = 2


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
        >>> unlike(HypernetworkConfig(), torch.randn(8, 1, 32, 32))[0].partition(";")[0]
        'The images have 1 channel'
    """
    images = images_of(Call.of_batch(batch, Signature()))
    if images is None:
        return []
    reduction = 1 if graph is None else total_stride(graph)
    found = [_channels(config, images), not_normalized(images), _size(config, images, reduction)]
    return [message for message in found if message]


def _channels(config: HypernetworkConfig, images: Tensor) -> str:
    channels, known = images.shape[1], len(config.images.mean)
    if channels == known:
        return ""
    ending = "" if channels == 1 else "s"
    chosen = [min(index, channels - 1) for index in range(known)]
    return (
        f"The images have {channels} channel{ending}; the hypernetwork was trained on images with "
        f"{known}. Build the model for {known} channels and pass images[:, {chosen}]."
    )


def _size(config: HypernetworkConfig, images: Tensor, reduction: int) -> str:
    """Of images that are much larger than known, or too small for the network's strides."""
    size, known = min(images.shape[2:]), config.images.size
    largest = config.images.largest or known
    sizes = f"{known}" if largest == known else f"{known} to {largest}"
    large = size >= _MOST_TIMES_LARGER * largest
    if not large and size >= _FEWEST_PLACES * reduction:
        return ""
    what = (
        f"The images have {size} pixels a side; the hypernetwork was trained on networks for "
        f"{sizes}."
        if large
        else f"The network's strides of {reduction} together leave one place of images of {size} "
        "pixels."
    )
    side = max(largest if large else known, _FEWEST_PLACES * reduction)
    if side >= _MOST_TIMES_LARGER * largest:
        return (
            f"{what} No size suits both: take strides out of the first layers "
            f"(layer.stride = (1, 1)) until they are {known // _FEWEST_PLACES} together, and "
            f"resize to {known}: {_resizing(known)}."
        )
    return (
        f"{what} Resize them, where the network takes that and the classes can still be told "
        f"apart: {_resizing(side)}."
    )


def _resizing(side: int) -> str:
    return f"torch.nn.functional.interpolate(images, size={side}, mode='bilinear', antialias=True)"


def total_stride(graph: ComputationGraph) -> int:
    """By how much a network makes an image smaller before it is pooled as a whole, or larger
    again."""
    totals: list[int] = []
    for index, node in enumerate(graph.nodes):
        before = max((totals[source] for source in graph.predecessors[index]), default=1)
        if node.op == "interpolate":
            totals.append(1)  # to a size of which the graph says nothing
        elif node.op == "transposed_conv":
            totals.append(max(1, before // max(node.stride)))
        else:
            totals.append(before * max(node.stride))
    return max(totals, default=1)
