"""Heads that cannot be fitted as asked."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import ghnqat_sdk as gq
from ghnqat_sdk.heads import HeadReport


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.first, self.second = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x).flatten(1)
        return self.first(features), self.second(features)


IMAGES = torch.randn(60, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.stack([torch.arange(60) % 3, torch.arange(60) // 20], 1)


def fitted(model: nn.Module, **settings: object) -> HeadReport:
    qmodel = gq.from_float(model, (8, 8))
    gq.calibrate(qmodel, [IMAGES])
    return gq.fit_head(qmodel, [(IMAGES, LABELS)], **settings)


def test_heads_that_share_a_weight_are_refused():
    model = TwoHeads()
    model.second.weight = model.first.weight
    with pytest.raises(gq.ArgumentError, match="'first' and 'second' share a parameter"):
        fitted(model, layers={"first": 0, "second": 1})
    assert len(fitted(TwoHeads(), layers={"first": 0, "second": 1}).heads) == 2


@pytest.mark.parametrize("layers", [5, ["first"], {"first": "0"}, {"first": -1}, {"first": True}])
def test_what_names_no_column_of_the_labels_is_refused(layers):
    with pytest.raises(gq.ArgumentError, match=r"Write layers='fc' or layers=\{'fc': 0\}"):
        fitted(TwoHeads(), layers=layers)


@pytest.mark.parametrize("ridge", [float("inf"), float("nan"), -1, "much"])
def test_strengths_that_are_none_are_refused(ridge):
    with pytest.raises(gq.ArgumentError, match=r"Write ridge='auto' or ridge=0\.1"):
        fitted(TwoHeads(), layers={"first": 0, "second": 1}, ridge=ridge)


COMPUTED = {
    "parametrization": parametrizations.weight_norm,
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "pruned twice": lambda layer: prune.random_unstructured(COMPUTED["pruned"](layer), "weight", 1),
    "pruned bias": lambda layer: prune.l1_unstructured(layer, "bias", 0.5),
    "weight norm": weight_norm,
    "spectral norm": spectral_norm,
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("compute", COMPUTED.values(), ids=COMPUTED)
def test_a_weight_that_is_computed_is_refused_with_the_call_that_stores_it(compute):
    torch.manual_seed(0)
    pool = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), *pool, compute(nn.Linear(8, 3)))
    qmodel = gq.from_float(model, (8, 8))
    gq.calibrate(qmodel, [IMAGES])
    batches = [(IMAGES, LABELS[:, 0])]
    with pytest.raises(gq.ArgumentError, match="is computed") as error:
        gq.fit_head(qmodel, batches)
    exec(str(error.value).rpartition("write ")[2].rstrip("."), {"torch": torch, "qmodel": qmodel})
    assert gq.fit_head(qmodel, batches).heads[0].layer == "4"


def test_several_heads_are_told_how_each_is_named():
    calls = {"columns": [(IMAGES, LABELS)], "plain": [(IMAGES, LABELS[:, 0])]}
    for batches in calls.values():
        with pytest.raises(
            gq.ArgumentError, match=r"head='keep'.+layers=\{'first': 0, 'second': 1}"
        ):
            gq.predict_quantized_params(TwoHeads(), calibration=batches, head="fit")


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ((LABELS[:, 0], torch.arange(60)), "leave out what follows the labels in a batch"),
        ((LABELS[:, 0], [f"{i}.jpg" for i in range(60)]), "leave out paths and other words"),
        ((nn.functional.one_hot(LABELS[:, 0]).float(),), r"\(images, labels.argmax\(1\)\)"),
        ((["cat"] * 60,), "a number from 0 for each name"),
    ],
)
def test_what_stands_where_labels_are_expected_is_told(entries, message):
    qmodel = gq.from_float(small(), (8, 8))
    gq.calibrate(qmodel, [IMAGES])
    with pytest.raises(gq.ArgumentError, match=message):
        gq.fit_head(qmodel, [(IMAGES, *entries)])


def test_a_weight_that_a_function_uses_is_no_head():
    class Cosine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = small()[:3], nn.Linear(8, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(self.body(x), nn.functional.normalize(self.head.weight))

    with pytest.raises(gq.ArgumentError, match="No classifier runs as a layer"):
        fitted_to(Cosine(), LABELS[:, 0])


def test_classes_that_nothing_was_measured_on_are_named():
    kept = torch.cat([torch.arange(60) % 3 < 2, torch.ones(4, dtype=torch.bool)])
    images, labels = torch.cat([IMAGES, IMAGES[:4]]), torch.cat([LABELS[:, 0], torch.full((4,), 2)])
    report = fitted_to(small(), labels[kept], images[kept])
    assert report.heads[0].unmeasured == (2,)
    assert "; none held out of class 2" in str(report)


def fitted_to(model: nn.Module, labels: Tensor, images: Tensor = IMAGES) -> HeadReport:
    qmodel = gq.from_float(model, (8, 8))
    gq.calibrate(qmodel, [images])
    return gq.fit_head(qmodel, [(images, labels)])
