"""All works on the model's own device, whatever device the program has chosen for new tensors."""

import copy

import pytest
import torch
from functional_model import Model
from torch import nn
from torch.nn.utils import parametrizations

import ghnqat_sdk as gq
from ghnqat_sdk.export import export_onnx

IMAGES = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(64) % 10


def cnn() -> nn.Module:
    """A model that makes a tensor of its own, and has a norm, and a weight that is made."""
    torch.manual_seed(0)

    def forward(m, x):
        x = m.norm(m.conv(x)).relu().flatten(1)
        return m.head(x + torch.ones(x.shape[1]))

    return Model(
        forward,
        conv=parametrizations.spectral_norm(nn.Conv2d(3, 8, 3)),
        norm=nn.BatchNorm2d(8),
        head=nn.Linear(288, 10),
    )


def calibrated() -> nn.Module:
    qmodel = gq.from_float(cnn(), (4, 4))
    gq.calibrate(qmodel, [IMAGES])
    return qmodel.eval()


FITTED = {"calibration": [(IMAGES, LABELS)], "head": "fit", "example_inputs": IMAGES}
CALLS = {
    "trace": lambda model, small: gq.trace(model, IMAGES),
    "predict": lambda model, small: gq.predict_quantized_params(model, hypernetwork=small),
    "fit": lambda model, small: gq.predict_quantized_params(model, hypernetwork=small, **FITTED),
    "load": lambda model, small: gq.load_pretrained(),
    "convert": lambda model, small: gq.from_float(model, (4, 4)),
}
CALLS_OF_CALIBRATED = {
    **{
        method: lambda qmodel, method=method: gq.calibrate(qmodel, [IMAGES], method=method)
        for method in ("auto", "min-max", "percentile", "mse")
    },
    "head": lambda qmodel: gq.fit_head(qmodel, [(IMAGES, LABELS)]),
    "report": lambda qmodel: gq.quantization_report(qmodel, IMAGES),
    "float": lambda qmodel: gq.to_float(qmodel, calibration=[IMAGES]),
    "steps": lambda qmodel: gq.qat.learn_steps(qmodel),
    "oscillation": lambda qmodel: gq.qat.oscillation_loss(qmodel),
}


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.state_dict())


@pytest.mark.parametrize("name", CALLS)
def test_a_model_is_taken_where_it_is(small, name):
    model, again = cnn(), cnn()
    with torch.device("meta"):
        found = CALLS[name](model, small)
        assert torch.empty(1).is_meta
    expected = CALLS[name](again, small)
    if isinstance(found, nn.Module):
        torch.testing.assert_close(tensors(found), tensors(expected), rtol=0, atol=0)
    else:
        assert found == expected


@pytest.mark.parametrize("name", CALLS_OF_CALIBRATED)
def test_so_is_a_fake_quantized_model(name):
    qmodel = calibrated()
    again = copy.deepcopy(qmodel)
    with torch.device("meta"):
        found = CALLS_OF_CALIBRATED[name](qmodel)
    expected = CALLS_OF_CALIBRATED[name](again)
    torch.testing.assert_close(tensors(qmodel), tensors(again), rtol=0, atol=0)
    assert str(found) == str(expected)


def test_quantized_layers_need_no_default_device():
    qmodel = gq.from_float(nn.Sequential(nn.Conv2d(3, 8, 3)), (4, 4))
    gq.calibrate(qmodel, [IMAGES])
    expected = qmodel.eval()(IMAGES)
    with torch.device("meta"):
        assert torch.equal(qmodel(IMAGES), expected)


def test_a_model_on_meta_tensors_stays_there(small):
    with torch.device("meta"):
        qmodel = gq.predict_quantized_params(cnn(), hypernetwork=small)
    assert all(parameter.is_meta for parameter in qmodel.parameters())


def test_an_export_is_the_same(tmp_path):
    qmodel = gq.from_float(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), (4, 8))
    gq.calibrate(qmodel, [IMAGES])
    written = [tmp_path / "here.onnx", tmp_path / "there.onnx"]
    expected = export_onnx(qmodel, written[0], IMAGES)
    with torch.device("meta"):
        found = export_onnx(qmodel, written[1], IMAGES)
    assert written[0].read_bytes() == written[1].read_bytes()
    assert found.size == expected.size
