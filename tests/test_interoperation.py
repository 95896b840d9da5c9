"""Fake-quantized models in the hands of other tools behave as in plain PyTorch
(docs/interoperation.md)."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterator

import lightning
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import ghnqat_sdk as gq
from ghnqat_sdk.hypernetwork.ghn import GraphHypernetwork

IMAGES = torch.randn(32, 3, 12, 12, generator=torch.Generator().manual_seed(0))
BATCHES = [(IMAGES[:16], torch.arange(16) % 10), (IMAGES[16:], torch.arange(16) % 7)]


class Net(nn.Module, PyTorchModelHubMixin):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(torch.relu(x + self.body(x)).mean((2, 3)))


@pytest.fixture
def qmodel(small: GraphHypernetwork) -> nn.Module:
    """Calibrated, with a width that is not the default."""
    return gq.predict_quantized_params(
        Net(width=6), (4, 4), hypernetwork=small, calibration=[IMAGES]
    )


def steps(model: nn.Module) -> None:
    """Two steps of a plain loop."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()
    for images, labels in BATCHES:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()


def same_tensors(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def gradients(model: nn.Module) -> list[Tensor]:
    model.zero_grad()
    F.cross_entropy(model(IMAGES), torch.arange(32) % 10).backward()
    return [parameter.grad for parameter in model.parameters()]


def test_a_plain_loop_trains_every_parameter(qmodel):
    before = copy.deepcopy(qmodel)
    steps(qmodel)
    assert not [n for n, p in qmodel.named_parameters() if torch.equal(p, before.get_parameter(n))]
    assert (
        qmodel.stem[0].input_quantizer.frozen_range == before.stem[0].input_quantizer.frozen_range
    )


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_trains_alike_and_apart(qmodel, twin):
    other = twin(qmodel)
    steps(other)
    assert not same_tensors(other, qmodel)
    steps(qmodel)
    assert same_tensors(other, qmodel)
    assert torch.equal(other.eval()(IMAGES), qmodel.eval()(IMAGES))


def test_a_state_dict_has_tensors_and_no_ranges(qmodel, small):
    file = io.BytesIO()
    torch.save(qmodel.state_dict(), file)
    file.seek(0)
    other = gq.predict_quantized_params(Net(width=6), (4, 4), hypernetwork=small)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert same_tensors(other, qmodel)
    with pytest.warns(gq.UncalibratedWarning):
        other.eval()(IMAGES)
    gq.calibrate(other, [IMAGES])
    assert torch.equal(other(IMAGES), qmodel.eval()(IMAGES))


def test_from_pretrained_of_the_hub_mixin_is_the_float_model(qmodel, tmp_path):
    qmodel.save_pretrained(tmp_path)
    loaded = Net.from_pretrained(tmp_path)
    assert type(loaded.head) is nn.Linear
    assert not loaded.training
    assert same_tensors(loaded, qmodel)
    assert torch.equal(loaded(IMAGES), gq.to_float(copy.deepcopy(qmodel)).eval()(IMAGES))


def test_the_hub_mixin_and_save_quantized_share_a_folder_in_either_order(qmodel, tmp_path):
    qmodel.save_pretrained(tmp_path / "first")
    gq.save_quantized(qmodel, tmp_path / "first")
    gq.save_quantized(qmodel, tmp_path / "second")
    qmodel.save_pretrained(tmp_path / "second")
    for name in ("first", "second"):
        loaded = gq.load_quantized(Net.from_pretrained(tmp_path / name), tmp_path / name)
        assert torch.equal(loaded.eval()(IMAGES), qmodel.eval()(IMAGES))
        steps(loaded)
        loaded.save_pretrained(tmp_path / name)
        with pytest.raises(gq.CheckpointError, match="does not belong"):
            gq.load_quantized(Net.from_pretrained(tmp_path / name), tmp_path / name)


def test_learned_steps_reach_the_hub_mixin_only_when_fixed(qmodel, tmp_path):
    gq.qat.learn_steps(qmodel)
    qmodel.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="log_scale"):
        Net.from_pretrained(tmp_path, strict=True)
    fixed = gq.qat.fix_steps(qmodel)
    fixed.save_pretrained(tmp_path)
    assert same_tensors(Net.from_pretrained(tmp_path, strict=True), fixed)


