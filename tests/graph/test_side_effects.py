"""What a model, its hooks and the generators keep from having been traced: nothing."""

import functools
import random
import threading

import numpy as np
import pytest
import torch
from functional_model import Model
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import ghnqat_sdk as gq
from ghnqat_sdk.errors import TraceError
from ghnqat_sdk.graph.trace import trace

IMAGE = torch.zeros(2, 3, 16, 16)

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def parts() -> dict[str, nn.Module]:
    return {"conv": nn.Conv2d(3, 8, 3, padding=1), "head": nn.Linear(8, 5)}


def in_attribute(m, x: Tensor) -> Tensor:
    x = m.conv(x)
    if m.grid is None or m.grid.shape != x.shape[-2:]:
        m.grid = torch.ones(x.shape[-2:], device=x.device)
    return m.head((x + m.grid).mean((2, 3)))


def in_list(m, x: Tensor) -> Tensor:
    x = m.conv(x)
    if not m.grid:
        m.grid.append(torch.ones(x.shape[-2:], device=x.device))
    return m.head((x + m.grid[0]).mean((2, 3)))


def in_dict(m, x: Tensor) -> Tensor:
    x = m.conv(x)
    if x.shape not in m.grid:
        m.grid[x.shape] = torch.ones(x.shape[-2:], device=x.device)
    return m.head((x + m.grid[x.shape]).mean((2, 3)))


def in_object(m, x: Tensor) -> Tensor:
    x = m.conv(x)
    if not hasattr(m.grid, "value"):
        m.grid.value = torch.ones(x.shape[-2:], device=x.device)
    return m.head((x + m.grid.value).mean((2, 3)))


