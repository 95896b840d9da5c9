"""Where the nodes and edges of a graph stand in a picture: rows by depth, a lane for each chain and
each long edge.

All lengths are inches, and y grows downwards.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

BOX, GAP = 0.26, 0.24
"""Height of a node, and the space between two rows."""

_ROW = BOX + GAP
_BESIDE, _LINE = 0.16, 0.12  # space between lanes of nodes, width of a lane of lines
_GUTTER = 0.4  # space between columns
_TIP = 0.08  # straight end of an edge, for its arrow
_EPSILON = 1e-6

Point = tuple[float, float]
Stroke = tuple[str, tuple[Point, ...]]
"""As in SVG: M, L and C, with their points."""


@dataclass(frozen=True)
class Layout:
    """A picture of a graph.

    Attributes:
        width, height: Of all of it.
        boxes: (x, y, width) of each node: its middle, and its width.
        routes: Strokes of each edge, from the middle of its source to the upper side of its target.
    """

    width: float
    height: float
    boxes: tuple[tuple[float, float, float], ...]
    routes: dict[tuple[int, int], tuple[Stroke, ...]]


@dataclass
class _Lane:
    """What stands on one vertical line: a chain of nodes, or the edges from one node to rows
    further down."""

    top: int
    bottom: int
    width: float
    ends: tuple[int, ...]
    """Nodes that it is connected to."""
    x: float = 0.0


def lay_out(
    widths: Sequence[float], edges: Iterable[tuple[int, int]], first: Iterable[int] = ()
) -> Layout:
    """Place the nodes of an acyclic graph in rows by the longest path that leads to them.

    A chain of nodes has one x, and so have the edges of one node that skip rows: they pass beside
    the nodes of these rows. Horizontal ways lie between rows. A long picture is cut into columns,
    where few edges cross.

    Args:
        widths: Of each of the N nodes, N > 0.
        edges: Pairs (source, target), source < target.
        first: Nodes of the first row; others that nothing leads to stand just above the first node
            they lead to.
    """
    targets: list[list[int]] = [[] for _ in widths]
    for source, target in sorted({*edges}):
        targets[source].append(target)
    rows = _rows(targets, first)
    chains = _chains(widths, targets, rows)
    detours = _detours(targets, rows)
    _place(chains, detours)
    columns = _Columns(rows, targets, [*_distinct(chains), *detours.values()])
    boxes = tuple(
        (*columns.place(lane.x, row), lane.width - _BESIDE)
        for lane, row in zip(chains, rows, strict=True)
    )
    routes = {}
    for source, target in ((s, t) for s in range(len(rows)) for t in targets[s]):
        between = rows[target] - rows[source] - 1
        xs = [
            chains[source].x,
            *([detours[source].x] * between if between else ()),
            chains[target].x,
        ]
        routes[source, target] = tuple(columns.route(source, xs))
    return Layout(columns.width, columns.height, boxes, routes)


def _rows(targets: list[list[int]], first: Iterable[int]) -> list[int]:
    rows, read = [0] * len(targets), {target for reached in targets for target in reached}
    for source, reached in enumerate(targets):
        for target in reached:
            rows[target] = max(rows[target], rows[source] + 1)
    for index in {*range(len(targets))} - read - {*first}:
        rows[index] = max(0, min((rows[target] for target in targets[index]), default=0) - 1)
    return rows


def _chains(widths: Sequence[float], targets: list[list[int]], rows: list[int]) -> list[_Lane]:
    """The lane of each node: chains through consecutive rows, each as long as those before it leave
    it."""
    after = [[t for t in reached if rows[t] == rows[s] + 1] for s, reached in enumerate(targets)]
    before: list[list[int]] = [[] for _ in targets]
    length = [1] * len(targets)
    for source in reversed(range(len(targets))):
        length[source] += max((length[target] for target in after[source]), default=0)
        for target in targets[source]:
            before[target].append(source)
    lanes: dict[int, _Lane] = {}
    for start in sorted(range(len(targets)), key=lambda index: -length[index]):
        chain, following = [], [start]
        while following := [index for index in following if index not in lanes]:
            chain.append(max(following, key=lambda index: length[index]))
            following = after[chain[-1]]
        if chain:
            width = max(widths[index] for index in chain) + _BESIDE
            lane = _Lane(
                rows[chain[0]], rows[chain[-1]], width, (*before[chain[0]], *targets[chain[-1]])
            )
            lanes |= dict.fromkeys(chain, lane)
    return [lanes[index] for index in range(len(targets))]


def _detours(targets: list[list[int]], rows: list[int]) -> dict[int, _Lane]:
    """By node, the lane of its edges that skip rows."""
    lanes = {}
    for source, reached in enumerate(targets):
        later = tuple(target for target in reached if rows[target] > rows[source] + 1)
        if later:
            lanes[source] = _Lane(
                rows[source] + 1, max(rows[t] for t in later) - 1, _LINE, (source, *later)
            )
    return lanes


def _place(chains: list[_Lane], detours: dict[int, _Lane]) -> None:
    """Give each lane its x: the longest chain first, then shorter ones and short detours, near what
    they lead to."""
    nodes = sorted(_distinct(chains), key=lambda lane: lane.top - lane.bottom)
    lines = sorted(detours.values(), key=lambda lane: lane.bottom - lane.top)
    taken: list[list[tuple[float, float]]] = [
        [] for _ in range(1 + max(lane.bottom for lane in chains))
    ]
    placed: set[int] = set()
    for lane in (*nodes, *lines):
        near = [chains[end].x for end in lane.ends if id(chains[end]) in placed]
        beside = taken[lane.top : lane.bottom + 1]
        lane.x = _free(
            sorted({span for spans in beside for span in spans}),
            lane.width,
            sum(near) / max(1, len(near)),
        )
        placed.add(id(lane))
        for spans in beside:
            spans.append((lane.x - lane.width / 2, lane.x + lane.width / 2))


def _free(spans: list[tuple[float, float]], width: float, wanted: float) -> float:
    """The x nearest to `wanted` where `width` fits beside all spans; to the right where both sides
    are as near."""
    merged: list[tuple[float, float]] = []
    for low, high in spans:
        if merged and low - merged[-1][1] < width - _EPSILON:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    for low, high in merged:
        left, right = low - width / 2, high + width / 2
        if left + _EPSILON < wanted < right - _EPSILON:
            return right if right - wanted <= wanted - left + _EPSILON else left
    return wanted


def _distinct(lanes: Iterable[_Lane]) -> list[_Lane]:
    return list({id(lane): lane for lane in lanes}.values())


class _Columns:
    """The rows cut into columns side by side, so that the picture is about as wide as it is
    high."""

    def __init__(self, rows: list[int], targets: list[list[int]], lanes: list[_Lane]) -> None:
        self.rows, total = rows, 1 + max(rows)
        self.last = [max((rows[t] for t in reached), default=0) for reached in targets]
        across = max(lane.x + lane.width / 2 for lane in lanes) - min(
            lane.x - lane.width / 2 for lane in lanes
        )
        self.starts = self._starts(
            total, max(1, round(math.sqrt(total * _ROW / (across + _GUTTER))))
        )
        ends = [*self.starts[1:], total]
        self.crossing = [
            [s for s in range(len(rows)) if rows[s] < start <= self.last[s]]
            for start in self.starts
        ]
        self.lefts: list[float] = []  # of the space before each column
        self.middles: list[float] = []  # where x is 0
        right = 0.0
        for start, end, crossing in zip(self.starts, ends, self.crossing, strict=True):
            inside = [lane for lane in lanes if lane.top < end and lane.bottom >= start]
            self.lefts.append(right)
            right += (_GUTTER + _LINE * len(crossing)) * bool(start)
            self.middles.append(right - min(lane.x - lane.width / 2 for lane in inside))
            right = self.middles[-1] + max(lane.x + lane.width / 2 for lane in inside)
        self.width = right
        self.height = max(end - start for start, end in zip(self.starts, ends, strict=True)) * _ROW

    def _starts(self, total: int, count: int) -> list[int]:
        """First rows of about `count` columns of about one height, where the fewest nodes have
        edges across."""
        crossing = [0] * (total + 1)
        for row, last in zip(self.rows, self.last, strict=True):
            for start in range(row + 1, last + 1):
                crossing[start] += 1
        starts, height = {0}, total / count
        for column in range(1, count):
            middle, play = round(column * height), round(0.12 * height)
            starts.add(
                min(
                    range(middle - play, middle + play + 1),
                    key=lambda s: (crossing[s], abs(s - middle)),
                )
            )
        return sorted(starts)

    def place(self, x: float, row: int) -> Point:
        """The middle of a place in a row."""
        column = self._column(row)
        return self.middles[column] + x, (row - self.starts[column] + 0.5) * _ROW

    def _column(self, row: int) -> int:
        return max(column for column, start in enumerate(self.starts) if start <= row)

    def route(self, source: int, xs: Sequence[float]) -> Iterable[Stroke]:
        """Strokes through the places `xs` in the row of `source` and those below it."""
        first = self.rows[source]
        places = [self.place(x, first + step) for step, x in enumerate(xs)]
        yield "M", (places[0],)
        for step, ((x, y), (to_x, to_y)) in enumerate(itertools.pairwise(places)):
            lower, upper, column = y + BOX / 2, to_y - BOX / 2, self._column(first + step + 1)
            yield "L", ((x, lower),)
            if upper < lower:
                yield from self._around(column, source, (x, lower), (to_x, upper))
            elif abs(x - to_x) < _EPSILON:
                yield "L", ((to_x, upper),)
            else:
                end = upper - _TIP * (step == len(xs) - 2)
                middle = (lower + end) / 2
                yield "C", ((x, middle), (to_x, middle), (to_x, end))
                yield "L", ((to_x, upper),)

    def _around(self, column: int, source: int, start: Point, end: Point) -> Iterable[Stroke]:
        """From the last row of a column to the first of `column`, through the space between
        them."""
        crossing = self.crossing[column]
        share = (crossing.index(source) + 1) / (len(crossing) + 1)
        x = (
            self.lefts[column]
            + _GUTTER / 2
            + _LINE * (len(crossing) * share - 0.5 * bool(crossing[1:]))
        )
        below, above = start[1] + GAP / 2 + share * GAP / 2, end[1] - GAP / 2 - share * GAP / 2
        corners = [start, (start[0], below), (x, below), (x, above), (end[0], above), end]
        for before, corner, after in zip(corners[:-2], corners[1:-1], corners[2:], strict=True):
            into, out = _towards(corner, before), _towards(corner, after)
            yield "L", (into,)
            yield "C", (_towards(corner, into, 0.5), _towards(corner, out, 0.5), out)
        yield "L", (end,)


def _towards(start: Point, end: Point, share: float | None = None) -> Point:
    """A point a little way from `start` to `end`, for round corners; or a share of the way."""
    length = math.dist(start, end)
    share = min(0.08, length / 2) / max(length, _EPSILON) if share is None else share
    return start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1])
