import itertools

import pytest
import torch
from functional_model import Model
from torch import nn

import ghnqat_sdk as gq

IMAGES = torch.randn(16, 3, 12, 12, generator=torch.Generator().manual_seed(0))
PAIRS = ((2, 2), (4, 4), (8, 8))


def cnn() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip


SIZES = {"0": (216, 216 * 100), "3": (1152, 1152 * 16), "7": (160, 160)}


def test_sizes_are_those_of_the_layers(small):
    suggestion = gq.suggest_bits(cnn(), IMAGES, weight_bytes=1e6, hypernetwork=small)
    assert {name: (size.weights, size.macs) for name, size in suggestion.layers.items()} == SIZES


def test_a_large_budget_takes_the_most_faithful_candidates(small):
    suggestion = gq.suggest_bits(
        cnn(), IMAGES, weight_bytes=1e9, candidates=PAIRS, hypernetwork=small
    )
    for name, bits in suggestion.bits.items():
        assert suggestion.sensitivity[name][bits] == min(suggestion.sensitivity[name].values())
    assert suggestion.cost == sum(SIZES[n][0] * b[0] / 8 for n, b in suggestion.bits.items())


@pytest.mark.parametrize("unit", ["weight_bytes", "bit_operations"])
@pytest.mark.parametrize("share", [1.0, 1.3, 2.0, 3.0])
def test_the_budget_is_kept_and_spent_nearly_as_well_as_possible(small, unit, share):
    def cost(bits: dict[str, tuple[int, int]]) -> float:
        return sum(
            SIZES[n][0] * b[0] / 8 if unit == "weight_bytes" else SIZES[n][1] * b[0] * b[1]
            for n, b in bits.items()
        )

    budget = share * cost(dict.fromkeys(SIZES, (2, 2)))
    suggestion = gq.suggest_bits(
        cnn(), IMAGES, **{unit: budget}, candidates=PAIRS, hypernetwork=small
    )
    assert suggestion.cost == pytest.approx(cost(suggestion.bits))
    assert suggestion.cost <= budget + 1e-6
    whole = [dict(zip(SIZES, choice, strict=True)) for choice in itertools.product(PAIRS, repeat=3)]
    errors = [
        sum(suggestion.sensitivity[n][b] for n, b in bits.items())
        for bits in whole
        if cost(bits) <= budget + 1e-6
    ]
    mine = sum(suggestion.sensitivity[n][b] for n, b in suggestion.bits.items())
    worst = sum(suggestion.sensitivity[n][2, 2] for n in SIZES)
    assert worst - mine >= 0.7 * (worst - min(errors))


def test_a_budget_of_weights_alone_leaves_activations_at_eight_bits(small):
    suggestion = gq.suggest_bits(cnn(), IMAGES, weight_bytes=450, hypernetwork=small)
    assert {activation for _, activation in suggestion.bits.values()} == {8}
    assert min(weight for weight, _ in suggestion.bits.values()) < 8
    together = gq.suggest_bits(cnn(), IMAGES, bit_operations=2e5, hypernetwork=small)
    assert all(weight == activation for weight, activation in together.bits.values())


def test_among_candidates_of_one_cost_the_most_faithful_is_taken(small):
    wide = [(2, 8), (2, 2), (2, 4)]
    suggestion = gq.suggest_bits(
        cnn(), IMAGES, weight_bytes=382, candidates=wide, hypernetwork=small
    )
    for name, bits in suggestion.bits.items():
        assert suggestion.sensitivity[name][bits] == min(suggestion.sensitivity[name].values())


def test_what_is_suggested_can_be_predicted(small):
    model = cnn().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    suggestion = gq.suggest_bits(model, IMAGES, weight_bytes=600, hypernetwork=small)
    qmodel = gq.predict_quantized_params(model, suggestion.bits, hypernetwork=small)
    assert (qmodel[3].weight_quantizer.bits, qmodel[3].input_quantizer.bits) == suggestion.bits["3"]
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert len(str(suggestion).splitlines()) == 4
    assert "cost" in str(suggestion)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "One budget above 0"),
        ({"weight_bytes": 100, "bit_operations": 100}, "One budget above 0"),
        ({"weight_bytes": 0}, "above 0"),
        ({"weight_bytes": "1 MB"}, "weight_bytes='1 MB'"),
        ({"weight_bytes": 10}, "below 382"),
        ({"weight_bytes": 1e6, "candidates": []}, "candidates="),
        ({"weight_bytes": 1e6, "candidates": [(4, 9)]}, "bits="),
        ({"weight_bytes": 1e6, "candidates": [(32, 32)]}, "below float"),
    ],
)
def test_wrong_arguments_say_what_to_write(small, arguments, message):
    with pytest.raises(gq.ArgumentError, match=message):
        gq.suggest_bits(cnn(), IMAGES, hypernetwork=small, **arguments)


