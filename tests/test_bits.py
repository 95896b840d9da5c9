import pytest
import torch
from torch import nn

from ghnqat_sdk.bits import parse_bits, resolve_bits
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.graph.annotate import annotate_bits, first_last_layers, prevailing_bits
from ghnqat_sdk.graph.trace import trace


@pytest.mark.parametrize("bits", [(2, 2), (4, 8), (32, 32), (8, 32), [3, 5]])
def test_pairs_of_supported_widths_are_taken(bits):
    assert parse_bits(bits) == tuple(bits)


@pytest.mark.parametrize(
    "bits", [4, (4,), (1, 4), (4, 9), (4, 16), (4.0, 4), ("4", "4"), (True, 4), None, {"a": 1}]
)
def test_anything_else_is_refused_with_an_example(bits):
    with pytest.raises(ArgumentError, match=r"bits=\(4, 4\)"):
        parse_bits(bits)


def test_the_first_pattern_that_matches_holds():
    layers = ["stem.0", "body.0.conv", "body.1.conv", "head"]
    resolved = resolve_bits({"body.1*": (8, 4), "body*": (2, 2), "*": (4, 4)}, layers)
    assert resolved == {
        "stem.0": (4, 4),
        "body.0.conv": (2, 2),
        "body.1.conv": (8, 4),
        "head": (4, 4),
    }
    assert list(resolved) == layers
    assert resolve_bits((4, 8), layers) == dict.fromkeys(layers, (4, 8))


@pytest.mark.parametrize(
    ("bits", "message"),
    [
        ({"stem": (8, 8)}, r"no entry for head.*'\*': \(4, 4\)"),
        (
            {"steam": (8, 8), "*": (4, 4)},
            r"'steam', and no layer has such a name. The layers are: stem, head",
        ),
        ({"stem": 8, "*": (4, 4)}, "bits=8 is not a"),
        ({3: (4, 4)}, "entry for 3"),
        ({}, "no entry for stem, head"),
    ],
)
def test_mappings_that_leave_doubt_are_refused(bits, message):
    with pytest.raises(ArgumentError, match=message):
        resolve_bits(bits, ["stem", "head"])


def test_nodes_are_told_the_bits_of_the_layer_that_they_follow(diamond):
    told = annotate_bits(diamond, {"a": (8, 8), "b": (2, 2), "c": (3, 3)}, elsewhere=(5, 5))
    assert [node.bits for node in told.nodes] == [
        (5, 5),
        (8, 8),
        (8, 8),
        (2, 2),
        (2, 2),
        (3, 3),
        (3, 3),
    ]


def test_what_comes_before_any_layer_has_the_bits_of_most_layers_between_the_ends(diamond):
    assert prevailing_bits(diamond, {"a": (8, 8), "b": (2, 2), "c": (8, 8)}) == (2, 2)
    between = {"a": (8, 8), "b": (2, 2), "c": (8, 8), "d": (3, 3), "e": (3, 3)}
    assert prevailing_bits(diamond, between) == (3, 3)
    assert prevailing_bits(diamond, {"a": (4, 4), "c": (4, 4)}) == (4, 4)
    assert prevailing_bits(diamond, {}) is None


def test_first_and_last_layers_of_every_path(diamond):
    layers = {"a": (4, 4), "b": (4, 4), "c": (4, 4)}
    assert first_last_layers(diamond, layers) == ["a", "c"]
    graph = trace(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(3600, 5)),
        torch.empty(1, 3, 32, 32),
    )
    assert first_last_layers(graph, {"0": (4, 4), "2": (4, 4)}) == ["0", "2"]


@pytest.mark.parametrize(
    ("bits", "message"),
    [
        ({"*": (4, 4), "stem": (8, 8)}, r"'stem', and entries before it match all its layers"),
        ({"*m": (4, 4), "st*": (8, 8), "*": (2, 2)}, r"'st\*', and entries before it"),
        ({"stem": (4, 4), "stem*": (8, 8), "*": (2, 2)}, r"'stem\*', and entries before it"),
        ({"tail*": (4, 4), "*": (2, 2)}, r"'tail\*', and no layer has such a name"),
        ({"*": (4, 4), "tail": (2, 2)}, "'tail', and no layer has such a name"),
    ],
)
def test_patterns_that_decide_nothing_are_refused(bits, message):
    with pytest.raises(ArgumentError, match=message):
        resolve_bits(bits, ["stem", "head"])


def test_a_pattern_for_all_others_may_be_left_with_none():
    assert resolve_bits({"stem": (8, 8), "head": (8, 8), "*": (4, 4)}, ["stem", "head"]) == {
        "stem": (8, 8),
        "head": (8, 8),
    }
