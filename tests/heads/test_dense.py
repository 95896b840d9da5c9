"""Models that score each place of an image, which no closed-form head can serve."""

import pytest
import torch
from functional_model import Model
from torch import nn

import ghnqat_sdk as gq

IMAGES = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def dense() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))


def pooled() -> nn.Module:
    return nn.Sequential(*dense(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def upsampled() -> nn.Module:
    return nn.Sequential(*dense(), nn.Upsample(scale_factor=2))


def tokens() -> nn.Module:
    def forward(m, x):
        return m.head(m.conv(x).flatten(2).mT)

    return Model(forward, conv=nn.Conv2d(3, 4, 3), head=nn.Linear(4, 2))


def two_heads() -> nn.Module:
    def forward(m, x):
        features = m.conv(x).relu()
        return {"class": m.head(features.mean((2, 3))), "mask": m.mask(features)}

    layers = {"conv": nn.Conv2d(3, 4, 3), "head": nn.Linear(4, 3), "mask": nn.Conv2d(4, 2, 1)}
    return Model(forward, **layers)


@pytest.mark.parametrize(
    ("make", "weights"),
    [
        (dense, ("2.weight",)),
        (upsampled, ("2.weight",)),
        (tokens, ("head.weight",)),
        (two_heads, ("mask.weight",)),
        (pooled, ()),
    ],
)
def test_the_graph_knows_which_classifiers_score_places(make, weights):
    assert gq.trace(make(), IMAGES).dense == weights


@pytest.mark.parametrize("make", [dense, upsampled, tokens])
def test_dense_models_are_told_to_train_their_head(small, make):
    with pytest.warns(gq.RandomHeadWarning, match="Train it: fit_head cannot") as caught:
        gq.predict_quantized_params(make(), hypernetwork=small, example_inputs=IMAGES)
    assert "head='fit'" not in str(caught[0].message)


def test_models_with_one_class_for_an_image_are_told_to_fit_it(small):
    with pytest.warns(gq.RandomHeadWarning, match="Fit it to labelled images"):
        gq.predict_quantized_params(pooled(), hypernetwork=small)


@pytest.mark.parametrize("labels", [torch.arange(16) % 2, torch.zeros(16, 8, 8, dtype=torch.int64)])
def test_fit_head_refuses_dense_models_whatever_the_labels(labels):
    qmodel = gq.from_float(dense())
    before = qmodel[2].weight.clone()
    with pytest.raises(gq.ArgumentError, match=r"each place of an image.* Train it"):
        gq.fit_head(qmodel, [(IMAGES, labels)])
    assert torch.equal(qmodel[2].weight, before)


def test_one_layer_alone_is_refused_as_well():
    qmodel = gq.from_float(nn.Conv2d(3, 2, 1), example_inputs=IMAGES)
    with pytest.raises(gq.ArgumentError, match="The model scores each place of an image"):
        gq.fit_head(qmodel, [(IMAGES, torch.arange(16) % 2)])
