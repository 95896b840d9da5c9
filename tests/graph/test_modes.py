"""The mode in which a model is traced: in training where it runs so, or in the modes in which it
is."""

import pytest
import torch
from functional_model import Model
from torch import Tensor, nn

import ghnqat_sdk as gq

IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def detector() -> nn.Module:
    """Wants targets in training; in evaluation it keeps what scores high enough."""

    def forward(m, x: Tensor, targets: Tensor | None = None) -> Tensor:
        scores = m.head(m.conv(x).relu().mean((2, 3)))
        if m.training:
            return nn.functional.cross_entropy(scores, targets)
        return scores[scores.softmax(1).amax(1) > 0.01]

    return Model(forward, conv=nn.Conv2d(3, 8, 3), head=nn.Linear(8, 5))


def only(layer: nn.Module, training: bool) -> nn.Module:
    """A layer that runs in one mode."""

    def forward(m, x: Tensor) -> Tensor:
        if m.training != training:
            raise RuntimeError(f"call .train({training}) first")
        return m.layer(x)

    return Model(forward, layer=layer)


def names_of(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("training", [False, True])
def test_a_detector_is_traced_in_evaluation_mode_predicted_and_calibrated(small, training):
    model = detector().train(training)
    assert set(gq.trace(model, IMAGES).parameters) == names_of(model)
    qmodel = gq.predict_quantized_params(model, hypernetwork=small, example_inputs=IMAGES)
    assert set(gq.calibrate(qmodel, [IMAGES]).ranges) == {"conv", "head"}
    assert [m.training for m in qmodel.modules()] == [training] * len(list(qmodel.modules()))


def test_a_report_of_a_detector_compares_or_says_why_it_cannot():
    qmodel = gq.from_float(detector().eval(), (2, 2))
    gq.calibrate(qmodel, [IMAGES])
    assert len(gq.quantization_report(qmodel, IMAGES).layers) == 2
    chooses = Model(
        lambda m, x: m.conv(x).flatten()[: m.conv.input_quantizer.bits], conv=nn.Conv2d(3, 8, 3)
    )
    with pytest.warns(gq.UntracedWarning):
        qmodel = gq.from_float(chooses, (2, 2))
    with pytest.raises(gq.ArgumentError, match="how many values the model gives"):
        gq.quantization_report(qmodel, IMAGES)


def test_modules_in_modes_of_their_own_run_in_them():
    frozen, trained = only(nn.Conv2d(3, 8, 3), False).eval(), only(nn.Conv2d(8, 8, 3), True)
    model = nn.Sequential(frozen, trained)
    assert set(gq.trace(model, IMAGES).parameters) == names_of(model)
    assert (frozen.training, frozen.layer.training, trained.training) == (False, False, True)


def test_the_quantizers_of_a_layer_are_in_its_mode():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3).eval())
    qmodel = gq.from_float(model, (4, 4))
    assert [[m.training for m in layer.modules()] for layer in qmodel] == [[True] * 3, [False] * 3]
    gq.calibrate(qmodel.eval(), [IMAGES])
    gq.qat.learn_steps(qmodel)
    assert not any(module.training for module in qmodel.modules())
    assert not any(module.training for module in gq.qat.fix_steps(qmodel).modules())


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: nn.Sequential(torch.jit.script(m))])
@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_what_runs_elsewhere_is_refused_with_what_to_pass(wrap):
    for call in (gq.trace, gq.predict_quantized_params, gq.from_float):
        with pytest.raises(gq.TraceError, match=r"\.module\b|that was scripted"):
            call(wrap(nn.Conv2d(3, 8, 3)))


@pytest.mark.parametrize("call", [gq.trace, gq.predict_quantized_params, gq.from_float])
def test_a_compiled_model_is_refused_with_what_to_pass(call):
    with pytest.raises(gq.TraceError, match=r"model\._orig_mod"):
        call(torch.compile(nn.Sequential(nn.Conv2d(3, 8, 3)), backend="eager"))


def test_a_simulation_is_refused_with_what_to_pass():
    qmodel = gq.from_float(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()))
    with pytest.raises(gq.TraceError, match=r"fake-quantized.+to_float\(qmodel\)"):
        gq.trace(qmodel)
    assert len(gq.trace(gq.to_float(qmodel))) == 5


@pytest.mark.parametrize("call", [gq.predict_quantized_params, gq.from_float])
@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_a_scripted_model_is_refused_as_such(call):
    with pytest.raises(gq.TraceError, match=r"'the model' is one.+that was scripted"):
        call(torch.jit.script(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())))


def test_compiled_parts_are_traced_and_quantized_within(small):
    part = torch.compile(nn.Conv2d(3, 8, 3), backend="eager")
    model = Model(lambda m, x: m.head(m.conv(x).mean((2, 3))), conv=part, head=nn.Linear(8, 10))
    qmodel = gq.predict_quantized_params(model, hypernetwork=small, example_inputs=IMAGES)
    assert gq.prediction_report(qmodel).kept == {}
    assert gq.prediction_report(qmodel).unquantized == {}
    whole = nn.Sequential(nn.Conv2d(3, 8, 3))
    whole.compile(backend="eager")
    assert [node.op for node in gq.trace(whole, IMAGES).nodes] == [
        "input",
        "conv",
        "bias",
        "output",
    ]