class Classifier(lightning.LightningModule):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        return F.cross_entropy(self.model(batch[0]), batch[1])

    def test_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        self.log("loss", F.cross_entropy(self.model(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def trainer(tmp_path) -> lightning.Trainer:
    return lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip


def test_lightning_trains_and_tests_as_a_plain_loop(qmodel, trainer):
    module = Classifier(copy.deepcopy(qmodel))
    trainer.fit(module, (batch for batch in BATCHES))
    assert trainer.global_step == 2
    steps(qmodel)
    assert same_tensors(module.model, qmodel)
    (result,) = trainer.test(module, (batch for batch in BATCHES[:1]), verbose=False)
    assert result["loss"] == pytest.approx(
        F.cross_entropy(qmodel.eval()(BATCHES[0][0]), BATCHES[0][1]).item()
    )


def test_lightning_checkpoints_have_no_ranges(qmodel, trainer, small, tmp_path):
    trainer.fit(Classifier(qmodel), (batch for batch in BATCHES))
    trainer.save_checkpoint(tmp_path / "x.ckpt", weights_only=True)
    other = Classifier(gq.predict_quantized_params(Net(width=6), (4, 4), hypernetwork=small))
    other.load_state_dict(torch.load(tmp_path / "x.ckpt", weights_only=True)["state_dict"])
    assert same_tensors(other.model, qmodel)
    with pytest.warns(gq.UncalibratedWarning):
        trainer.test(other, (batch for batch in BATCHES), verbose=False)


def test_autocast_rounds_what_is_quantized_already(small):
    model = gq.predict_quantized_params(
        nn.Conv2d(3, 4, 3), (4, 4), hypernetwork=small, calibration=[IMAGES]
    ).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(IMAGES)
    x, weight = model.input_quantizer(IMAGES), model.weight_quantizer(model.weight)
    assert torch.equal(found, F.conv2d(x.bfloat16(), weight.bfloat16(), model.bias.bfloat16()))


@pytest.mark.parametrize("learned", [False, True])
def test_training_under_autocast_is_near_training_without(qmodel, learned):
    if learned:
        gq.qat.learn_steps(qmodel)
    exact = gradients(qmodel.train())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = F.cross_entropy(qmodel(IMAGES), torch.arange(32) % 10)
    qmodel.zero_grad()
    loss.backward()
    found = [parameter.grad for parameter in qmodel.parameters()]
    assert {gradient.dtype for gradient in found} == {torch.float32}
    a, b = (torch.cat([g.flatten() for g in each]) for each in (found, exact))
    assert F.cosine_similarity(a, b, dim=0) > 0.95


@pytest.mark.parametrize("learned", [False, True])
def test_a_compiled_model_is_one_graph_with_the_same_values_and_gradients(qmodel, learned):
    if learned:
        gq.qat.learn_steps(qmodel)
    compiled = torch.compile(qmodel, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled.eval()(IMAGES), qmodel.eval()(IMAGES))
    found, expected = gradients(compiled.train()), gradients(qmodel.train())
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_a_compiled_model_trains_and_sees_a_new_calibration(qmodel):
    other = copy.deepcopy(qmodel)
    compiled = torch.compile(qmodel, fullgraph=True, backend="aot_eager")
    stale = compiled.eval()(IMAGES)
    for model in (compiled, other):
        steps(model)
    for model in (qmodel, other):
        gq.calibrate(model, [2 * IMAGES])
    fresh = compiled.eval()(IMAGES)
    assert not torch.allclose(fresh, stale)
    torch.testing.assert_close(fresh, other.eval()(IMAGES), rtol=1e-3, atol=1e-3)


CALLS = {
    "calibrate": lambda model: gq.calibrate(model, BATCHES),
    "fit_head": lambda model: gq.fit_head(model, [(IMAGES, torch.arange(32) % 2)]),
    "quantization_report": lambda model: gq.quantization_report(model, IMAGES),
    "prediction_report": gq.prediction_report,
    "learn_steps": gq.qat.learn_steps,
    "freeze_batch_norm": gq.qat.freeze_batch_norm,
    "fix_steps": gq.qat.fix_steps,
    "to_float": gq.to_float,
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_what_takes_a_model_refuses_wrapped_ones_with_what_to_pass(call, wrap, qmodel):
    with pytest.raises(gq.ArgumentError, match=r"Pass .+ model\.(_orig_mod|module)$"):
        CALLS[call](wrap(qmodel))


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_a_loss_takes_wrapped_models(wrap, qmodel):
    assert torch.equal(gq.qat.oscillation_loss(wrap(qmodel)), gq.qat.oscillation_loss(qmodel))


@pytest.mark.parametrize("call", ["calibrate", "fit_head", "quantization_report"])
def test_a_module_that_was_compiled_in_place_is_looked_at_uncompiled(call, qmodel):
    other = copy.deepcopy(qmodel)
    qmodel.compile(fullgraph=True, backend="eager")
    assert str(CALLS[call](qmodel)) == str(CALLS[call](other))
    torch.testing.assert_close(qmodel.eval()(IMAGES), other.eval()(IMAGES))


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("learned", [False, True])
def test_distributed_data_parallel_trains_as_a_plain_loop(qmodel, alone, learned):
    if learned:
        gq.qat.learn_steps(qmodel)
    wrapped = DistributedDataParallel(copy.deepcopy(qmodel))
    steps(wrapped)
    steps(qmodel)
    assert same_tensors(wrapped.module, qmodel)
    assert torch.equal(wrapped.eval()(IMAGES), qmodel.eval()(IMAGES))
