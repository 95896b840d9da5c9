"""What the table of node types promises to conversion, reports and costs."""

import pytest
import torch
import torch.nn.functional as F

from ghnqat_sdk.graph.ops import OPS, Op

QUANTIZED = [op for op in OPS if op.quantized]


@pytest.mark.parametrize("op", QUANTIZED, ids=lambda op: op.name)
def test_a_quantized_type_has_one_weight_and_a_cost(op):
    assert [slot for slot in op.slots if slot.role == "weight"] == [op.weight]
    assert op.macs is not None


@pytest.mark.parametrize(
    ("op", "function"), [(op, function) for op in QUANTIZED for function in op.functions]
)
def test_the_first_argument_of_a_quantized_function_is_its_input(op: Op, function):
    spatial = 0 if function is F.linear else int(function.__name__.removesuffix("d")[-1])
    x, weight = torch.randn(2, 3, *[4] * spatial), torch.randn(3, 3, *[1] * spatial)
    assert op.weight.position == 1
    by_keyword = function(**{"input": x, op.weight.keyword: weight})
    assert torch.equal(by_keyword, function(x, weight))
