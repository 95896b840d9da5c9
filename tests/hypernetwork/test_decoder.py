import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from ghnqat_sdk.graph.graph import Node, ParameterSpec
from ghnqat_sdk.hypernetwork.decoder import DecoderConfig, TileDecoder
from ghnqat_sdk.hypernetwork.tiles import Request, cut

WIDTH = 16
PLAIN = DecoderConfig(hidden=16, tile=8, kernel=3, banks=0)
BANKED = PLAIN.model_copy(update={"banks": 4, "bank_kernel": 3})

SHAPES = [
    ((20, 1, 5, 5), "depthwise_conv", "weight"),
    ((12, 3, 7, 1), "conv", "weight"),
    ((12, 3, 11, 11), "conv", "weight"),
    ((12, 3, 2, 2), "conv", "weight"),
    ((6, 4, 3), "conv", "weight"),
    ((6, 4, 3, 3, 3), "conv", "weight"),
    ((12, 2, 3, 3), "grouped_conv", "weight"),
    ((100, 70, 3, 3), "conv", "weight"),
    ((100,), "batch_norm", "scale"),
    ((100,), "bias", "bias"),
    ((1, 17, 40), "sum", "table"),
    ((10, 30), "classifier", "weight"),
    ((7, 30), "classifier", "weight"),
    ((10, 30, 1, 1), "classifier", "weight"),
    ((1,), "prelu", "slope"),
    ((40, 1, 1), "product", "scale"),
]


def decoder(config: DecoderConfig, seed: int = 0) -> TileDecoder:
    """Untrained, but for banks that are not zero."""
    torch.manual_seed(seed)
    made = TileDecoder(config, WIDTH, 10)
    if made.banks is not None:
        for table in (made.banks.dense, made.banks.point, made.banks.depthwise):
            torch.nn.init.normal_(table)
        torch.nn.init.normal_(made.banks.gate.weight, std=0.1)
    return made


def request(
    shape: tuple[int, ...], op: str = "conv", role: str = "weight", row: int = 0, config=PLAIN
) -> Request:
    groups = shape[0] // shape[1] if op == "grouped_conv" else 1
    node, parameter = Node(op, groups=groups), ParameterSpec("p", shape, role)
    return Request(row, cut(node, parameter, config.tile, 10))


def nodes(count: int = 1) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(5))


def decode(made: TileDecoder, *requests: Request, depths: tuple[float, ...] = (0.3,), **options):
    return made(nodes(len(depths)), torch.tensor(depths), list(requests), **options)


@pytest.mark.parametrize("config", [PLAIN, BANKED], ids=["plain", "banks"])
@pytest.mark.parametrize(("shape", "op", "role"), SHAPES)
def test_any_shape_is_decoded_finite_and_of_sensible_size(shape, op, role, config):
    (tensor,) = decode(decoder(config), request(shape, op, role))
    assert (tensor.shape, tensor.dtype) == (shape, torch.float32)
    assert tensor.isfinite().all()
    assert tensor.abs().max() < 10


@pytest.mark.parametrize("config", [PLAIN, BANKED], ids=["plain", "banks"])
def test_what_is_decoded_together_is_what_each_gives_alone(config):
    made, depths = decoder(config), (0.1, 0.9)
    requests = [request(*shape, row=index % 2) for index, shape in enumerate(SHAPES * 2)]
    together = decode(made, *requests, depths=depths)
    for one, tensor in zip(requests, together, strict=True):
        (alone,) = decode(made, one, depths=depths)
        torch.testing.assert_close(tensor, alone, rtol=1e-4, atol=1e-5)


def test_nothing_to_decode_is_nothing():
    assert decode(decoder(BANKED)) == []


