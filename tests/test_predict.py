import copy
import os
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

import ghnqat_sdk as gq
from ghnqat_sdk.data import load_images
from ghnqat_sdk.quantization.lookup import fake_quantized_layers


def cnn(classes: int = 10) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(inplace=True),
        nn.Conv2d(12, 12, 3, groups=12),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, classes),
    )


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_every_parameter_is_predicted_and_every_layer_quantized(small):
    qmodel = gq.predict_quantized_params(cnn(), hypernetwork=small)
    report = gq.prediction_report(qmodel)
    assert set(report.predicted) == {name for name, _ in qmodel.named_parameters()}
    assert report.kept == {}
    assert set(fake_quantized_layers(qmodel)) == {"0", "3", "6"}


def test_the_users_model_its_mode_and_the_rng_stay_as_they_were(small):
    model = cnn()
    model[1].eval()
    before, rng, modes = (
        snapshot(model),
        torch.get_rng_state(),
        [m.training for m in model.modules()],
    )
    qmodel = gq.predict_quantized_params(model, hypernetwork=small)
    assert equal(before, snapshot(model))
    assert torch.equal(rng, torch.get_rng_state())
    assert modes == [m.training for m in model.modules()]
    assert [module.training for module in qmodel] == [module.training for module in model]
    assert type(model[0]) is nn.Conv2d
    assert all(p.grad is None for p in model.parameters())


def test_state_dict_keys_are_those_of_the_float_model(small):
    model = cnn()
    qmodel = gq.predict_quantized_params(model, hypernetwork=small)
    assert list(qmodel.state_dict()) == list(model.state_dict())
    model.load_state_dict(qmodel.state_dict())
    qmodel.load_state_dict(cnn().state_dict())


def test_prediction_is_the_same_on_every_call(small):
    first, second = (gq.predict_quantized_params(cnn(), hypernetwork=small) for _ in range(2))
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, dict(second.named_parameters())[name])


def test_prediction_is_the_same_in_every_process():
    """Whatever Python's hash seed, the RNG and what was predicted before."""
    program = """if True:
        import hashlib, sys, torch, torchvision
        from ghnqat_sdk import predict_quantized_params
        torch.manual_seed(int(sys.argv[1]))
        names = ["shufflenet_v2_x0_5", "squeezenet1_1"]
        for name in names if sys.argv[1] == "1" else names[::-1]:
            model = torchvision.models.get_model(name, num_classes=10)
            model = predict_quantized_params(model)
            if name == names[0]:
                values = torch.cat([p.flatten() for p in model.parameters()])
                print(len(values), hashlib.sha256(values.detach().numpy().tobytes()).hexdigest())
    """
    printed = {
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", program, seed],
            env=os.environ | {"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1
    assert printed != {""}


def test_predictions_in_inference_mode_can_be_trained(small):
    with torch.inference_mode():
        qmodel = gq.predict_quantized_params(cnn(), hypernetwork=small)
        assert torch.is_inference_mode_enabled()
    qmodel.train()(torch.randn(4, 3, 16, 16)).sum().backward()
    assert all(p.grad is not None for p in qmodel.parameters())


def test_predicted_parameters_have_memory_of_their_own(small):
    """As safetensors, DDP and in-place updates expect."""
    qmodel = gq.predict_quantized_params(cnn(), hypernetwork=small)
    starts = [p.untyped_storage().data_ptr() for p in qmodel.parameters()]
    assert len(set(starts)) == len(starts)
    assert all(
        p.untyped_storage().nbytes() == p.numel() * p.element_size() for p in qmodel.parameters()
    )
    assert all(p.is_contiguous() and not p.is_inference() for p in qmodel.parameters())


def test_layout_of_the_users_parameters_is_kept(small):
    mine = cnn().to(memory_format=torch.channels_last)
    qmodel = gq.predict_quantized_params(mine, hypernetwork=small)
    assert [p.stride() for p in qmodel.parameters()] == [p.stride() for p in mine.parameters()]


@pytest.mark.parametrize("classes", [7, 100])
def test_a_head_with_other_classes_is_kept_and_reported(small, classes):
    model = cnn(classes)
    qmodel = gq.predict_quantized_params(model, hypernetwork=small)
    report = gq.prediction_report(qmodel)
    assert set(report.kept) == {"6.weight", "6.bias"}
    assert str(classes) in report.kept["6.weight"]
    assert torch.equal(qmodel[6].weight, model[6].weight)
    assert set(report.predicted) | set(report.kept) == {
        name for name, _ in model.named_parameters()
    }


def test_a_head_is_predicted_or_kept_on_request(small):
    model = cnn(7)
    predicted = gq.predict_quantized_params(model, hypernetwork=small, head="predict")
    assert not torch.equal(predicted[6].weight, model[6].weight)
    assert torch.unique(predicted[6].weight, dim=0).shape[0] == 7
    kept = gq.predict_quantized_params(cnn(), hypernetwork=small, head="keep")
    assert set(gq.prediction_report(kept).kept) == {"6.weight", "6.bias"}


def test_inplace_changes_the_model_itself(small):
    model = cnn()
    before = snapshot(model)
    assert gq.predict_quantized_params(model, hypernetwork=small, inplace=True) is model
    assert not equal(before, snapshot(model))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes_are_kept(small, dtype):
    qmodel = gq.predict_quantized_params(cnn().to(dtype), hypernetwork=small)
    assert {p.dtype for p in qmodel.parameters()} == {dtype}
    assert qmodel(torch.randn(4, 3, 16, 16).to(dtype)).isfinite().all()


def test_frozen_models_stay_frozen_and_are_predicted(small):
    model = cnn().requires_grad_(False)
    qmodel = gq.predict_quantized_params(model, hypernetwork=small)
    assert not any(p.requires_grad for p in qmodel.parameters())
    assert not torch.equal(qmodel[0].weight, model[0].weight)


@pytest.mark.parametrize("training", [True, False])
def test_works_under_no_grad_in_both_modes(small, training):
    with torch.no_grad():
        qmodel = gq.predict_quantized_params(cnn().train(training), hypernetwork=small)
    assert qmodel.training is training
    assert all(p.requires_grad for p in qmodel.parameters())


def test_a_step_of_training_reaches_every_parameter(small):
    qmodel = gq.predict_quantized_params(cnn(), hypernetwork=small).train()
    torch.nn.functional.cross_entropy(qmodel(torch.randn(8, 3, 16, 16)), torch.arange(8)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in qmodel.parameters())


def test_copies_and_pickles_predict_the_same(small):
    qmodel = gq.predict_quantized_params(
        cnn(), hypernetwork=small, calibration=[torch.randn(64, 3, 16, 16)]
    ).eval()
    images = torch.randn(4, 3, 16, 16)
    for other in (copy.deepcopy(qmodel), pickle.loads(pickle.dumps(qmodel))):
        assert torch.equal(other(images), qmodel(images))
        assert gq.prediction_report(other) == gq.prediction_report(qmodel)


def test_calibration_makes_evaluation_independent_of_the_batch(small, data):
    images = torch.cat([batch for batch, _ in load_images(data, "train").batches(64)])
    qmodel = gq.predict_quantized_params(cnn(), hypernetwork=small, calibration=[images]).eval()
    alone = torch.cat([qmodel(image[None]) for image in images[:8]])
    torch.testing.assert_close(qmodel(images[:8]), alone, rtol=1e-4, atol=1e-4)


def test_shared_modules_are_predicted_once(small):
    conv = nn.Conv2d(8, 8, 3, padding=1)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), conv, nn.ReLU(), conv)
    qmodel = gq.predict_quantized_params(model, hypernetwork=small)
    assert qmodel[1] is qmodel[3]
    assert len(gq.prediction_report(qmodel).predicted) == 4


