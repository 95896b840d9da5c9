"""Predictions under autocast and other defaults, in place, and of models that were trained."""

import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import ghnqat_sdk as gq
from ghnqat_sdk.errors import ReplacedWeightsWarning, UnfamiliarDataWarning

IMAGES = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def cnn(classes: int = 10) -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, classes)
    return nn.Sequential(*layers)


def values(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_around_a_prediction_changes_nothing(small, dtype):
    arguments = {"hypernetwork": small, "calibration": [IMAGES]}
    expected = gq.predict_quantized_params(cnn(), **arguments)
    with torch.autocast("cpu", dtype=dtype):
        found = gq.predict_quantized_params(cnn(), **arguments)
        assert torch.is_autocast_enabled("cpu")
    torch.testing.assert_close(values(found), values(expected), rtol=0, atol=0)
    assert found[4].input_quantizer.frozen_range == expected[4].input_quantizer.frozen_range


@pytest.fixture
def double_precision_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_all_works_where_double_precision_is_the_default(small, double_precision_by_default):
    images = IMAGES.double()
    qmodel = gq.predict_quantized_params(cnn(), hypernetwork=small, calibration=[images])
    gq.qat.learn_steps(qmodel)
    assert qmodel.eval()(images).dtype is torch.float64
    assert len(gq.quantization_report(qmodel, images).layers) == 2
    assert gq.to_float(qmodel, calibration=[images]).eval()(images).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_all_works_in_half_precision(small, dtype):
    images = IMAGES.to(dtype)
    model = cnn().to(dtype)
    for method in ("mean", "percentile", "mse"):
        qmodel = gq.predict_quantized_params(model, hypernetwork=small)
        gq.calibrate(qmodel, [images], method=method)
    gq.qat.learn_steps(qmodel)
    qmodel(images).sum().backward()
    assert all(p.grad.isfinite().all() for p in qmodel.parameters())
    assert qmodel.eval()(images).dtype is dtype


def wrapped() -> nn.Sequential:
    model = cnn()
    parametrizations.weight_norm(model[0])
    return model


BAD = [
    pytest.param([IMAGES, IMAGES.clone().fill_(float("nan"))], id="nan"),
    pytest.param([IMAGES, IMAGES.clone().index_fill_(0, torch.tensor([63]), float("inf"))],
    id="inf"), pytest.param([IMAGES[:, :2]], id="channels"),
    pytest.param([], id="none"),
    pytest.param(["images"], id="text"),
]  # fmt: skip


@pytest.mark.parametrize("batches", BAD)
@pytest.mark.parametrize("make", [cnn, wrapped])
def test_a_failed_calibration_in_place_gives_the_model_back(small, make, batches):
    model = make().eval()
    before, classes, outputs = values(model), [type(m) for m in model.modules()], model(IMAGES)
    attributes = [sorted(vars(module)) for module in model.modules()]
    with pytest.raises(gq.ArgumentError):
        gq.predict_quantized_params(model, hypernetwork=small, calibration=batches, inplace=True)
    torch.testing.assert_close(values(model), before, rtol=0, atol=0)
    assert [kind.__name__ for kind in classes] == [type(m).__name__ for m in model.modules()]
    assert attributes == [sorted(vars(module)) for module in model.modules()]
    assert torch.equal(model(IMAGES), outputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_failed_fit_in_place_gives_the_model_back(small, dtype):
    model = cnn().to(dtype)
    before = values(model)
    batches = [(IMAGES.to(dtype), torch.full((64,), 10))]  # of ten classes, from 0 on
    with pytest.raises(gq.ArgumentError, match="Labels run"):
        gq.predict_quantized_params(
            model, hypernetwork=small, calibration=batches, head="fit", inplace=True
        )
    torch.testing.assert_close(values(model), before, rtol=0, atol=0)


@pytest.mark.parametrize("batches", BAD)
def test_a_failed_calibration_for_float_leaves_the_model_quantized(batches):
    qmodel = gq.from_float(cnn(), (4, 4))
    gq.calibrate(qmodel, [IMAGES])
    before, outputs = values(qmodel), qmodel.eval()(IMAGES)
    if len(batches) == 2:  # float layers refuse no image; the norm behind them does
        batches = batches[1:]
    with pytest.raises(gq.ArgumentError):
        gq.to_float(qmodel, calibration=batches, inplace=True)
    torch.testing.assert_close(values(qmodel), before, rtol=0, atol=0)
    assert torch.equal(qmodel(IMAGES), outputs)


def test_a_prediction_of_a_trained_model_says_once_that_it_replaces_weights(small):
    model = cnn()
    model(IMAGES)
    for _ in range(2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            gq.predict_quantized_params(model, hypernetwork=small)
        assert [each.category for each in caught] == [ReplacedWeightsWarning]
        assert caught[0].filename == __file__
        assert "from_float(model, bits=(4, 4))" in str(caught[0].message)


@pytest.mark.filterwarnings("error::ghnqat_sdk.errors.GhnqatWarning")
@pytest.mark.parametrize(
    ("classes", "scale", "expected"),
    [(10, 1, ReplacedWeightsWarning), (7, 1, gq.RandomHeadWarning), (10, 9, UnfamiliarDataWarning)],
)
def test_a_warning_that_is_an_error_changes_nothing(small, classes, scale, expected):
    model = cnn(classes)
    if expected is ReplacedWeightsWarning:
        model(IMAGES)
    before = values(model)
    with pytest.raises(expected):
        gq.predict_quantized_params(
            model, hypernetwork=small, calibration=[scale * IMAGES], inplace=True
        )
    torch.testing.assert_close(values(model), before, rtol=0, atol=0)
    assert type(model[0]) is nn.Conv2d


def learning(qmodel: nn.Module) -> nn.Module:
    gq.qat.learn_steps(qmodel)
    return qmodel


@pytest.mark.parametrize(
    "call",
    [
        lambda qmodel, folder: gq.from_float(cnn()),
        lambda qmodel, folder: gq.to_float(qmodel),
        lambda qmodel, folder: gq.load_quantized(cnn(), gq.save_quantized(qmodel, folder)),
        lambda qmodel, folder: learning(qmodel),
        lambda qmodel, folder: gq.qat.fix_steps(learning(qmodel)),
    ],
    ids=["from_float", "to_float", "load_quantized", "learn_steps", "fix_steps"],
)
def test_a_model_that_is_made_in_inference_mode_can_be_trained(call, tmp_path):
    qmodel = gq.from_float(cnn())
    gq.calibrate(qmodel, [IMAGES])
    with torch.inference_mode():
        made = call(qmodel, tmp_path)
    made.train()(IMAGES).sum().backward()
    assert all(parameter.grad is not None for parameter in made.parameters())


def test_bits_may_be_integers_of_numpy(small):
    bits = {"0": (np.int64(8), np.uint8(4)), "*": [np.int32(2), 32]}
    qmodel = gq.predict_quantized_params(cnn(), bits, hypernetwork=small)
    found = qmodel[0].weight_quantizer.bits, qmodel[0].input_quantizer.bits
    assert found == (8, 4)
    assert all(type(width) is int for width in found)
    assert qmodel[4].weight_quantizer.bits == 2
