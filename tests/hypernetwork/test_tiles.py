import pytest
import torch
from torch import Tensor

from ghnqat_sdk.graph.graph import Node, ParameterSpec
from ghnqat_sdk.hypernetwork.assemble import Assemble, Corners, spatial
from ghnqat_sdk.hypernetwork.places import corner_size, grouped_places, mixture, place_features
from ghnqat_sdk.hypernetwork.tiles import Cut, centre, centred, cut, kernel_of


def piece(shape: tuple[int, ...], op: str = "conv", role: str = "weight", groups: int = 1) -> Cut:
    return cut(Node(op, groups=groups), ParameterSpec("p", shape, role), tile=8, num_classes=10)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---- how parameters are cut


@pytest.mark.parametrize(
    ("shape", "op", "role", "table", "corner", "tiles"),
    [
        ((20, 3, 5, 5), "conv", "weight", "dense", (8, 4), (3, 1)),
        ((8, 16, 1, 1), "conv", "weight", "dense", (8, 8), (1, 2)),
        ((30, 5), "linear", "weight", "dense", (8, 8), (4, 1)),
        ((20, 1, 3, 3), "depthwise_conv", "weight", "depthwise", (8, 1), (3, 1)),
        ((16, 4, 3, 3), "grouped_conv", "weight", "grouped", (8, 8), (2, 2)),
        ((10, 20), "classifier", "weight", "classes", (10, 8), (1, 3)),
        ((10, 20, 1, 1), "classifier", "weight", "classes", (10, 8), (1, 3)),
        ((7, 20), "classifier", "weight", "dense", (8, 8), (1, 3)),
        ((10,), "classifier", "bias", "vectors", (8, 1), (2, 1)),
        ((20,), "batch_norm", "scale", "vectors", (8, 1), (3, 1)),
        ((1, 17, 20), "sum", "table", "dense", (4, 8), (1, 3)),
    ],
)
def test_a_parameter_is_cut_by_its_kind(shape, op, role, table, corner, tiles):
    found = piece(shape, op, role, groups=4 if op == "grouped_conv" else 1)
    assert (found.table, found.corner, found.tiles, found.shape) == (table, corner, tiles, shape)


@pytest.mark.parametrize(
    ("shape", "kernel"),
    [((4, 3), (1, 1)), ((4, 3, 5), (1, 5)), ((4, 3, 5, 7), (5, 7)), ((4, 3, 2, 5, 7), (5, 7))],
)
def test_kernels_of_any_number_of_dimensions_have_a_height_and_a_width(shape, kernel):
    assert kernel_of(shape) == kernel


def test_nearly_equal_sizes_are_decoded_together():
    assert [corner_size(count, 64) for count in (1, 4, 5, 20, 24, 25, 64, 65)] == [
        4, 4, 8, 24, 24, 32, 64, 64
    ]  # fmt: skip
    assert corner_size(100, 16) == 16
    assert piece((5, 6, 3, 3)).group == piece((8, 7, 3, 3)).group
    assert piece((5, 6, 3, 3)).group != piece((5, 6, 1, 1)).group


def test_of_many_tiles_four_by_four_are_decoded():
    small, large = piece((32, 32)), piece((33, 32))
    assert (small.large, small.decoded, len(small.places)) == (False, (4, 4), 16)
    assert (large.large, large.decoded, len(large.places)) == (True, (4, 4), 16)
    assert (piece((8, 800)).decoded, len(piece((8, 800)).places)) == ((1, 4), 4)
    assert not piece((400, 1, 3, 3), "depthwise_conv").large


