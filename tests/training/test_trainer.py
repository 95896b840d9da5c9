import dataclasses
import math
from collections import Counter

import pytest
import torch
from toys import Toy

from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.hypernetwork.pretrained import save_pretrained
from ghnqat_sdk.quantization.roundings import NoiseRounding
from ghnqat_sdk.training import losses as losses_module
from ghnqat_sdk.training import prepared as prepared_module
from ghnqat_sdk.training.average import running_average
from ghnqat_sdk.training.config import BitsConfig, BitsShare, RunConfig
from ghnqat_sdk.training.distributed import Processes
from ghnqat_sdk.training.features import FeatureCache
from ghnqat_sdk.training.optimizers import AdamWConfig, SoapConfig
from ghnqat_sdk.training.prepared import PreparedNetworks
from ghnqat_sdk.training.run import open_features
from ghnqat_sdk.training.sampler import SamplingConfig
from ghnqat_sdk.training.schedules import CosineSchedule, DecayConfig
from ghnqat_sdk.training.shares import CustomShare, DeepNetsShare, FamiliesShare
from ghnqat_sdk.training.spaces.deepnets import DeepNets
from ghnqat_sdk.training.trainer import Trainer

NOISE = BitsConfig(settings=(BitsShare(bits=(4, 4)),), rounding=NoiseRounding())


@pytest.fixture
def make(images, tiny):
    def build(config: RunConfig = tiny, features: FeatureCache | None = None, **changes) -> Trainer:
        return Trainer(config.model_copy(update=changes), images["train"], features=features)

    return build


@pytest.fixture
def features(hinted, images) -> FeatureCache:
    opened = open_features(hinted, images["train"], Processes())
    assert opened is not None
    return opened


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


# ---- the weights


def test_training_changes_weights_and_average_apart(make, same):
    trainer = make()
    before = weights(trainer)
    list(trainer.steps(6))
    after = weights(trainer)
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(changed) > len(before) // 2
    assert not same(after, dict(trainer.averaged().named_parameters()))


def test_the_average_follows_the_weights_closely_at_first_and_slowly_later():
    update = running_average(0.9)
    average = [torch.zeros(1)]
    update(average, [torch.ones(1)], torch.tensor(0))
    assert average[0].item() == pytest.approx(0.9)
    update(average, [torch.zeros(1)], 10**6)
    assert average[0].item() == pytest.approx(0.81)


