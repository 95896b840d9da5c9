"""The graph hypernetwork: computation graphs in, one dictionary of parameters for each graph out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.graph.batch import batch_graphs
from ghnqat_sdk.graph.graph import ComputationGraph, Node, Parameter
from ghnqat_sdk.graph.ops import VOCABULARY
from ghnqat_sdk.hypernetwork.decoder import Decoder, DecoderConfig, Request
from ghnqat_sdk.hypernetwork.encoders import EncoderConfig, TransformerConfig
from ghnqat_sdk.quantization.quantizers import ClippedRanges, Ranges


class HypernetworkConfig(BaseModel):
    """Everything that rebuilds a hypernetwork around its weights; saved as config.json beside them."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    format: Literal[1] = 1
    """Version of this file's layout."""
    encoder: EncoderConfig = TransformerConfig()
    decoder: DecoderConfig = DecoderConfig()
    num_classes: int = Field(10, ge=2, le=100_000)
    """Classes of the data set it was trained on."""
    s_max: int = Field(10, ge=1, le=100)
    """Longest shortest path that becomes a virtual edge."""
    ranges: Ranges = ClippedRanges()
    """How the networks it was trained on find their quantization ranges."""
    vocabulary: tuple[str, ...] = VOCABULARY
    """Node types in the order of their embeddings."""


class GraphHypernetwork(nn.Module):
    """Predicts all parameters of unseen CNNs from their graphs, in one pass (GHN-QAT, Yun & Wong 2023).

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
        self.encoder = config.encoder.build(len(config.vocabulary), config.s_max)
        self.decoder = Decoder(config.decoder, config.encoder.width, config.num_classes)
        self._index = {name: i for i, name in enumerate(config.vocabulary)}

    def forward(self, graphs: Sequence[ComputationGraph], *, channels_last: bool = True) -> list[dict[str, Tensor]]:
        """A dictionary of parameter name to tensor for each graph, in the graphs' order.

        Tensors of one shape and kind are decoded together, across graphs.

        Args:
            graphs: With their bit-widths.
            channels_last: Layout of the weights of convolutions: the one that runs fastest, or torch's default.

        Raises:
            ArgumentError: anything else than computation graphs.
        """
        if not isinstance(graphs, Sequence) or not all(isinstance(g, ComputationGraph) and len(g) for g in graphs):
            raise ArgumentError(
                "A hypernetwork takes a list of computation graphs. Write hypernetwork([trace(model)])."
            )
        if not graphs:
            return []
        device = next(self.parameters()).device
        hidden = self.encoder(batch_graphs(graphs, self._index, self.config.s_max).to(device))  # (B, N, d)
        groups: dict[tuple[object, ...], list[tuple[int, int, Node, Parameter]]] = defaultdict(list)
        for row, graph in enumerate(graphs):
            for column, node in enumerate(graph.nodes):
                for parameter in node.parameters:
                    groups[node.op, node.groups, parameter.role, parameter.shape].append((row, column, node, parameter))
        requests = [
            Request(hidden[[m[0] for m in members], [m[1] for m in members]], members[0][2], members[0][3])
            for members in groups.values()
        ]
        predicted: list[dict[str, Tensor]] = [{} for _ in graphs]
        for members, tensors in zip(groups.values(), self.decoder(requests, channels_last), strict=True):
            for (row, _, _, parameter), tensor in zip(members, tensors, strict=True):
                predicted[row][parameter.name] = tensor
        return predicted
