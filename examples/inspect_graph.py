"""Trace a CNN to its computation graph and look at it with networkx.

python examples/inspect_graph.py
python examples/inspect_graph.py densenet121
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence

import networkx
import torchvision

from ghnqat_sdk import trace


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "model", nargs="?", default="mobilenet_v2", help="name of a torchvision classifier"
    )
    options = parser.parse_args(arguments)

    model = torchvision.models.get_model(options.model, weights=None)
    graph = trace(model).to_networkx()

    path = networkx.dag_longest_path(graph)
    ops = networkx.get_node_attributes(graph, "op")
    print(f"{options.model}: {graph.number_of_nodes()} nodes, {graph.number_of_edges()} edges")
    print(
        "nodes by type:",
        ", ".join(f"{count} {op}" for op, count in Counter(ops.values()).most_common()),
    )
    print(f"longest path: {len(path)} nodes")
    branching = [node for node, degree in graph.out_degree() if degree > 1]
    print(f"outputs with several readers: {len(branching)}")
    print("first nodes along the longest path:")
    for node in path[:8]:
        facts = graph.nodes[node]
        shapes = ", ".join(f"{p.name} {p.shape}" for p in facts["parameters"])
        print(f"  {node:4} {facts['op']:16} {shapes}")


if __name__ == "__main__":
    main()
