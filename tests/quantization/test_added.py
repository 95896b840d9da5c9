"""What is put into a model after its quantization."""

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

import ghnqat_sdk as gq
from ghnqat_sdk.quantization.added import stale_statistics

IMAGES = 1 + 2 * torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network(norm: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    pool = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU(), *pool, nn.Linear(8, 10))


@pytest.fixture
def qmodel() -> nn.Module:
    qmodel = gq.from_float(network(nn.BatchNorm2d(8)), (8, 8))
    gq.calibrate(qmodel, [IMAGES])
    return qmodel


def with_new_head(qmodel: nn.Module) -> nn.Module:
    qmodel[5] = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 5))
    return qmodel


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (with_new_head, ("1", "5.1")),
        (nn.SyncBatchNorm.convert_sync_batchnorm, ("1",)),
        (lambda qmodel: nn.Sequential(qmodel, nn.BatchNorm1d(10)), ("0.1", "1")),
    ],
    ids=["head", "sync", "around"],
)
def test_norms_that_come_later_are_calibrated_and_frozen_as_others(change, names, qmodel):
    qmodel = change(qmodel)
    keys = [*qmodel.state_dict()]
    assert gq.calibrate(qmodel, [3 * IMAGES]).norms == names
    with torch.no_grad():
        expected = gq.to_float(qmodel, calibration=[3 * IMAGES]).train()(3 * IMAGES)
        outputs = qmodel.eval()(3 * IMAGES)
        assert (outputs - expected).norm() < 0.1 * expected.norm()
        gq.qat.freeze_batch_norm(qmodel)
        assert torch.equal(qmodel.train()(3 * IMAGES), outputs)
    floated = gq.to_float(qmodel)
    torch_kinds = {nn.SyncBatchNorm, nn.BatchNorm2d, nn.BatchNorm1d}
    assert {type(floated.get_submodule(name)) for name in names} <= torch_kinds
    assert [*floated.state_dict()] == keys


def test_a_norm_that_comes_after_calibration_is_frozen_as_it_is(qmodel):
    qmodel = with_new_head(qmodel).eval()
    outputs = qmodel(IMAGES)
    gq.qat.freeze_batch_norm(qmodel)
    assert torch.equal(qmodel.train()(IMAGES), outputs)
    assert torch.equal(qmodel.eval()(IMAGES), outputs)


def test_layers_that_come_later_are_reported_with_their_names_in_the_whole(qmodel):
    assert gq.quantization_report(qmodel, IMAGES).unquantized == {}
    qmodel[5] = nn.Linear(8, 37)
    added = "put in after the quantization"
    assert gq.quantization_report(qmodel, IMAGES).unquantized == {"5": added}
    whole = nn.Sequential(qmodel, nn.Linear(37, 6), nn.Unflatten(1, (2, 3)), nn.RNN(3, 3))
    report = gq.quantization_report(whole, IMAGES)
    rnn = "RNN is computed in float"
    assert report.unquantized == {"0.5": added, "1": added, "3": rnn}
    assert [layer.name for layer in report.layers] == ["0.0"]


def test_reasons_of_the_quantization_follow_the_model_into_another_and_leave_with_their_module():
    qmodel = gq.from_float(network(FrozenBatchNorm2d(8)), example_inputs=IMAGES)
    whole = nn.Sequential(nn.Identity(), qmodel)
    (name,) = gq.quantization_report(whole, IMAGES).unquantized
    assert name == "1.1"
    qmodel[0].quantization.normalized = True  # as a prediction's is
    assert [*stale_statistics(whole)] == ["1.1"]
    qmodel[1] = nn.BatchNorm2d(8)
    gq.calibrate(whole, [IMAGES / IMAGES.std() - 0.5])
    assert stale_statistics(whole) == {}
