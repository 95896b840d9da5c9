"""Classes of fake-quantized modules: pickled, copied, swapped by others, and undone."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import ghnqat_sdk as gq
from ghnqat_sdk.copying import copy_module
from ghnqat_sdk.quantization.classes import fake_quantized_class, float_class

IMAGES = 1 + torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Same(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1)), self.weight, self.bias)


class Activated(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class Frugal(nn.Linear):
    """Says itself how it is copied."""

    def __deepcopy__(self, memo: dict) -> nn.Module:
        twin = type(self)(self.in_features, self.out_features)
        twin.load_state_dict(self.state_dict())
        memo[id(self)] = twin
        return twin


class Halved(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        return values / 2


def quantized(bits: tuple[int, int] = (2, 2)) -> nn.Module:
    torch.manual_seed(0)
    layers = Same(3, 8, 3), Activated(8), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Flatten()
    qmodel = gq.from_float(nn.Sequential(*layers, Frugal(288, 5)), bits)
    gq.calibrate(qmodel, [IMAGES])
    return qmodel.eval()


def saved_and_loaded(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = [
    copy.deepcopy,
    copy.copy,
    copy_module,
    lambda model: pickle.loads(pickle.dumps(model)),
    saved_and_loaded,
]


@pytest.mark.parametrize("make", COPIES)
def test_copies_and_files_of_whole_models_do_what_the_model_does(make):
    qmodel = quantized()
    twin = make(qmodel)
    assert torch.equal(twin(IMAGES), qmodel(IMAGES))
    assert [type(module) for module in twin.modules()] == [type(m) for m in qmodel.modules()]
    assert torch.equal(gq.to_float(twin)(IMAGES), gq.to_float(qmodel)(IMAGES))


@pytest.mark.parametrize("kind", [nn.Conv2d, Same, nn.BatchNorm2d, Activated, Frugal])
def test_a_class_is_made_once_derives_from_the_float_one_and_leads_back(kind):
    ours = fake_quantized_class(kind)
    assert ours is fake_quantized_class(kind)
    assert issubclass(ours, kind)
    assert float_class(ours) is kind


def test_a_parametrized_layer_is_calibrated_and_becomes_float_again():
    qmodel = quantized()
    for index in (0, 1, 2, 3):
        parametrize.register_parametrization(qmodel[index], "weight", Halved())
    assert gq.calibrate(qmodel, [IMAGES]).norms == ("1", "3")
    model = gq.to_float(qmodel)
    expected = F.conv2d(F.pad(IMAGES, (1,) * 4), model[0].parametrizations.weight.original / 2,
                        model[0].bias)  # fmt: skip
    torch.testing.assert_close(model[0](IMAGES), expected)


def parametrized() -> nn.Module:
    return nn.Sequential(parametrizations.weight_norm(Same(3, 8, 3)), nn.ReLU())


def test_a_parametrization_is_removed_from_a_quantized_layer_and_the_users_stays():
    model = parametrized()
    expected = model(IMAGES)
    qmodel = gq.from_float(model, (4, 4))
    gq.calibrate(qmodel, [IMAGES])
    before = qmodel.eval()(IMAGES)
    parametrize.remove_parametrizations(qmodel[0], "weight")
    torch.testing.assert_close(qmodel(IMAGES), before)
    assert isinstance(qmodel[0].weight, nn.Parameter)
    assert type(gq.to_float(qmodel)[0]) is Same
    assert torch.equal(model(IMAGES), expected)
    assert parametrize.is_parametrized(model[0])


def test_a_parametrization_is_removed_from_a_float_copy_and_the_users_stays():
    model = parametrized()
    floats = gq.to_float(gq.from_float(model, (4, 4)))
    parametrize.remove_parametrizations(floats[0], "weight")
    assert type(floats[0]) is Same
    torch.testing.assert_close(floats(IMAGES), model(IMAGES))


def test_pruning_is_made_permanent_in_a_quantized_layer():
    layer = prune.l1_unstructured(nn.Conv2d(3, 8, 3), "weight", amount=0.5)
    qmodel = gq.from_float(nn.Sequential(layer), (4, 4))
    gq.calibrate(qmodel, [IMAGES])
    before = qmodel.eval()(IMAGES)
    prune.remove(qmodel[0], "weight")
    torch.testing.assert_close(qmodel(IMAGES), before)


class Hybrid(nn.Module):
    """Patches, a transformer encoder that may ignore the last of them, a classifier."""

    def __init__(self, masked: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.stem, self.encoder = nn.Conv2d(3, 16, 4, stride=4), nn.TransformerEncoder(layer, 1)
        self.head, self.masked = nn.Linear(16, 5), masked

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        mask = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        mask[:, -1] = True
        mask = mask if self.masked else None
        return self.head(self.encoder(x, src_key_padding_mask=mask).mean(1))


@pytest.mark.parametrize("masked", [False, True])
def test_transformer_encoders_are_quantized_without_autograd_as_with_it(masked):
    torch.manual_seed(0)
    qmodel = gq.from_float(Hybrid(masked), (2, 2))
    gq.calibrate(qmodel, [IMAGES])
    with_autograd = qmodel.eval()(IMAGES).detach()
    with torch.no_grad():
        torch.testing.assert_close(qmodel(IMAGES), with_autograd)
    report = gq.quantization_report(qmodel, IMAGES)
    inside = [layer for layer in report.layers if layer.name.startswith("encoder")]
    assert len(inside) == 2
    assert all(layer.output_error > 1e-6 for layer in inside)


def test_transformer_encoders_are_torchs_own_again_in_a_float_model():
    model = Hybrid(masked=False).eval()
    floats = gq.to_float(gq.from_float(model, (4, 4)))
    assert type(floats.encoder) is nn.TransformerEncoder
    assert type(floats.encoder.layers[0]) is nn.TransformerEncoderLayer
    assert floats.encoder.use_nested_tensor is model.encoder.use_nested_tensor
    assert torch.equal(floats(IMAGES), model(IMAGES))