# ---- positions of a kernel


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (2, 2), (1, 5), (5, 5), (9, 3)])
def test_a_kernel_has_the_centre_of_the_table_and_the_nearest_beyond(kernel):
    size = 5
    table = torch.arange(size * size).view(size, size)
    found = centred(table[centre(kernel, size)], kernel, size)
    assert found.shape == kernel
    if max(kernel) <= size:
        first = [(size - length) // 2 for length in kernel]
        expected = table[first[0] : first[0] + kernel[0], first[1] : first[1] + kernel[1]]
        assert torch.equal(found, expected)
    else:
        assert found[:, 0].tolist() == [1, 1, 6, 6, 11, 16, 16, 21, 21]


@pytest.mark.parametrize(("kernel", "zeros"), [((3, 3), 0), ((5, 5), 16), ((4, 3), 3), ((1, 5), 2)])
def test_around_a_smaller_table_lie_zeros(kernel, zeros):
    """Of banks, which have fewer positions than the decoded tiles."""
    table = torch.ones(3, 3)
    found = centred(table[centre(kernel, 3)], kernel, 5)
    assert found.shape == kernel
    assert (found == 0).sum() == zeros
    assert found[kernel[0] // 2, kernel[1] // 2] == 1


# ---- places


def test_every_place_is_another_and_the_first_is_nothing():
    features = place_features(256)
    assert features.shape == (256, 16)
    assert not features[0].any()
    distances = torch.cdist(features, features) + 10 * torch.eye(256)
    assert distances.min() > 1
    assert torch.equal(place_features(7), features[:7])


@pytest.mark.parametrize(("channels", "groups"), [(16, 4), (12, 2), (24, 3), (20, 20), (32, 2)])
def test_a_grouped_weight_has_the_numbers_of_the_blocks_of_the_dense_one(channels, groups):
    size = channels // groups
    places, row, out, into = grouped_places((channels, size), groups, 8)
    tiles = torch.stack([numbers(8, 8, seed=100 * a + b) for a, b in places])
    dense = torch.zeros(-(-channels // 8) * 8, -(-channels // 8) * 8)
    for (a, b), tile in zip(places, tiles, strict=True):
        dense[8 * a : 8 * a + 8, 8 * b : 8 * b + 8] = tile
    grouped = tiles[row, out, into]
    for group in range(groups):
        block = slice(group * size, (group + 1) * size)
        assert torch.equal(grouped[block], dense[block, block])


@pytest.mark.parametrize(
    ("tiles", "decoded"), [((5, 4), (4, 4)), ((30, 1), (4, 1)), ((20, 20), (4, 4))]
)
def test_tiles_are_mixtures_of_which_none_is_another(tiles, decoded):
    parts = mixture(tiles, decoded)
    assert parts.shape == (tiles[0] * tiles[1], decoded[0] * decoded[1])
    torch.testing.assert_close(parts.norm(dim=1), torch.ones(len(parts)))
    alike = parts @ parts.T - 2 * torch.eye(len(parts))
    assert alike.max() < 0.9999
    mostly = parts.argmax(1).view(tiles)
    assert torch.equal(mostly[:4, : decoded[1]].flatten(), torch.arange(4 * decoded[1]))


# ---- with gradients


def test_corners_of_a_table_and_their_gradients_are_those_of_slicing():
    table = numbers(6, 5, 3).requires_grad_()
    corners = [(slice(0, 4), slice(0, 5)), (slice(1, 3), slice(0, 2)), (slice(0, 6),)]
    ours = Corners.apply(table, torch.float32, *corners)
    theirs = [table[corner] for corner in corners]
    along = [numbers(*part.shape, seed=index) for index, part in enumerate(theirs)]
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)
        assert one.is_contiguous()
    (mine,), (torchs,) = (torch.autograd.grad(parts, table, along) for parts in (ours, theirs))
    torch.testing.assert_close(mine, torchs)
    half = Corners.apply(table, torch.bfloat16, *corners)
    assert {part.dtype for part in half} == {torch.bfloat16}
    (gradient,) = torch.autograd.grad(half, table, [part.bfloat16() for part in along])
    assert gradient.dtype == torch.float32
    torch.testing.assert_close(gradient, torchs, rtol=0.02, atol=0.02)


def assembled(values: Tensor, cuts: list[Cut]) -> list[Tensor]:
    """(O, I, k) of each tensor, tile by tile."""
    tensors, row = [], 0
    for one in cuts:
        (a, b), (out, into) = one.tiles, values.shape[2:]
        whole = values.new_zeros(a * out, b * into, values.shape[1])
        for y, x in one.places:
            rows, columns = slice(y * out, (y + 1) * out), slice(x * into, (x + 1) * into)
            whole[rows, columns] = values[row].permute(1, 2, 0)
            row += 1
        tensors.append(whole[: one.matrix[0], : one.matrix[1]] * one.factor)
    return tensors


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize(
    "shapes", [[(5, 8, 3, 3)], [(8, 8, 3, 3), (20, 9, 3, 3), (6, 5, 3, 3), (7, 17, 3, 3)]], ids=len
)
def test_tensors_are_assembled_from_their_tiles_with_their_gradients(shapes, channels_last):
    cuts = [piece(shape) for shape in shapes]
    values = numbers(sum(len(one.places) for one in cuts), 9, 8, 8).requires_grad_()
    ours = Assemble.apply(values, tuple(cuts), channels_last)
    ours = [tensor.transpose(1, 2) if channels_last else tensor for tensor in ours]
    theirs = assembled(values, cuts)
    along = [numbers(*tensor.shape, seed=1) for tensor in theirs]
    torch.testing.assert_close(ours, theirs)
    found, wanted = (torch.autograd.grad(tensors, values, along) for tensors in (ours, theirs))
    torch.testing.assert_close(found, wanted)


def test_a_kernel_in_three_dimensions_is_repeated_along_its_depth_at_the_same_size():
    flat = numbers(4, 3, 9)
    assert torch.equal(spatial(flat, (4, 3, 3, 3)).flatten(2), flat)
    deep = spatial(flat, (4, 3, 5, 3, 3))
    assert deep.shape == (4, 3, 5, 3, 3)
    assert torch.equal(deep[:, :, 0], deep[:, :, 4])
    assert deep.square().sum().item() == pytest.approx(flat.square().sum().item(), rel=1e-5)
    assert torch.equal(spatial(flat[:, :, :1], (4, 3)), flat[:, :, 0])
