import sys

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.training.optimizers import (
    AdamWConfig,
    OptimizerConfig,
    SoapConfig,
    parameter_groups,
)
from ghnqat_sdk.training.schedules import (
    CosineSchedule,
    DecayConfig,
    ScheduleConfig,
    StableSchedule,
)


def test_a_stable_schedule_rises_and_stays():
    schedule = StableSchedule(warmup=4)
    factors = [schedule.factor(step) for step in range(6)]
    assert factors == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert schedule.factor(10**9) == 1.0


def test_without_warm_up_the_first_step_is_a_whole_one():
    assert StableSchedule(warmup=0).factor(0) == 1.0
    assert CosineSchedule(warmup=0).factor(0) == 1.0


def test_a_cosine_schedule_rises_and_falls_to_zero():
    schedule = CosineSchedule(steps=12, warmup=2)
    factors = [schedule.factor(step) for step in range(15)]
    assert factors[:3] == [0.5, 1.0, 1.0]
    assert factors[2:13] == sorted(factors[2:13], reverse=True)
    assert factors[7] == pytest.approx(0.5)
    assert factors[12:] == [0.0, 0.0, 0.0]


def test_a_decay_falls_in_a_straight_line_from_where_it_branches_off():
    decay = DecayConfig(start=100, steps=4)
    rates = [decay.rate(step) for step in (0, 100, 101, 102, 103, 104, 105)]
    assert rates == [1.0, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]


def test_hints_fade_before_the_rate_is_zero():
    decay = DecayConfig(start=100, steps=8, hints=0.5)
    weights = [decay.hint(step) for step in range(100, 109)]
    assert weights == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert decay.rate(104) == 0.5


def test_hints_fade_with_the_rate_or_are_dropped_at_once():
    whole, none = (DecayConfig(start=0, steps=4, hints=share) for share in (1, 0))
    assert [whole.hint(step) for step in range(5)] == [whole.rate(step) for step in range(5)]
    assert [none.hint(step) for step in range(3)] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "wrong",
    [{"start": -1, "steps": 1}, {"start": 0, "steps": 0}, {"start": 0, "steps": 1, "hints": 2}],
)
def test_a_decay_that_cannot_be_meant_is_refused(wrong):
    with pytest.raises(ValidationError):
        DecayConfig(**wrong)


@pytest.mark.parametrize(
    ("union", "value"),
    [
        (OptimizerConfig, {"type": "sgd"}),
        (OptimizerConfig, {"type": "adamw", "learning_rate": 0}),
        (OptimizerConfig, {"type": "soap", "betas": [0.9, 0.99]}),
        (ScheduleConfig, {"type": "stable", "steps": 100}),
        (ScheduleConfig, {"type": "linear"}),
    ],
)
def test_what_an_optimizer_or_schedule_does_not_have_is_refused(union, value):
    with pytest.raises(ValidationError):
        TypeAdapter(union).validate_python(value)


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.norm = nn.LayerNorm(2)
        self.names = nn.Embedding(5, 2)
        self.tables = nn.Parameter(torch.ones(2, 3, 4))


def test_weight_decay_is_for_matrices_alone():
    parts = Parts()
    decayed, kept = parameter_groups([parts], 0.1)
    assert {id(p) for p in decayed["params"]} == {id(parts.linear.weight), id(parts.tables)}
    vectors = [parts.linear.bias, parts.norm.weight, parts.norm.bias, parts.names.weight]
    assert {id(p) for p in kept["params"]} == set(map(id, vectors))
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)


@pytest.mark.parametrize("config", [AdamWConfig(), SoapConfig()], ids=lambda config: config.type)
def test_every_parameter_of_every_module_is_optimized_at_the_configured_rate(config):
    modules = [Parts(), nn.Linear(4, 4)]
    optimizer = config.model_copy(update={"learning_rate": 0.25}).build(modules)
    optimized = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(optimized) == len(set(map(id, optimized)))
    assert set(map(id, optimized)) == {id(p) for module in modules for p in module.parameters()}
    assert {group["lr"] for group in optimizer.param_groups} == {0.25}


def test_adamw_is_torchs_own():
    ours, torchs = nn.Linear(3, 2), nn.Linear(3, 2)
    torchs.load_state_dict(ours.state_dict())
    one = AdamWConfig(learning_rate=0.1, weight_decay=0.0, betas=(0.8, 0.9)).build([ours])
    other = torch.optim.AdamW(torchs.parameters(), lr=0.1, weight_decay=0.0, betas=(0.8, 0.9))
    x = torch.randn(4, 3)
    for _ in range(3):
        for module, optimizer in ((ours, one), (torchs, other)):
            optimizer.zero_grad()
            module(x).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours.state_dict(), torchs.state_dict())


def test_soap_without_its_package_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(ArgumentError, match=r"ghnqat-sdk\[train\]"):
        SoapConfig().build([Parts()])