def test_unused_parameters_are_kept_with_a_reason(small):
    class Partly(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Conv2d(3, 4, 3), nn.Linear(5, 5)

        def forward(self, x):
            return self.used(x)

    report = gq.prediction_report(gq.predict_quantized_params(Partly(), hypernetwork=small))
    assert report.kept == dict.fromkeys(
        ("unused.weight", "unused.bias"), "not used by the forward pass"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "resnet18"}, "expected an nn.Module"),
        ({"bits": 4}, r"bits=\(4, 4\)"),
        ({"bits": (1, 4)}, "from 2 to 8"),
        ({"bits": (4, 4, 4)}, "pair"),
        ({"head": "replace"}, "head='auto'"),
    ],
)
def test_wrong_arguments_say_what_to_write(small, arguments, message):
    with pytest.raises(gq.ArgumentError, match=message):
        gq.predict_quantized_params(**({"model": cnn(), "hypernetwork": small} | arguments))


def test_a_model_that_cannot_be_run_says_what_to_pass(small):
    class Needs(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x, scale):
            return self.conv(x) * scale

    with pytest.raises(gq.TraceError, match="example_inputs="):
        gq.predict_quantized_params(Needs(), hypernetwork=small)
    pair = (torch.empty(2, 3, 8, 8), torch.empty(2, 1, 1, 1))
    qmodel = gq.predict_quantized_params(Needs(), hypernetwork=small, example_inputs=pair)
    assert len(gq.prediction_report(qmodel).predicted) == 2


def test_a_quantized_model_is_not_quantized_again(small):
    qmodel = gq.predict_quantized_params(cnn(), hypernetwork=small)
    with pytest.raises(gq.ArgumentError, match="to_float"):
        gq.predict_quantized_params(qmodel, hypernetwork=small)


def test_a_report_of_any_other_model_is_refused():
    with pytest.raises(gq.ArgumentError, match="predict_quantized_params"):
        gq.prediction_report(cnn())


def test_damaged_weights_do_not_reach_the_model(small):
    with torch.no_grad():
        next(iter(small.decoder.parameters())).fill_(float("nan"))
    model = cnn()
    before = snapshot(model)
    with pytest.raises(gq.GhnqatError, match="NaN"):
        gq.predict_quantized_params(model, hypernetwork=small, inplace=True)
    assert equal(before, snapshot(model))


def test_a_parameter_whose_entries_share_memory_cannot_be_changed_in_place(small):
    model = cnn()
    model[6].bias = nn.Parameter(torch.zeros(1).expand(10))
    assert gq.predict_quantized_params(model, hypernetwork=small)[6].bias.std() > 0
    before = snapshot(model)
    with pytest.raises(gq.ArgumentError, match=r"'6\.bias' share memory.+inplace=False"):
        gq.predict_quantized_params(model, hypernetwork=small, inplace=True)
    assert equal(snapshot(model), before)
