"""What parametrizations and hooks keep of a weight belongs to the predicted weight afterwards."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import ghnqat_sdk as gq
from ghnqat_sdk.deriving import DERIVED, STAYED

IMAGES = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
BOTH_KINDS = pytest.mark.parametrize(
    "norm", [parametrizations.spectral_norm, torch.nn.utils.spectral_norm]
)
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def cnn(norm) -> nn.Sequential:
    """Two normed convolutions whose vectors have settled."""
    torch.manual_seed(0)
    convolutions = norm(nn.Conv2d(3, 12, 3)), norm(nn.Conv2d(12, 12, 3))
    model = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(192, 10))
    for _ in range(20):
        model(IMAGES[:1])
    return model


def spectral_norms(model: nn.Module) -> list[float]:
    weights = [model[index].weight.detach().flatten(1) for index in (0, 1)]
    return [torch.linalg.matrix_norm(weight, 2).item() for weight in weights]


@BOTH_KINDS
@pytest.mark.parametrize("inplace", [False, True])
def test_predicted_weights_have_a_spectral_norm_of_one(small, norm, inplace):
    qmodel = gq.predict_quantized_params(cnn(norm), hypernetwork=small, inplace=inplace)
    assert spectral_norms(qmodel) == pytest.approx([1, 1], abs=0.01)


@BOTH_KINDS
def test_training_goes_on_from_the_calibrated_outputs(small, norm):
    qmodel = gq.predict_quantized_params(cnn(norm), (8, 8), hypernetwork=small,
                                         calibration=[IMAGES])  # fmt: skip
    calibrated = qmodel.eval()(IMAGES)
    for _ in range(10):
        qmodel.train()(IMAGES)
    change = (qmodel.eval()(IMAGES) - calibrated).std() / calibrated.std()
    assert change < 0.05


@BOTH_KINDS
def test_the_users_model_its_mode_and_the_generators_stay(small, norm):
    model = cnn(norm).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    qmodel = gq.predict_quantized_params(model, hypernetwork=small)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module.training for module in (*model.modules(), *qmodel.modules()))


@BOTH_KINDS
def test_a_failure_in_place_gives_back_what_was_derived(small, norm):
    model = cnn(norm).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights, outputs = [model[0].weight.clone(), model[1].weight.clone()], model(IMAGES)
    with pytest.raises(gq.ArgumentError):
        gq.predict_quantized_params(model, hypernetwork=small, calibration=[], inplace=True)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert all(torch.equal(model[i].weight, weight) for i, weight in enumerate(weights))
    assert torch.equal(model(IMAGES), outputs)


class Averaged(nn.Module):
    """A parametrization that follows its weight slowly, as users write one."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", weight.detach().clone())

    def forward(self, weight: Tensor) -> Tensor:
        if self.training:
            self.mean.lerp_(weight.detach(), 0.5)
        return self.mean + (weight - weight.detach())


def test_a_parametrization_of_the_users_follows_the_predicted_weight(small):
    layer = nn.Conv2d(3, 12, 3)
    parametrize.register_parametrization(layer, "weight", Averaged(layer.weight))
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(432, 10))
    qmodel = gq.predict_quantized_params(model, hypernetwork=small)
    original = qmodel[0].parametrizations.weight.original
    torch.testing.assert_close(qmodel[0].weight, original, rtol=1e-4, atol=1e-5)
    assert not torch.equal(original, layer.parametrizations.weight.original)


class Own(nn.Conv2d):
    """A layer that scales its weight by a buffer of its own."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.register_buffer("largest", self.weight.detach().abs().max())

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight / self.largest, self.bias)


def test_the_report_says_what_became_of_buffers(small):
    torch.manual_seed(0)
    pruned = prune.l1_unstructured(nn.Conv2d(12, 12, 3), "weight", amount=0.5)
    normed = parametrizations.spectral_norm(nn.Conv2d(3, 12, 3))
    layers = normed, pruned, Own(12, 12, 3), nn.BatchNorm2d(12), nn.Flatten(), nn.Linear(48, 10)
    report = gq.prediction_report(
        gq.predict_quantized_params(
            nn.Sequential(*layers), hypernetwork=small, example_inputs=IMAGES
        )
    )
    assert report.buffers == {
        "0.parametrizations.weight.0._u": DERIVED,
        "0.parametrizations.weight.0._v": DERIVED,
        "1.weight_mask": STAYED,
        "2.largest": STAYED,
    }
    assert f"buffer 1.weight_mask: {STAYED}" in str(report)


class Listening:
    """A hook that wants the input."""

    def __init__(self) -> None:
        self.total = 0.0

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        module.scaled = module.weight * 2
        self.total += args[0].sum().item()


def test_a_hook_that_cannot_run_alone_stays_as_it_is(small):
    model = nn.Sequential(nn.Conv2d(3, 12, 3), nn.Flatten(), nn.Linear(432, 10))
    model[0].register_forward_pre_hook(Listening())
    model(IMAGES)
    qmodel = gq.predict_quantized_params(model, hypernetwork=small)
    assert qmodel(IMAGES).isfinite().all()


def test_weights_made_by_hooks_are_up_to_date_before_the_first_run(small):
    model = nn.Sequential(
        torch.nn.utils.weight_norm(nn.Conv2d(3, 12, 3)), nn.Flatten(), nn.Linear(432, 10)
    )
    qmodel = gq.predict_quantized_params(model, hypernetwork=small)
    layer = qmodel[0]
    before = layer.weight.detach().clone()
    qmodel(IMAGES)
    torch.testing.assert_close(layer.weight.detach(), before)
