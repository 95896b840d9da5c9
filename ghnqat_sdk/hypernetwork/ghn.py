"""The graph hypernetwork: graphs in, one dictionary of parameters for each graph out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ghnqat_sdk.configs import CIFAR10_MEAN, CIFAR10_STD, Part
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.graph.batch import batch_graphs
from ghnqat_sdk.graph.graph import ComputationGraph
from ghnqat_sdk.graph.ops import VOCABULARY
from ghnqat_sdk.hypernetwork.decoder import AnyDecoderConfig, DecoderConfig
from ghnqat_sdk.hypernetwork.encoders import EncoderConfig, TransformerConfig
from ghnqat_sdk.hypernetwork.scaling import norm_factors
from ghnqat_sdk.hypernetwork.tiles import Cut, Request, cut
from ghnqat_sdk.quantization.ranges import ClippedRanges, Ranges, range_rule


class TrainingImages(Part):
    """What the images were like that a hypernetwork's networks were trained on."""

    size: int = Field(default=32, ge=1)
    """Side in pixels."""
    largest: int | None = Field(default=None, ge=1)
    """Side of the largest that they were resized to for some networks, None where for none."""
    mean: tuple[float, ...] = CIFAR10_MEAN
    std: tuple[float, ...] = CIFAR10_STD
    """Of each channel, where white is 1; normalization took them out."""
    classes: tuple[str, ...] = (
        "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
    )  # fmt: skip
    """Names in the order of the scores."""


class HypernetworkConfig(Part):
    """What rebuilds a hypernetwork around its weights; saved as config.json beside them."""

    format: Literal[2] = 2
    """Version of this file's layout."""
    encoder: EncoderConfig = TransformerConfig()
    decoder: AnyDecoderConfig = DecoderConfig()
    num_classes: int = Field(default=10, ge=2, le=100_000)
    """Classes of the data set it was trained on."""
    images: TrainingImages = TrainingImages()
    s_max: int = Field(default=10, ge=1, le=100)
    """Longest shortest path that becomes a virtual edge."""
    ranges: Ranges = ClippedRanges()
    """How the networks it was trained on find their quantization ranges."""
    vocabulary: tuple[str, ...] = VOCABULARY
    """Node types in the order of their embeddings."""


class GraphHypernetwork(nn.Module):
    """Predicts all parameters of unseen CNNs in one pass over their graphs (Yun & Wong 2023).

    Conditioned on every node's bit-widths, so that one hypernetwork serves all of them.

    Examples:
        >>> import ghnqat_sdk as gq
        >>> from torch import nn
        >>> graph = gq.trace(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())).with_bits((4, 4))
        >>> gq.GraphHypernetwork()([graph])[0]["0.weight"].shape
        torch.Size([8, 3, 3, 3])
    """

    def __init__(self, config: HypernetworkConfig | None = None) -> None:
        super().__init__()
        config = HypernetworkConfig() if config is None else config
        if not isinstance(config, HypernetworkConfig):
            raise ArgumentError(
                f"config is a {type(config).__name__}; expected a HypernetworkConfig. Write "
                f"GraphHypernetwork(HypernetworkConfig(num_classes=100))."
            )
        self.config = config
        range_rule(config.ranges)
        self.encoder = config.encoder.build(len(config.vocabulary), config.s_max)
        self.decoder = config.decoder.build(self.encoder.width, config.num_classes)
        self._index = {name: i for i, name in enumerate(config.vocabulary)}

    def forward(
        self,
        graphs: Sequence[ComputationGraph],
        *,
        channels_last: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> list[dict[str, Tensor]]:
        """A dictionary of parameter name to tensor for each graph, in the graphs' order.

        Tensors of one shape and kind are decoded together, across graphs.

        Args:
            graphs: With their bit-widths.
            channels_last: Layout of the weights of convolutions: the one that runs fastest, or
                torch's default.
            dtype: Of the decoder's products; tensors are float32 all the same.

        Raises:
            ArgumentError: anything else than computation graphs.
        """
        _check(graphs)
        if not graphs:
            return []
        device = next(self.parameters()).device
        batch = batch_graphs(graphs, self._index, self.config.s_max)
        hidden = self.encoder(batch.to(device))  # (B, N, d)
        depths = torch.zeros(hidden.shape[:2], dtype=hidden.dtype)
        requests: list[Request] = []
        owners: list[tuple[int, str]] = []
        for row, graph in enumerate(graphs):
            depths[row, : len(graph)] = torch.arange(len(graph)) / len(graph)
            for column, name, piece in self._cuts(graph):
                requests.append(Request(row * hidden.shape[1] + column, piece))
                owners.append((row, name))
        tensors = self.decoder(
            hidden.flatten(0, 1),
            depths.flatten().to(device),
            requests,
            channels_last=channels_last,
            dtype=dtype,
        )
        predicted: list[dict[str, Tensor]] = [{} for _ in graphs]
        for (row, name), tensor in zip(owners, tensors, strict=True):
            predicted[row][name] = tensor
        return predicted

    def _cuts(self, graph: ComputationGraph) -> list[tuple[int, str, Cut]]:
        """(node, parameter, how it is decoded) of every parameter of a graph, worked out once."""
        key = "cuts", self.config.decoder.tile, self.config.num_classes, self.config.decoder.follows
        if key not in graph.cache:
            factors = norm_factors(graph)
            graph.cache[key] = [
                (column, parameter.name, cut(node, parameter, *key[1:]).times(factors[column]))
                for column, node in enumerate(graph.nodes)
                for parameter in node.parameters
            ]
        return graph.cache[key]


def _check(graphs: Sequence[ComputationGraph]) -> None:
    whole = isinstance(graphs, Sequence) and all(
        isinstance(graph, ComputationGraph) and len(graph) for graph in graphs
    )
    if not whole:
        raise ArgumentError(
            "A hypernetwork takes a list of computation graphs. Write hypernetwork([trace(model)])."
        )
