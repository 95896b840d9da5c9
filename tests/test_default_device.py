"""All works on the model's own device, whatever device the program has chosen for new tensors."""

import copy

import pytest
import torch
from functional_model import Model
from torch import nn
from torch.nn.utils import parametrizations

import ghnqat_sdk as gq
from ghnqat_sdk.data import ImageSet, draw_moves, load_images, move_images
from ghnqat_sdk.demo.images import demo_images
from ghnqat_sdk.export import export_onnx

IMAGES = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(64) % 10
PIXELS = ImageSet.of(IMAGES.mul(40).add(128).clamp(0, 255).byte(), LABELS)


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


class Few:
    """An architecture, which is built when it is ranked."""

    key = ("few",)

    def build(self, num_classes: int) -> nn.Module:
        return cnn()


SOURCES = {
    "folder": lambda data: load_images(data, "val", size=9),  # not read by tests before
    "own statistics": lambda data: load_images(data, "test", size=9, own_statistics=True),
    "demo": lambda data: demo_images("test"),
    "arrays": lambda data: ImageSet.of(PIXELS.images.numpy(), LABELS.tolist(), size=12),
    "tensors": lambda data: ImageSet.of(PIXELS.images, LABELS),
    "sample": lambda data: PIXELS.sample(9, seed=0),
    "stratified": lambda data: PIXELS.stratified(20, torch.Generator("cpu").manual_seed(0)),
}
NETWORKS = [("m", cnn()), Few()]
SEARCHES = {
    "rank": lambda small: gq.rank_architectures(NETWORKS, (4, 4), PIXELS, hypernetwork=small),
    "search": lambda small: gq.search_architectures(
        NETWORKS, PIXELS, weight_bytes=2000, hypernetwork=small
    ),
}


@pytest.mark.parametrize("name", SOURCES)
def test_images_are_on_the_cpu(data, name):
    with torch.device("meta"):
        found = SOURCES[name](data)
    assert found.digest() == SOURCES[name](data).digest()


def test_images_move_where_they_are():
    def moved() -> torch.Tensor:
        return move_images(IMAGES, draw_moves(64, 2, torch.Generator("cpu").manual_seed(0)))

    with torch.device("meta"):
        found = moved()
    assert torch.equal(found, moved())


@pytest.mark.parametrize("name", SEARCHES)
def test_networks_are_measured_on_the_images(small, name):
    with torch.device("meta"):
        found = SEARCHES[name](small)
    assert not found.failed
    assert str(found) == str(SEARCHES[name](small))