def test_models_without_layers_and_wrong_batches_are_refused(small):
    with pytest.raises(gq.GhnqatError):
        gq.suggest_bits(nn.ReLU(), IMAGES, weight_bytes=100, hypernetwork=small)
    for batch, message in (
        (IMAGES[:, :2], r"this batch of shapes .+ first convolution takes 3"),
        (IMAGES[:0], r"is empty.+images\[:32\]"),
        (None, "batch"),
    ):
        with pytest.raises(gq.ArgumentError, match=message) as refused:
            gq.suggest_bits(cnn(), batch, weight_bytes=1000, hypernetwork=small)
        assert "example_inputs" not in str(refused.value)


def macs(model: nn.Module, batch: torch.Tensor, small) -> dict[str, int]:
    suggestion = gq.suggest_bits(
        model, batch, bit_operations=1e12, candidates=[(8, 8)], hypernetwork=small
    )
    return {name: layer.macs for name, layer in suggestion.layers.items()}


def test_multiply_accumulates_are_those_counted_by_hand(small):
    model = nn.Sequential(
        nn.Conv2d(3, 16, 1), nn.ConvTranspose2d(16, 8, 4, stride=4), nn.Conv2d(8, 8, 3, groups=4)
    )
    assert macs(model, torch.randn(2, 3, 6, 6), small) == {
        "0": 6 * 6 * 3 * 16,
        "1": 6 * 6 * 16 * 8 * 4 * 4,
        "2": 22 * 22 * 8 * 2 * 3 * 3,
    }


def test_all_frames_of_a_clip_and_all_calls_of_a_shared_layer_count(small):
    def forward(m, clip):
        frames = m.shared(m.shared(clip.flatten(0, 1)))
        return m.head(frames.mean((2, 3)).unflatten(0, clip.shape[:2]).mean(1))

    model = Model(forward, shared=nn.Conv2d(3, 3, 3, padding=1), head=nn.Linear(3, 5))
    counts = macs(model, torch.randn(2, 6, 3, 8, 8), small)
    assert counts == {"shared": 2 * 6 * 8 * 8 * 3 * 3 * 3 * 3, "head": 3 * 5}


def test_a_batch_that_is_not_finite_is_refused(small):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 5))
    with pytest.raises(gq.ArgumentError, match="not finite"):
        gq.suggest_bits(model, torch.full((2, 3, 6, 6), float("nan")), weight_bytes=1e6,
                     hypernetwork=small)  # fmt: skip


def test_a_suggestion_has_bits_for_layers_that_the_batch_does_not_reach(small):
    def forward(m, x):
        y = m.body(x).mean((2, 3))
        return (m.head(y), m.auxiliary(y)) if m.training else m.head(y)

    body, head, auxiliary = nn.Conv2d(3, 8, 3), nn.Linear(8, 5), nn.Linear(8, 5)
    model = Model(forward, body=body, head=head, auxiliary=auxiliary)
    suggestion = gq.suggest_bits(model, IMAGES, weight_bytes=150, hypernetwork=small)
    assert suggestion.bits["auxiliary"] == (2, 8)
    assert suggestion.cost <= 150
    operations = {"bit_operations": 1e9, "candidates": PAIRS[::-1]}  # of which it costs none
    found = gq.suggest_bits(model, IMAGES, hypernetwork=small, **operations)
    assert found.bits["auxiliary"] == (2, 2)
    qmodel = gq.predict_quantized_params(model, suggestion.bits, hypernetwork=small)
    assert qmodel.auxiliary.weight_quantizer.bits == 2


def test_layers_that_share_a_weight_have_the_same_bits_and_it_counts_once(small):
    model = nn.Sequential(
        *(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5)),
    )
    model[2].weight = model[0].weight
    suggestion = gq.suggest_bits(model, IMAGES, weight_bytes=81 + 15, hypernetwork=small)
    assert suggestion.bits == dict.fromkeys(("0", "2", "6"), (8, 8))
    assert [layer.weights for layer in suggestion.layers.values()] == [81, 0, 15]
    assert suggestion.cost == 81 + 15
