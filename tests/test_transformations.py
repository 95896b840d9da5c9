"""Fake-quantized models under torch's own transformations, layers of derived classes among them."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ghnqat_sdk as gq

IMAGES = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(8) % 5


class Same(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1)), self.weight, self.bias)


class Activated(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


def layers(derived: bool) -> nn.Sequential:
    torch.manual_seed(0)
    conv = Same(3, 8, 3) if derived else nn.Conv2d(3, 8, 3, padding=1)
    norm = Activated(8) if derived else nn.BatchNorm2d(8)
    return nn.Sequential(conv, norm, nn.ReLU(), nn.Flatten(), nn.Linear(512, 5))


def make(kind: str) -> nn.Module:
    qmodel = gq.from_float(layers(derived=kind != "torchs"), (4, 4))
    gq.calibrate(qmodel, [IMAGES])
    if kind == "learned":
        gq.qat.learn_steps(qmodel)
    return qmodel.eval()


KINDS = ["torchs", "derived", "learned"]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_a_traced_program_is_saved_and_loaded(kind, tmp_path: Path):
    qmodel = make(kind)
    torch.jit.save(torch.jit.trace(qmodel, IMAGES), tmp_path / "model.pt")
    loaded = torch.jit.load(tmp_path / "model.pt")
    torch.testing.assert_close(loaded(IMAGES), qmodel(IMAGES))


@pytest.mark.parametrize("kind", KINDS)
def test_a_symbolic_trace_gives_the_same_outputs(kind):
    qmodel = make(kind)
    torch.testing.assert_close(torch.fx.symbolic_trace(qmodel)(IMAGES), qmodel(IMAGES))


@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_program_gives_the_same_outputs(kind):
    qmodel = make(kind)
    exported = torch.export.export(qmodel, (IMAGES,)).module()
    torch.testing.assert_close(exported(IMAGES), qmodel(IMAGES))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [False, True])
def test_a_compiled_model_is_one_graph(kind, training):
    qmodel = make(kind).train(training)
    expected = copy.deepcopy(qmodel)(IMAGES)
    compiled = torch.compile(qmodel, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(IMAGES), expected)


@pytest.mark.parametrize("derived", [False, True])
def test_an_uncalibrated_model_compiles(derived):
    qmodel = gq.from_float(layers(derived), (4, 4)).eval()
    compiled = torch.compile(qmodel, fullgraph=True, backend="aot_eager")(IMAGES)
    with pytest.warns(gq.UncalibratedWarning):
        torch.testing.assert_close(compiled, qmodel(IMAGES))


def test_frozen_norms_compile():
    qmodel = gq.qat.freeze_batch_norm(make("derived")).train()
    compiled = torch.compile(qmodel, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(IMAGES), qmodel(IMAGES))


@pytest.mark.parametrize("kind", KINDS)
def test_functional_gradients_are_those_of_backward(kind):
    qmodel = make(kind)

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(qmodel, parameters, IMAGES), LABELS)

    gradients = torch.func.grad(loss)(dict(qmodel.named_parameters()))
    F.cross_entropy(qmodel(IMAGES), LABELS).backward()
    for name, parameter in qmodel.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad)


@pytest.mark.parametrize("kind", ["torchs", "derived"])
def test_gradients_of_each_image_sum_up_to_those_of_the_batch(kind):
    qmodel = make(kind)
    parameters = {name: p.detach() for name, p in qmodel.named_parameters()}

    def loss(parameters: dict[str, Tensor], images: Tensor) -> Tensor:
        return torch.func.functional_call(qmodel, parameters, images).square().sum()

    def of_one(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        return loss(parameters, image[None])

    each = torch.func.vmap(torch.func.grad(of_one), in_dims=(None, 0))(parameters, IMAGES)
    whole = torch.func.grad(loss)(parameters, IMAGES)
    for name, gradient in whole.items():
        torch.testing.assert_close(each[name].sum(0), gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["torchs", "derived"])
def test_an_ensemble_runs_as_one(kind):
    members = [make(kind) for _ in range(2)]
    for member in members[1:]:
        for parameter in member.parameters():
            parameter.data.mul_(1.5)
    stacked = torch.func.stack_module_state(members)
    base = members[0]

    def run(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(base, (parameters, buffers), (IMAGES,))

    outputs = torch.func.vmap(run)(*stacked)
    gradients = torch.func.vmap(torch.func.grad(lambda p, b: run(p, b).square().sum()))(*stacked)
    for index, member in enumerate(members):
        expected = member(IMAGES)
        torch.testing.assert_close(outputs[index], expected)
        expected.square().sum().backward()
        for name, parameter in member.named_parameters():
            torch.testing.assert_close(gradients[name][index], parameter.grad, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_data_parallel_on_no_device_runs_the_model(kind):
    qmodel = make(kind)
    assert torch.equal(nn.DataParallel(qmodel)(IMAGES), qmodel(IMAGES))


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_dict_with_steps_gives_the_model_that_was_saved(kind):
    saved = make(kind)
    other = gq.from_float(layers(derived=kind != "torchs"), (4, 4))
    gq.calibrate(other, [5 + 3 * IMAGES])
    if kind == "learned":
        gq.qat.learn_steps(other)
    other.load_state_dict(saved.state_dict())
    same = torch.equal(other.eval()(IMAGES), saved(IMAGES))
    assert same == (kind == "learned")  # ranges that are fixed belong to no state_dict