class Holder:
    """A cache that cannot be copied as a whole."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


CACHES = [(in_attribute, None), (in_list, []), (in_dict, {}), (in_object, Holder())]


@pytest.mark.parametrize(("forward", "empty"), CACHES, ids=lambda x: getattr(x, "__name__", ""))
def test_what_a_forward_pass_caches_is_not_cached_by_a_trace(forward, empty):
    model = Model(forward, **parts())
    model.grid = empty
    gq.trace(model, IMAGES)
    assert model.grid is empty
    assert not getattr(empty, "__dict__", {"lock": 0}).keys() - {"lock"}
    assert empty in (None, [], {}) or isinstance(empty, Holder)
    expected = model(IMAGES)
    gq.trace(model, IMAGES)
    assert torch.equal(model(IMAGES), expected)


def test_a_predicted_model_makes_its_own_cache(small):
    model = Model(in_list, **parts())
    model.grid = []
    qmodel = gq.predict_quantized_params(model, hypernetwork=small, example_inputs=IMAGES)
    gq.calibrate(qmodel, [IMAGES])
    assert qmodel.eval()(IMAGES).isfinite().all()
    assert model.grid == []
    assert len(qmodel.grid) == 1


def test_neither_hooks_nor_counters_see_the_run():
    class Watcher:
        calls = 0

        def see(self, *_):
            self.calls += 1

    def forward(m, x):
        m.calls += 1
        return m.head(m.conv(x).mean((2, 3)))

    seen, watcher = [], Watcher()
    model = Model(forward, **parts())
    model.calls = 0
    model.conv.register_forward_hook(lambda *args: seen.append(args))
    model.conv.register_forward_pre_hook(watcher.see)
    model.head.register_forward_hook(functools.partial(lambda to, *args: to.append(args), seen))
    gq.trace(model, IMAGES)
    assert (seen, watcher.calls, model.calls) == ([], 0, 0)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "wrap",
    [
        torch.nn.utils.weight_norm,
        torch.nn.utils.spectral_norm,
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        lambda layer: prune.l1_unstructured(layer, "weight", amount=0.5),
    ],
)
def test_weights_that_are_made_keep_their_values_and_their_parameters_are_claimed(wrap):
    model = nn.Sequential(
        wrap(nn.Conv2d(3, 8, 3)), nn.ReLU(), nn.Flatten(), wrap(nn.Linear(288, 5))
    )
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    graph = gq.trace(model, IMAGES)
    assert [node.module for node in graph.nodes if node.quantized] == ["0", "3"]
    assert {*graph.parameters, *graph.unreached} == {n for n, _ in model.named_parameters()}
    assert len(graph.parameters) >= 4
    assert all(torch.equal(tensor, state[n]) for n, tensor in model.state_dict().items())
    assert not model[0].weight.is_meta


def draws(m, x: Tensor) -> Tensor:
    x = m.conv(x) * (1 + random.random() + np.random.rand() + m.generator.random())
    return m.head((x + torch.rand(1, device=x.device)).mean((2, 3)))


@pytest.mark.parametrize("reads", [False, True])
def test_generators_go_on_as_if_nothing_had_run(reads):
    def forward(m, x):
        y = draws(m, x)
        return y if not reads or y.sum() < 1e9 else -y

    model = Model(forward, **parts())
    model.generator = np.random.default_rng(0)
    before = random.getstate(), torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()
    own = model.generator.bit_generator.state
    gq.trace(model, IMAGES)
    after = random.getstate(), torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()
    assert after == before
    assert model.generator.bit_generator.state == own


def test_calibration_and_reports_leave_the_generators_alone():
    qmodel = gq.from_float(Model(lambda m, x: m.conv(x) + torch.rand(1), **parts()), (4, 4))
    before = torch.get_rng_state()
    gq.calibrate(qmodel, [IMAGES])
    gq.quantization_report(qmodel, IMAGES)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_that_could_not_be_traced_still_runs():
    def forward(m, x, targets=None):
        scores = in_attribute(m, x)
        if targets is None:
            raise ValueError("no targets")
        return nn.functional.cross_entropy(scores, targets)

    model, targets = Model(forward, **parts()), torch.tensor([0, 1, 2, 3])
    model.grid = None
    with pytest.raises(gq.TraceError, match="no targets"):
        gq.trace(model, IMAGES)
    assert model.grid is None
    assert model(IMAGES, targets).isfinite()


def test_a_model_whose_forward_was_replaced_is_traced_as_it_runs_and_stays():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    own = model.forward
    model.forward = lambda x: own(x).relu()
    replaced = model.forward
    assert [node.op for node in gq.trace(model, IMAGES).nodes][-2:] == ["relu", "output"]
    assert model.forward is replaced
    assert not model[1].running_mean.any()


def test_nothing_of_the_model_changes():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.LazyLinear(5)
    )
    model(IMAGE)
    model[1].eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes, rng = [m.training for m in model.modules()], torch.get_rng_state()
    trace(model, IMAGE)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(p.grad is None and not p.is_meta for p in model.parameters())


def test_shared_layers_and_parameters_stay_what_they_were():
    shared, tied = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
    tied.weight = shared.weight
    model = nn.Sequential(shared, nn.BatchNorm2d(3), shared, tied)
    before = dict(model.named_parameters(remove_duplicate=False)) | dict(
        model.named_buffers(remove_duplicate=False)
    )
    graph = trace(model, IMAGE)
    after = dict(model.named_parameters(remove_duplicate=False)) | dict(
        model.named_buffers(remove_duplicate=False)
    )
    assert before.keys() == after.keys()
    assert all(after[name] is tensor for name, tensor in before.items())
    assert set(graph.parameters) == {name for name, _ in model.named_parameters()}


def test_modes_are_restored_when_the_model_raises():
    def forward(m, x):
        raise KeyError("broken")

    model = Model(forward, conv=nn.Conv2d(3, 4, 3)).eval()
    with pytest.raises(TraceError, match="broken"):
        trace(model, IMAGE)
    assert not model.training
    assert not model.conv.training


def test_a_forward_that_names_the_model_as_a_global_is_that_of_the_copy(small):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(288, 10))
    names = {"plain": model.forward}
    exec("def scaled(x): return plain(x * 2 - 1)", names)
    model.forward = names["scaled"]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    qmodel = gq.predict_quantized_params(model, hypernetwork=small, example_inputs=IMAGES)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    assert not gq.prediction_report(qmodel).kept
