import pytest
import torch
from torch import nn

from ghnqat_sdk.filling import copy_into


def prediction(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(p.shape) for name, p in model.named_parameters()}


def test_replaced_values_are_kept_in_the_memory_of_the_prediction():
    model = nn.Linear(3, 2)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    predicted, replaced = prediction(model), {}
    copy_into(model, predicted, {}, replaced)
    assert not any(p.any() for p in model.parameters())
    assert all(torch.equal(replaced[name], before[name]) for name in before)
    assert all(replaced[name].data_ptr() == predicted[name].data_ptr() for name in before)


@pytest.mark.parametrize("change", [nn.Module.double, nn.Module.bfloat16])
def test_replaced_values_of_another_precision_are_kept_exactly(change):
    model = change(nn.Linear(3, 2))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    replaced: dict[str, torch.Tensor] = {}
    copy_into(model, prediction(model), {}, replaced)
    torch.testing.assert_close(replaced, before, rtol=0, atol=0)