@pytest.mark.parametrize("optimizer", [AdamWConfig(), SoapConfig()], ids=lambda one: one.type)
@pytest.mark.parametrize("bits", [BitsConfig(), NOISE], ids=["rounding", "noise"])
def test_a_config_gives_the_same_weights_whatever_torchs_generator_stands_at(
    make, same, optimizer, bits
):
    results = []
    for seed in range(2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        trainer = make(optimizer=optimizer, bits=bits)
        list(trainer.steps(3))
        assert torch.equal(before, torch.get_rng_state())
        results.append(weights(trainer))
    assert same(*results)
    other = make(optimizer=optimizer, bits=bits, seed=1)
    list(other.steps(3))
    assert not same(weights(other), results[0])


def test_initial_weights_are_taken_over(make, small, same, tmp_path):
    start = str(save_pretrained(small, tmp_path / "start"))
    trainer = make(hypernetwork=small.config, initial=start)
    assert same(weights(trainer), dict(small.named_parameters()))
    assert same(dict(trainer.averaged().named_parameters()), dict(small.named_parameters()))
    reason = r"another architecture: decoder\.\S+ is \(.*\), expected \(.*\); .*; and \d+ more\. U"
    with pytest.raises(ArgumentError, match=reason):
        make(initial=start)


# ---- schedules


def test_the_rate_warms_up_and_stays(make):
    rates = [report.learning_rate for report in make().steps(5)]
    assert rates == [0.5e-3, 1e-3, 1e-3, 1e-3, 1e-3]


def test_a_cosine_falls_to_zero(make):
    trainer = make(schedule=CosineSchedule(steps=5, warmup=1))
    rates = [report.learning_rate for report in trainer.steps(6)]
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert rates[5] == 0


def test_with_a_rate_of_zero_nothing_changes(make, same):
    trainer = make(decay=DecayConfig(start=0, steps=2))
    list(trainer.steps(2))
    before = weights(trainer)
    (report,) = trainer.steps(3)
    assert report.learning_rate == 0
    assert same(before, weights(trainer))


def test_the_float_phase_comes_first(make):
    reports = list(make().steps(6))
    phases = [
        {n.draw.bits for r in part for n in r.networks} for part in (reports[:2], reports[2:])
    ]
    assert phases[0] == {(32, 32)}
    assert phases[1] - {(32, 32)}


def test_progress_counts_what_was_learned_from(make):
    trainer = make()
    draws = [network.draw for report in trainer.steps(5) for network in report.networks]
    progress = trainer.progress
    assert (progress.step, progress.networks, progress.skipped_networks) == (5, len(draws), 0)
    assert progress.images == sum(draw.images for draw in draws)
    assert progress.mac_images == sum(draw.images * draw.architecture.macs for draw in draws)
    assert progress.seconds > 0 and progress.cpu_seconds > 0
    assert list(trainer.steps(5)) == []


# ---- gradients


def some_broken(monkeypatch, bad: float, every: int) -> None:
    """Let the gradient of every so manieth network be no number."""
    real, calls = losses_module.network_loss, Counter()

    def sometimes_broken(*args, **options):
        result = real(*args, **options)
        calls["all"] += 1
        if calls["all"] % every:
            return result
        broken = {name: bad * gradient for name, gradient in result.gradients.items()}
        return dataclasses.replace(result, loss=bad, gradients=broken)

    monkeypatch.setattr(losses_module, "network_loss", sometimes_broken)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_networks_that_are_not_finite_are_left_out_and_counted(make, monkeypatch, bad):
    some_broken(monkeypatch, bad, every=2)
    trainer = make()
    before = weights(trainer)
    list(trainer.steps(6))
    assert (trainer.progress.skipped_networks, trainer.progress.networks) == (6, 6)
    after = weights(trainer)
    assert all(p.isfinite().all() for p in after.values())
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_a_step_with_nothing_finite_changes_nothing(make, monkeypatch, same):
    some_broken(monkeypatch, math.nan, every=1)
    trainer = make()
    before = weights(trainer)
    (report,) = trainer.steps(1)
    assert report.gradient_norm == 0
    assert trainer.progress.step == 1
    assert same(before, weights(trainer))
    assert same(before, dict(trainer.averaged().named_parameters()))


# ---- hints


def test_hints_are_learned_from(make, hinted, features):
    trainer = make(hinted, features)
    before = [p.detach().clone() for p in trainer.hints.parameters()]
    networks = [network for report in trainer.steps(4) for network in report.networks]
    assert all((n.hint is None) == (n.draw.architecture.norm == "none") for n in networks)
    assert {n.draw.architecture.norm for n in networks} == {"none", "batch"}
    after = list(trainer.hints.parameters())
    assert [p.shape for p in after] == [(8, 8), (16, 8), (24, 8)]
    assert all(not torch.equal(p, q) for p, q in zip(before, after, strict=True))


def test_hints_fade_in_the_decay(make, hinted, features):
    trainer = make(hinted, features, decay=DecayConfig(start=0, steps=8, hints=0.5))
    fading = [[n.hint for n in report.networks if n.hint] for report in trainer.steps(6)]
    assert any(fading[:4])
    assert not any(fading[4:])


def test_hints_without_features_are_refused(make, hinted):
    with pytest.raises(ArgumentError, match="no teacher's features were given"):
        make(hinted)


# ---- networks


@pytest.mark.parametrize(
    "share",
    [DeepNetsShare(channels=8, max_macs=4e6), FamiliesShare(max_macs=4e6)],
    ids=lambda share: share.space,
)
def test_networks_of_both_spaces_are_learned_from(make, share):
    sampling = SamplingConfig(meta_batch=2, image_batch=4, least_images=4, window=2)
    trainer = make(networks=(share,), sampling=sampling)
    networks = [network for report in trainer.steps(3) for network in report.networks]
    assert all(math.isfinite(network.loss) for network in networks)
    assert {network.draw.architecture.key[0] for network in networks} == {share.space}
    assert trainer.progress.networks == 6


def test_networks_are_prepared_once_while_they_are_in_the_window(make, monkeypatch):
    prepared = Counter()
    real = prepared_module.prepare_network

    def noted(architecture, *settings):
        prepared[architecture.key] += 1
        return real(architecture, *settings)

    trainer = make()
    monkeypatch.setattr(prepared_module, "prepare_network", noted)
    list(trainer.steps(8))
    assert set(prepared.values()) == {1}
    for index in range(30):
        trainer.networks.prepared(Toy("train", index))
    assert len(trainer.networks.kept) <= trainer.config.sampling.window


def test_one_network_at_other_channels_is_another_one():
    architectures = [DeepNets("train", channels)[5] for channels in (16, 24, 16)]
    narrow, wide, again = map(PreparedNetworks(10, most=8).prepared, architectures)
    assert narrow is again
    assert narrow.graph.parameters.keys() == wide.graph.parameters.keys()
    assert narrow.graph.nodes != wide.graph.nodes


def test_limits_that_no_network_meets_are_refused(make):
    with pytest.raises(ArgumentError, match=r"No network of the space 'toys.Toys'"):
        make(networks=(CustomShare(factory="toys.Toys", max_macs=10),))


def test_images_of_another_number_of_classes_are_refused(images, tiny):
    few = dataclasses.replace(
        images["train"], labels=images["train"].labels % 2, classes=("cat", "dog")
    )
    with pytest.raises(ArgumentError, match=r"of 2 classes.*num_classes is 10"):
        Trainer(tiny, few)
