"""The report of a prediction is of the model as it is now."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import ghnqat_sdk as gq

ADDED = "put in after the prediction"
IMAGES = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
COPIES = {
    "itself": lambda model: model,
    "a copy": copy.deepcopy,
    "a pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "in another precision": lambda model: copy.deepcopy(model).double(),
    "in float": gq.to_float,
}


@pytest.fixture
def qmodel(small) -> nn.Module:
    ends = nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(288, 10)
    return gq.predict_quantized_params(
        nn.Sequential(nn.Conv2d(3, 8, 3), *ends), hypernetwork=small, example_inputs=IMAGES
    )


@pytest.mark.parametrize("kind", COPIES)
def test_a_new_head_is_neither_predicted_nor_quantized(qmodel, kind):
    model = COPIES[kind](qmodel)
    assert gq.prediction_report(model) == gq.prediction_report(qmodel)
    model[3] = nn.Linear(288, 37)
    report = gq.prediction_report(model)
    assert report.predicted == ("0.weight", "0.bias", "1.weight", "1.bias")
    assert report.kept == {"3.weight": ADDED, "3.bias": ADDED}
    assert report.unquantized == {"3": ADDED}
    assert report.removed == ()


def test_layers_that_are_gone_are_listed(qmodel):
    model = qmodel
    model[3] = nn.Identity()
    model.append(nn.Linear(288, 5, bias=False))
    report = gq.prediction_report(model)
    assert report.removed == ("3.weight", "3.bias")
    assert report.kept == {"4.weight": ADDED}
    assert "removed 3.bias" in str(report)


def test_a_layer_that_is_pruned_afterwards_has_a_parameter_of_another_name(qmodel):
    prune.l1_unstructured(qmodel[0], "weight", amount=0.5)
    report = gq.prediction_report(qmodel)
    assert (report.kept, report.removed) == ({"0.weight_orig": ADDED}, ("0.weight",))
    assert report.unquantized == {}


def test_a_part_that_is_predicted_anew_speaks_for_itself(qmodel, small):
    whole = gq.predict_quantized_params(
        nn.Sequential(nn.Conv2d(3, 3, 1), gq.to_float(qmodel)), hypernetwork=small,
        example_inputs=IMAGES
    )  # fmt: skip
    assert len(gq.prediction_report(whole).predicted) == 8
    with pytest.warns(gq.RandomHeadWarning):
        whole[1] = gq.predict_quantized_params(
            nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(288, 5)), hypernetwork=small
        )
    report = gq.prediction_report(whole)
    assert report.predicted == ("0.weight", "0.bias", "1.0.weight", "1.0.bias")
    assert set(report.kept) == {"1.2.weight", "1.2.bias"}
    assert "5 classes" in report.kept["1.2.weight"]
    assert report.removed == ()


def test_a_head_that_is_fitted_afterwards_is_reported_so(qmodel):
    gq.calibrate(qmodel, [IMAGES])
    whole = nn.Sequential(qmodel, nn.Identity())
    gq.fit_head(whole, [(IMAGES, torch.arange(64) % 10)])
    for model, start in ((qmodel, ""), (whole, "0.")):
        kept = gq.prediction_report(model).kept
        fitted = (f"{start}3.weight", f"{start}3.bias")
        assert kept == dict.fromkeys(fitted, "fitted to the labels")


@pytest.mark.parametrize("start", ["", "1."], ids=["the model", "a part"])
def test_a_predicted_model_that_is_itself_the_classifier_is_reported_as_fitted(small, start):
    features = IMAGES.flatten(1)
    head = gq.predict_quantized_params(
        nn.Linear(192, 10), hypernetwork=small, example_inputs=features
    )
    gq.calibrate(head, [features])
    model = nn.Sequential(nn.Identity(), head) if start else head
    heads = gq.fit_head(model, [(features, torch.arange(64) % 10)])
    assert str(heads).startswith("1: 10 classes" if start else "model: 10 classes")
    fitted = (f"{start}weight", f"{start}bias")
    assert gq.prediction_report(model).kept == dict.fromkeys(fitted, "fitted to the labels")
