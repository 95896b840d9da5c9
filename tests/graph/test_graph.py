import random

import networkx
import pytest
import torch

from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.graph.batch import batch_graphs
from ghnqat_sdk.graph.graph import ComputationGraph, Node
from ghnqat_sdk.graph.ops import OPS, VOCABULARY


def chain(length: int) -> ComputationGraph:
    return ComputationGraph(
        tuple(Node("relu") for _ in range(length)), tuple((i, i + 1) for i in range(length - 1))
    )


def test_vocabulary_names_are_unique_and_have_the_stand_in():
    assert len(set(VOCABULARY)) == len(VOCABULARY)
    assert "other" in VOCABULARY


def test_no_function_belongs_to_two_node_types():
    pairs = {(function, op.name) for op in OPS for function in op.functions}
    assert len({function for function, _ in pairs}) == len(pairs)


def test_nodes_know_what_they_read_and_what_reads_them():
    nodes = tuple(map(Node, ("input", "conv", "relu", "sum", "output")))
    graph = ComputationGraph(nodes, ((0, 1), (0, 3), (1, 2), (2, 3), (3, 4)))
    assert graph.successors == ((1, 3), (2,), (3,), (4,), ())
    assert graph.predecessors == ((), (0,), (1,), (0, 2), (3,))


@pytest.mark.parametrize("s_max", [1, 2, 10])
def test_shortest_paths_agree_with_networkx(diamond, s_max):
    paths = diamond.shortest_paths(s_max)
    lengths = dict(networkx.all_pairs_shortest_path_length(diamond.to_networkx(), cutoff=s_max))
    expected = torch.tensor(
        [[lengths[u].get(v, 0) for v in range(len(diamond))] for u in range(len(diamond))]
    )
    assert torch.equal(paths.long(), expected)


@pytest.mark.parametrize("seed", range(8))
def test_shortest_paths_of_random_graphs_agree_with_networkx(seed):
    draw, size = random.Random(seed), 40
    edges = tuple(
        sorted({tuple(sorted(draw.sample(range(size), 2))) for _ in range(10 + 12 * seed)})
    )
    graph = ComputationGraph(tuple(Node("relu") for _ in range(size)), edges)
    lengths = dict(networkx.all_pairs_shortest_path_length(graph.to_networkx(), cutoff=5))
    expected = torch.tensor([[lengths[u].get(v, 0) for v in range(size)] for u in range(size)])
    assert torch.equal(graph.shortest_paths(5).long(), expected)


def test_shortest_paths_without_edges_are_none():
    assert not ComputationGraph((Node("input"), Node("output")), ()).shortest_paths(10).any()


def test_shortest_paths_end_at_s_max():
    assert chain(15).shortest_paths(10)[0].tolist() == [0, *range(1, 11), 0, 0, 0, 0]


def test_networkx_graph_carries_node_fields_and_edges(diamond):
    graph = diamond.to_networkx()
    assert graph.nodes[1]["op"] == "conv"
    assert graph.nodes[1]["kernel"] == (3, 3)
    assert sorted(graph.edges) == list(diamond.edges)


def test_with_bits_takes_a_pair_or_a_function_of_the_node(diamond):
    assert {node.bits for node in diamond.with_bits((4, 8)).nodes} == {(4, 8)}
    mixed = diamond.with_bits(lambda node: (2, 2) if node.module == "b" else (8, 8))
    assert [node.bits for node in mixed.nodes if node.module] == [(8, 8), (2, 2), (8, 8)]
    for wrong in ((1, 1), lambda node: 4, lambda node: None):
        with pytest.raises(ArgumentError, match="pair of bit-widths"):
            diamond.with_bits(wrong)


def test_parameters_are_found_by_name(diamond):
    assert diamond.parameters["b.weight"].shape == (12, 12, 1, 1)


def test_batch_pads_and_masks(diamond):
    index = {name: i for i, name in enumerate(VOCABULARY)}
    batch = batch_graphs([diamond, chain(2)], index, s_max=10)
    assert batch.ops.shape == (2, 7)
    assert batch.mask.sum(1).tolist() == [7, 2]
    assert batch.paths[1, 2:].sum() == 0
    assert batch.ops[0, 1] == index["conv"]


def test_batch_interpolates_bits_between_anchors(diamond):
    index = {name: i for i, name in enumerate(VOCABULARY)}
    batch = batch_graphs([diamond.with_bits((3, 6))], index, s_max=10)
    assert batch.weight_bits[0, 0].tolist() == [0.5, 0.5, 0.0, 0.0]
    assert batch.activation_bits[0, 0].tolist() == [0.0, 0.5, 0.5, 0.0]


def test_unknown_node_types_become_other():
    index = {name: i for i, name in enumerate(VOCABULARY)}
    batch = batch_graphs([ComputationGraph((Node("from-the-future"),), ())], index, s_max=10)
    assert batch.ops.item() == index["other"]
