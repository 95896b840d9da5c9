import numpy as np
import pytest

from ghnqat_sdk.checks import check_whole, is_number, is_whole
from ghnqat_sdk.errors import ArgumentError


@pytest.mark.parametrize("value", [3, np.int64(3), 3.0, np.float32(3), True, False, "3", None])
def test_true_and_false_are_no_numbers_and_those_of_numpy_are(value):
    assert is_whole(value) == (type(value) in (int, np.int64))
    assert is_number(value) == (type(value) in (int, np.int64, float, np.float32))


def test_a_whole_number_too_small_is_refused_with_what_to_write():
    assert type(check_whole("size", np.int64(8), 1, "size=32")) is int
    with pytest.raises(ArgumentError, match=r"size=0 is no whole number from 1\. Write size=32\."):
        check_whole("size", 0, 1, "size=32")
