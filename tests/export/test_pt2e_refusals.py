import copy
import sys

import pytest
import torch
from to_pt2e import IMAGES, Net, calibrated, converted, prepare_pt2e, quantized, upsampling
from torch import nn
from torch.nn.utils import prune

from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.export.pt2e import pt2e_quantizer
from ghnqat_sdk.quantization.lookup import fake_quantized_layers

# torchao says these to itself.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)


def test_another_model_is_refused(no_search):
    quantizer, other = pt2e_quantizer(quantized((4, 4))), quantized((4, 4))
    with torch.no_grad():
        other.side.weight.add_(torch.randn_like(other.side.weight))
    with pytest.raises(ArgumentError, match="weight of 'side' is not that"):
        converted(other, quantizer)
    program = torch.export.export(nn.Sequential(nn.Conv2d(3, 3, 1)), (IMAGES,))
    with pytest.raises(ArgumentError, match="the fake-quantized model has not"):
        prepare_pt2e(program.module(), quantizer)


def test_a_model_of_other_sizes_is_refused(no_search):
    def network(width: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, 4, 3)).eval()

    quantizer = pt2e_quantizer(calibrated(network(8), (4, 8)))
    for other in (network(6), nn.Sequential(network(8))):
        program = torch.export.export(other, (IMAGES,))
        with pytest.raises(ArgumentError, match=r"not that of|has not"):
            prepare_pt2e(program.module(), quantizer)


def test_bad_input_is_refused(monkeypatch, no_search):
    with pytest.raises(ArgumentError, match="predict_quantized_params"):
        pt2e_quantizer(Net())
    qmodel = quantized((4, 4))
    fake_quantized_layers(qmodel)["side"].input_quantizer.frozen_range = None
    with pytest.raises(ArgumentError, match="'side' has no range"):
        converted(qmodel, pt2e_quantizer(qmodel))
    qmodel.stem.quantization.calibrated = False
    with pytest.raises(ArgumentError, match="calibrate"):
        pt2e_quantizer(qmodel)
    monkeypatch.setitem(sys.modules, "torchao.quantization.pt2e", None)
    with pytest.raises(ArgumentError, match=r"ghnqat-sdk\[torchao\]"):
        pt2e_quantizer(quantized((4, 4)))


def test_norms_after_one_weight_are_refused(no_search):
    conv = nn.Conv2d(3, 3, 1)
    model = nn.Sequential(conv, nn.BatchNorm2d(3), nn.ReLU(), conv, nn.BatchNorm2d(3))
    qmodel = calibrated(model, (4, 8))
    with pytest.raises(ArgumentError, match="the weight of '0', which is read several times"):
        converted(qmodel, pt2e_quantizer(qmodel))


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("compute", [nn.utils.parametrizations.weight_norm, nn.utils.spectral_norm])
def test_computed_weights_are_refused_with_the_call_that_stores_them(no_search, compute):
    qmodel = calibrated(nn.Sequential(compute(nn.Conv2d(3, 4, 3)), nn.ReLU()), (4, 8))
    with pytest.raises(ArgumentError, match=r"weight of '0' is computed") as error:
        converted(qmodel, pt2e_quantizer(qmodel))
    call = str(error.value).rpartition("before pt2e_quantizer, ")[2].rstrip(".")
    exec(call, {"torch": torch, "qmodel": qmodel})
    converted(qmodel, pt2e_quantizer(qmodel))


def test_a_norm_beside_which_its_layer_is_read_is_refused(no_search):
    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
            nn.init.normal_(self.norm.weight)

        def forward(self, x):
            y = self.conv(x)
            return (torch.relu(self.norm(y)) + y).mean((2, 3))

    torch.manual_seed(0)
    qmodel = calibrated(Beside(), (4, 8))
    with pytest.raises(ArgumentError, match=r"changes its outputs.+export_onnx"):
        converted(qmodel, pt2e_quantizer(qmodel))


def test_what_torchao_stops_at_is_named_before(no_search):
    conv = nn.Conv2d(3, 4, 3)
    prune.l1_unstructured(conv, "weight", 0.5)
    qmodel = calibrated(nn.Sequential(conv, nn.BatchNorm2d(4), nn.ReLU()), (4, 8))
    with pytest.raises(ArgumentError, match=r"weight of '0' is computed.+prune\.remove"):
        pt2e_quantizer(qmodel)
    with pytest.raises(ArgumentError, match=r"in torch\.float64; expected float32"):
        pt2e_quantizer(copy.deepcopy(quantized((4, 8))).double())


def test_a_norm_after_a_transposed_convolution_with_groups_is_refused():
    with pytest.raises(ArgumentError, match=r"fold the batch norm '3' into '2'.+2 groups"):
        pt2e_quantizer(upsampling(nn.BatchNorm2d(4)))
