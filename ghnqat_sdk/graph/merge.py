"""Two graphs of one model, of runs in two modes, as one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import replace

from ghnqat_sdk.graph.graph import ComputationGraph, Node


def with_parameters_of(base: ComputationGraph, other: ComputationGraph) -> ComputationGraph:
    """`base` with the paths of `other`, between its nodes and its output, on which there are
    parameters that `base` has not.

    Nodes of both graphs are the same where they have the same parameters, or run the same operation
    in the same module as often.
    """
    places = {key: index for index, key in enumerate(_keys(base))}
    same = {i: places[key] for i, key in enumerate(_keys(other)) if key in places}
    added = _added(base, other, same)
    if not added:
        return base
    last = len(base) - 1
    moved = same | {old: last + order for order, old in enumerate(added)}
    nodes = [_without(other.nodes[old], base) for old in added]
    output = last + len(added)
    edges = {(source, output if target == last else target) for source, target in base.edges}
    kept = {*added}
    for source, target in other.edges:
        if target in kept and source in moved:
            edges.add((moved[source], moved[target]))
    going_on = {source for source, _ in edges}
    edges |= {(moved[old], output) for old in added if moved[old] not in going_on}
    predicted = {parameter.name for node in nodes for parameter in node.parameters}
    return replace(
        base,
        nodes=(*base.nodes[:-1], *nodes, base.nodes[-1]),
        edges=tuple(sorted(edges)),
        unreached={n: why for n, why in base.unreached.items() if n not in predicted},
        outside={**_outside(other, nodes), **base.outside},
        cache={},
    )


def _keys(graph: ComputationGraph) -> list[Hashable]:
    """What tells each node from the others in any run of its model."""
    seen: Counter[tuple[str, str]] = Counter()
    keys: list[Hashable] = []
    for node in graph.nodes:
        kind = node.op, node.module
        seen[kind] += 1
        names = tuple(parameter.name for parameter in node.parameters)
        keys.append(names or (*kind, seen[kind]))
    return keys


def _added(base: ComputationGraph, other: ComputationGraph, same: dict[int, int]) -> list[int]:
    """Nodes of `other` that `base` lacks and that are on a path to or from a new parameter."""
    lacking = {i for i in range(len(other)) if i not in same}
    new = [
        index
        for index in lacking
        if any(p.name not in base.parameters for p in other.nodes[index].parameters)
    ]
    after, before = other.successors, other.predecessors
    return sorted(_reached(new, after, lacking) | _reached(new, before, lacking))


def _reached(start: list[int], following: Sequence[Sequence[int]], within: set[int]) -> set[int]:
    """Nodes on paths from `start` that stay within a set; `following` are the neighbours of each
    node to go on to."""
    waiting, found = list(start), set(start)
    while waiting:
        for index in following[waiting.pop()]:
            if index in within and index not in found:
                found.add(index)
                waiting.append(index)
    return found


def _without(node: Node, base: ComputationGraph) -> Node:
    """The node without parameters that `base` has."""
    own = tuple(each for each in node.parameters if each.name not in base.parameters)
    return replace(node, parameters=own)


def _outside(graph: ComputationGraph, nodes: list[Node]) -> dict[str, str]:
    modules = {node.module for node in nodes}
    return {name: why for name, why in graph.outside.items() if name in modules}
