import pytest
import torch

from ghnqat_sdk.training.balance import clipped, with_norm

TENSORS = [torch.full((4, 4), 2.0), torch.full((8,), 0.05), torch.full((3, 3), 0.5)]
GRADIENTS = [torch.full((4, 4), 0.1), torch.full((8,), 3.0), torch.zeros(3, 3)]


def norm(gradients) -> float:
    return torch.cat([gradient.flatten() for gradient in gradients]).norm().item()


def test_gradients_are_clipped_to_a_norm():
    before = norm(GRADIENTS)
    assert norm(clipped(GRADIENTS, 2 * before)) == pytest.approx(before)
    halved = clipped(GRADIENTS, before / 2)
    for gradient, own in zip(halved, GRADIENTS, strict=True):
        torch.testing.assert_close(2 * gradient, own)


@pytest.mark.parametrize("wanted", [0.1, 10.0])
def test_gradients_get_a_relative_norm_and_keep_their_proportions(wanted):
    found = with_norm(GRADIENTS, TENSORS, wanted)
    sizes = [g.norm() * t.norm() for g, t in zip(found, TENSORS, strict=True)]
    assert torch.stack(sizes).norm().item() == pytest.approx(wanted)
    factor = found[0][0, 0] / GRADIENTS[0][0, 0]
    for gradient, own in zip(found, GRADIENTS, strict=True):
        torch.testing.assert_close(gradient, own * factor)


def test_a_network_counts_the_same_at_any_size_of_what_norms_rescale():
    """Of a weight c times as large before a norm, the gradient is c times smaller."""
    c = 30.0
    tensors, gradients = [c * TENSORS[0], *TENSORS[1:]], [GRADIENTS[0] / c, *GRADIENTS[1:]]
    there = with_norm(gradients, tensors, 1.0)
    here = with_norm(GRADIENTS, TENSORS, 1.0)
    torch.testing.assert_close(there[0] * c, here[0])
    torch.testing.assert_close(there[1], here[1])


def test_tensors_of_zero_do_not_explode():
    (found,) = with_norm([torch.ones(4)], [torch.zeros(4)], 1.0)
    assert found.norm() == pytest.approx(1 / (1e-3 * 2), rel=1e-3)
    (found,) = with_norm([torch.zeros(4)], [torch.zeros(4)], 1.0)
    assert found.isfinite().all() and not found.any()