@pytest.mark.parametrize("shape", [(64, 48, 3, 3), (40, 40, 1, 1), (33, 100), (600, 33), (9, 4)])
@pytest.mark.parametrize("config", [PLAIN, BANKED], ids=["plain", "banks"])
def test_tensors_larger_than_a_tile_have_no_equal_filters(shape, config):
    (weight,) = decode(decoder(config), request(shape))
    matrix = weight.flatten(1)
    assert torch.linalg.matrix_rank(matrix) > min(2 * PLAIN.tile, min(matrix.shape) - 1)
    assert torch.unique(matrix, dim=0).shape[0] == shape[0]


@pytest.mark.parametrize("config", [PLAIN, BANKED], ids=["plain", "banks"])
@pytest.mark.parametrize(("channels", "groups"), [(16, 4), (12, 2), (24, 2), (32, 2)])
def test_a_grouped_weight_is_the_blocks_of_the_dense_one_that_its_groups_keep(
    channels, groups, config
):
    """A channel then means the same in both, and grouped layers learn from dense ones."""
    made, size = decoder(config), channels // groups
    (grouped,) = decode(made, request((channels, size, 3, 3), "grouped_conv"))
    (dense,) = decode(made, request((channels, channels, 3, 3)))
    dense = dense * groups**0.5  # by fan-in
    for group in range(groups):
        block = slice(group * size, (group + 1) * size)
        torch.testing.assert_close(grouped[block], dense[block, block])
    assert len(torch.unique(grouped.flatten(1), dim=0)) == channels


def test_weights_are_normalized_by_fan_in():
    made = decoder(DecoderConfig(banks=0))
    (wide,) = decode(made, request((64, 256, 3, 3), config=made.config))
    assert 0.5 < wide.std().item() * (256 * 9 / 2) ** 0.5 < 2.0


def test_an_untrained_decoder_keeps_each_channel():
    """In the mean over nodes, a weight is near the identity."""
    made = decoder(PLAIN)
    weights = made(nodes(200), torch.zeros(200), [request((8, 8, 1, 1), row=r) for r in range(200)])
    mean = torch.stack(weights).mean(0)[:, :, 0, 0]
    assert torch.equal(mean.argmax(1), torch.arange(8))


@pytest.mark.parametrize("config", [PLAIN, BANKED], ids=["plain", "banks"])
@pytest.mark.parametrize("shape", [(16, 8, 3, 3), (12, 12, 1, 5), (50, 70, 3, 3), (600, 40, 3, 3)])
def test_layout_of_weights_does_not_change_their_values(shape, config):
    made = decoder(config)
    (fast,), (plain,) = (decode(made, request(shape), channels_last=on) for on in (True, False))
    assert plain.is_contiguous()
    assert fast.stride(1) == 1  # a channels_last convolution reads it without a copy
    torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(16, 8, 3, 3), (600, 40, 3, 3), (20, 1, 3, 3), (12, 2, 3, 3)])
def test_products_in_half_precision_change_little(shape):
    op = "conv" if shape[1] > 2 else ("depthwise_conv" if shape[1] == 1 else "grouped_conv")
    made = decoder(BANKED)
    (exact,), (half,) = (
        decode(made, request(shape, op), dtype=dtype) for dtype in (torch.float32, torch.bfloat16)
    )
    assert half.dtype == torch.float32
    assert (half - exact).norm() < 0.02 * exact.norm()


def test_values_and_gradients_do_not_depend_on_whether_gradients_are_wanted():
    made, wanted = decoder(BANKED), [request(*shape) for shape in SHAPES]
    with_gradients = decode(made, *wanted)
    with torch.no_grad():
        without = decode(made, *wanted, channels_last=False)
    torch.testing.assert_close([t.detach() for t in with_gradients], without, rtol=1e-5, atol=1e-6)


# ---- banks


def bank_part(
    shape: tuple[int, ...], op: str = "conv", depth: float = 0.3, config: DecoderConfig = BANKED
) -> tuple[TileDecoder, Tensor]:
    """A decoder, and what its banks add to a weight, with gates of zero."""
    made = decoder(config)
    torch.nn.init.zeros_(made.banks.gate.weight)
    (both,) = decode(made, request(shape, op), depths=(depth,))
    banks, made.banks = made.banks, None
    (alone,) = decode(made, request(shape, op), depths=(depth,))
    made.banks = banks
    return made, both - alone


