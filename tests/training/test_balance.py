import pytest
import torch

from ghnqat_sdk.training.balance import norms, relative_norm

TENSORS = {"a": torch.full((4, 4), 2.0), "b": torch.full((8,), 0.05), "c": torch.full((3, 3), 0.5)}
GRADIENTS = {"a": torch.full((4, 4), 0.1), "b": torch.full((8,), 3.0), "c": torch.zeros(3, 3)}


def test_norms_are_those_of_each():
    assert norms(GRADIENTS.values()).tolist() == pytest.approx([0.4, 3 * 8**0.5, 0])


@pytest.mark.parametrize("wanted", [0.1, 10.0])
def test_gradients_get_a_relative_norm(wanted):
    share = wanted / relative_norm(GRADIENTS, TENSORS)
    sizes = [share * GRADIENTS[name].norm() * TENSORS[name].norm() for name in TENSORS]
    assert torch.stack(sizes).norm().item() == pytest.approx(wanted)


def test_a_network_counts_the_same_at_any_size_of_what_norms_rescale():
    """Of a weight c times as large before a norm, the gradient is c times smaller."""
    c = 30.0
    tensors = TENSORS | {"a": c * TENSORS["a"]}
    gradients = GRADIENTS | {"a": GRADIENTS["a"] / c}
    assert relative_norm(gradients, tensors) == pytest.approx(relative_norm(GRADIENTS, TENSORS))


def test_tensors_without_a_gradient_do_not_count():
    fewer = {"a": GRADIENTS["a"], "b": GRADIENTS["b"]}
    assert relative_norm(fewer, TENSORS) == pytest.approx(relative_norm(GRADIENTS, TENSORS))


def test_tensors_of_zero_have_a_size():
    assert relative_norm({"a": torch.ones(4)}, {"a": torch.zeros(4)}) == pytest.approx(2e-3 * 2)
    assert relative_norm({"a": torch.zeros(4)}, {"a": torch.zeros(4)}) == 0
