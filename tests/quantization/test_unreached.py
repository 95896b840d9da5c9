"""Parts of a calibrated model that no image reached while calibrating."""

import warnings

import pytest
import torch
from torch import Tensor, nn

import ghnqat_sdk as gq

SMALL = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LARGE = torch.randn(16, 3, 24, 24, generator=torch.Generator().manual_seed(1))


class BySize(nn.Module):
    """Large images take a longer way."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 10)
        self.longer = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        if x.shape[-1] > 4:
            x = self.longer(x)
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def small_alone(tmp_path_factory) -> tuple[nn.Module, nn.Module]:
    """Calibrated on small images; as it is, and read back from files."""
    qmodel = gq.predict_quantized_params(BySize(), (8, 8), example_inputs=LARGE[:1])
    report = gq.calibrate(qmodel, [SMALL], progress=False)
    assert report.unreached == ("longer.1", "longer.0")
    folder = gq.save_quantized(qmodel.eval(), tmp_path_factory.mktemp("unreached"))
    return qmodel, gq.load_quantized(BySize(), folder).eval()


@pytest.mark.parametrize("read_back", [False, True])
def test_what_no_image_reached_is_told_once_and_follows_the_batch(read_back, small_alone):
    qmodel = small_alone[read_back]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        qmodel(SMALL)
    with pytest.warns(gq.UncalibratedWarning, match="no image reached"):
        evaluated = qmodel(LARGE)
    with torch.no_grad():
        trained = qmodel.train()(LARGE)
        qmodel.eval()(LARGE)  # and not again
    assert (evaluated - trained).norm() < 0.2 * trained.norm()


def test_a_calibration_that_reaches_all_settles_it():
    qmodel = gq.predict_quantized_params(BySize(), (8, 8), calibration=[SMALL])
    gq.calibrate(qmodel, [LARGE], progress=False)
    qmodel.eval()(LARGE)  # a warning would be an error
    assert torch.equal(qmodel(LARGE)[:3], qmodel(LARGE[:3]))


def test_a_float_model_keeps_the_statistics_that_it_has():
    model = BySize().train()
    model(LARGE)
    qmodel = gq.from_float(model.eval(), (32, 32))
    gq.calibrate(qmodel, [SMALL], progress=False)
    torch.testing.assert_close(qmodel.eval()(LARGE), model(LARGE))