@pytest.mark.parametrize("depth", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    ("shape", "op", "name"),
    [
        ((8, 6, 3, 3), "conv", "dense"),
        ((8, 6, 1, 3), "conv", "dense"),
        ((7, 8, 1, 1), "conv", "point"),
        ((8, 1, 3, 3), "depthwise_conv", "depthwise"),
    ],
)
def test_banks_are_mixed_by_depth_to_unit_norm_times_three(shape, op, name, depth):
    made, added = bank_part(shape, op, depth)
    near = -(((depth - torch.linspace(0, 1, 4)) * 3 / 1.5) ** 2)
    shares = 3 * F.normalize(torch.softmax(near, 0), dim=0)
    table = getattr(made.banks, name).movedim(2, 0)  # (K, k, k, …)
    if shape[2:] == (1, 3):
        table = table[:, 1:2]
    mixed = torch.einsum("k,k...->...", shares, table)
    mixed = mixed.movedim((0, 1), (-2, -1))  # (o, i, kh, kw) or (o, kh, kw)
    if op == "depthwise_conv":
        mixed = mixed.unsqueeze(1)
    factor = (1 if op == "depthwise_conv" else 2) / torch.tensor(shape[1:]).prod()
    torch.testing.assert_close(
        added, mixed[: shape[0], : shape[1]] * factor.sqrt(), rtol=1e-3, atol=1e-4
    )


def test_banks_add_nothing_beyond_their_positions():
    _, added = bank_part((8, 8, 5, 5), config=BANKED.model_copy(update={"kernel": 5}))
    assert not added[:, :, [0, 4]].any()
    assert not added[:, :, :, [0, 4]].any()
    assert added[:, :, 1:4, 1:4].all()


def test_untrained_banks_are_zero_and_change_nothing():
    torch.manual_seed(0)
    made = TileDecoder(BANKED, WIDTH, 10)
    wanted = [request(*shape) for shape in SHAPES]
    with_banks = decode(made, *wanted)
    made.banks = None
    torch.testing.assert_close(with_banks, decode(made, *wanted))


def test_banks_tell_depths_apart_and_nothing_else_does():
    same_node = [request((8, 8, 3, 3), row=0), request((8, 8, 3, 3), row=1)]
    for config, alike in ((BANKED, False), (PLAIN, True)):
        made = decoder(config)
        first, last = made(nodes().repeat(2, 1), torch.tensor([0.0, 1.0]), same_node)
        assert torch.equal(first, last) == alike


def test_a_node_mixes_banks_by_its_embedding_as_well():
    made, wanted = decoder(BANKED), request((8, 8, 3, 3))
    (before,) = decode(made, wanted)
    torch.nn.init.normal_(made.banks.gate.weight)
    assert not torch.allclose(before, decode(made, wanted)[0])


@pytest.mark.parametrize("shape", [(100, 100, 1, 1), (24, 16, 3, 3)])
def test_gradients_reach_places_banks_and_gates(shape):
    made = decoder(BANKED)
    decode(made, request(shape), request((24, 1, 3, 3), "depthwise_conv"))[
        0
    ].square().sum().backward()
    reached = [made.place_out, made.place_in, made.banks.place_out, made.banks.place_in]
    reached += [made.banks.gate]
    assert all(module.weight.grad.any() for module in reached)
    assert (made.banks.point if shape[2] == 1 else made.banks.dense).grad.any()


@pytest.mark.parametrize("wrong", [{"tile": 2}, {"banks": -1}, {"kernel": 0}, {"bank": 4}])
def test_sizes_that_cannot_be_meant_are_refused(wrong):
    with pytest.raises(ValidationError):
        DecoderConfig(**wrong)
