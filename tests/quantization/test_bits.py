import pytest

from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.quantization.bits import parse_bits, parse_bits_text


@pytest.mark.parametrize("bits", [(2, 2), (4, 8), (32, 32), (8, 32), [3, 5]])
def test_pairs_of_supported_widths_are_taken(bits):
    assert parse_bits(bits) == tuple(bits)


@pytest.mark.parametrize("bits", [4, (4,), (1, 4), (4, 9), (4, 16), (4.0, 4), ("4", "4"), (True, 4), None, {"a": 1}])
def test_anything_else_is_refused_with_an_example(bits):
    with pytest.raises(ArgumentError, match=r"bits=\(4, 4\)"):
        parse_bits(bits)


def test_text_of_a_command_line_is_read():
    assert parse_bits_text("4,8") == (4, 8)
    for text in ("4", "4,8,2", "a,b", "4;8", "9,9"):
        with pytest.raises(ArgumentError, match="--bits 4,4"):
            parse_bits_text(text)
