"""Random networks through the public calls: a right answer or an error of ours, and nothing of the
model changed.

`GHNQAT_FUZZ=2000 pytest tests/test_fuzz.py` runs that many new cases; without it the same 200 run
each time.
"""

from __future__ import annotations

import os
import random
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from strategies import Network, networks
from torch import Tensor, nn

import ghnqat_sdk as gq
from ghnqat_sdk.calls import tensors_in
from ghnqat_sdk.copying import copy_module
from ghnqat_sdk.quantization.lookup import fake_quantized_layers

CASES = int(os.environ.get("GHNQAT_FUZZ", "200"))
PAIRS = st.sampled_from([2, 4, 8, 32])
BITS = st.one_of(
    st.tuples(PAIRS, PAIRS), st.just({"stem": (8, 8), "*": (2, 4)}), st.just({"head": (8, 4)})
)
METHODS = st.sampled_from(["auto", "mean", "min-max", "percentile", "mse"])


def cases(share: float) -> settings:
    """A share of all cases; new ones are shown as they are found, which is quicker."""
    new = "GHNQAT_FUZZ" in os.environ
    return settings(
        max_examples=round(CASES * share),
        deadline=None,
        derandomize=not new,
        phases=[Phase.generate] if new else [Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        database=None,
    )


def state(model: nn.Module) -> list[Any]:
    """What a call must leave as it is: classes, modes, attributes, hooks, tensors."""
    found: list[Any] = []
    for name, module in model.named_modules():
        hooks = [list(x) for key, x in vars(module).items() if key.endswith("_hooks")]
        found.append((name, type(module), module.training, sorted(vars(module)), hooks))
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        values = tensor.detach().nan_to_num(1e9).double().flatten().tolist()
        found.append((name, id(tensor), tensor.requires_grad, tensor.dtype, values))
    return found


def generators() -> tuple[Any, ...]:
    """Of torch, Python and NumPy."""
    own = torch.get_rng_state().numpy().tobytes(), np.random.get_state()[1].tobytes()
    return *own, random.getstate()


def attempt(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The result, or None after an error of ours; generators go on as if nothing had run."""
    before, message = generators(), "a result, and no error"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            result = function(*args, **kwargs)
        except gq.GhnqatError as error:
            result, message = None, str(error)
    assert len(message) > 20
    assert generators() == before
    return result


def outputs(model: nn.Module, images: Tensor) -> list[Tensor] | None:
    """In evaluation mode, or None where torch itself cannot (half precision of some layers)."""
    with warnings.catch_warnings(), torch.no_grad(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        try:
            return list(tensors_in(copy_module(model).eval()(images)))
        except (RuntimeError, ValueError):
            return None


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


def finite(network: Network) -> bool:
    """Whether float evaluation gives finite numbers."""
    found = outputs(network.model, network.images)
    return found is not None and all(bool(x.isfinite().all()) for x in found)


@cases(0.35)
@given(networks(), BITS, st.sampled_from([True] * 7 + [False]))
def test_predictions_account_for_all_and_leave_the_model_alone(small, network, bits, given_inputs):
    model, before = network.model, state(network.model)
    example = network.images if given_inputs else None
    graph = attempt(gq.trace, model, example)
    assert state(model) == before
    names = [name for name, _ in model.named_parameters()]
    if graph is not None:
        assert sorted([*graph.parameters, *graph.unreached]) == sorted(names)
    qmodel = attempt(
        gq.predict_quantized_params, model, bits, hypernetwork=small, example_inputs=example
    )
    assert state(model) == before
    if qmodel is None:
        return
    report = gq.prediction_report(qmodel)
    assert sorted([*report.predicted, *report.kept]) == sorted(names)
    assert [m.training for m in model.modules()] == [
        dict(qmodel.named_modules())[name].training for name, _ in model.named_modules()
    ]
    assert list(qmodel.state_dict()) == list(model.state_dict())
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)):
            assert name in fake_quantized_layers(qmodel) or name in report.unquantized


@cases(0.35)
@given(networks(), BITS, METHODS, st.booleans())
def test_calibrated_models_are_saved_loaded_reported_and_made_float(network, bits, method, learn):
    model, images = network.model, network.images
    before = state(model)
    qmodel = attempt(gq.from_float, model, bits)
    assert state(model) == before
    if qmodel is None:
        return
    uncalibrated = state(qmodel)
    report = attempt(gq.calibrate, qmodel, images.split(5), method=method)
    if report is None:
        assert state(qmodel) == uncalibrated
        return
    expected = outputs(qmodel, images)
    assert expected is None or len(expected) > 0
    if finite(network):
        attempt(gq.quantization_report, qmodel, images)
    check_files(model, qmodel, images, expected)
    if learn:
        check_learned_steps(qmodel, images, expected)
    floats = attempt(gq.to_float, qmodel)
    assert [type(m).__name__ for m in floats.modules()] == [
        type(m).__name__ for m in model.modules()
    ]
    assert list(floats.state_dict()) == list(model.state_dict())
    attempt(gq.to_float, qmodel, calibration=[images])
    assert state(model) == before


def check_files(model: nn.Module, qmodel: nn.Module, images: Tensor, expected: Any) -> None:
    """What is saved is loaded."""
    with tempfile.TemporaryDirectory() as folder:
        if attempt(gq.save_quantized, qmodel, folder) is None:
            return
        loaded = attempt(gq.load_quantized, model, folder)
    assert loaded is not None
    if expected is not None:
        found = outputs(loaded, images)
        assert found is not None
        assert same([x.nan_to_num(1e9) for x in found], [x.nan_to_num(1e9) for x in expected])


def check_learned_steps(qmodel: nn.Module, images: Tensor, expected: Any) -> None:
    """Learned steps start where calibration ended, and come back from a `state_dict`."""
    learned, other = copy_module(qmodel), copy_module(qmodel)
    for each in (learned, other):
        attempt(gq.qat.learn_steps, each)
    for step in (p for n, p in learned.named_parameters() if n.endswith("log_scale")):
        step.data.add_(0.3)
    other.load_state_dict(learned.state_dict())
    if expected is not None:
        one, two = outputs(learned, images), outputs(other, images)
        assert one is not None
        assert two is not None
        assert same([x.nan_to_num(1e9) for x in one], [x.nan_to_num(1e9) for x in two])
    fixed = attempt(gq.qat.fix_steps, learned)
    assert list(fixed.state_dict()) == list(qmodel.state_dict())


@cases(0.3)
@given(networks(), BITS, METHODS)
def test_a_failed_calibration_in_place_leaves_the_float_model(small, network, bits, method):
    model, images = network.model, network.images
    fine = finite(network)
    before, values = state(model), outputs(model, images)
    bad = images.clone()
    bad.view(-1)[-1] = float("nan")
    arguments = {"hypernetwork": small, "example_inputs": images, "inplace": True}
    attempt(gq.predict_quantized_params, model, bits, calibration=[images, bad], **arguments)
    if fake_quantized_layers(model):
        return  # float inputs everywhere, and no norm: NaN reaches nothing that is calibrated
    assert [part[:1] + part[2:] for part in state(model)] == [
        part[:1] + part[2:] for part in before
    ]
    if fine:
        assert same(outputs(model, images), values)
