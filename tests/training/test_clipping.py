"""How much each network counts in a step, and how large the step's gradient may be."""

import pytest

from ghnqat_sdk.training.trainer import Trainer


@pytest.fixture
def make(images, tiny):
    def build(**changes) -> Trainer:
        return Trainer(tiny.model_copy(update=changes), images["train"])

    return build


def test_a_network_that_explodes_does_not_outweigh_the_others(make):
    """Its gradient is scaled to a norm of at most `network_clip_norm`."""
    norms = [
        next(make(network_clip_norm=limit).steps(1)).gradient_norm
        for limit in (1e-4, 2e-4, 1e9, 2e9)
    ]
    assert norms[1] == pytest.approx(2 * norms[0], rel=1e-3)
    assert norms[3] == norms[2] > norms[1]


def test_networks_below_the_limit_are_averaged_as_they_are(make, monkeypatch):
    trainer, norms = make(), []
    of_step = trainer.losses.of_step

    def noted(*arguments):
        results = of_step(*arguments)
        norms.extend(result.norm for result in results)
        return results

    monkeypatch.setattr(trainer.losses, "of_step", noted)
    (report,) = trainer.steps(1)
    assert len(norms) > 1
    limit = 1.01 * max(norms)
    (unclipped,) = make(network_clip_norm=1e9).steps(1)
    (just_below,) = make(network_clip_norm=limit).steps(1)
    assert just_below.gradient_norm == unclipped.gradient_norm
    (alone,) = make(network_clip_norm=1e-4).steps(1)
    assert alone.gradient_norm < report.gradient_norm <= unclipped.gradient_norm


def test_with_relative_norms_all_networks_count_the_same(make):
    """Also those whose plain gradients would not have been clipped."""
    norms = [
        next(make(relative_norm=True, network_clip_norm=limit).steps(1)).gradient_norm
        for limit in (1.0, 64.0)
    ]
    assert norms[1] == pytest.approx(64 * norms[0], rel=1e-3)
    plain = next(make(network_clip_norm=64.0).steps(1)).gradient_norm
    assert plain != pytest.approx(norms[1], rel=0.05)


def test_the_gradient_of_a_step_is_clipped(make):
    trainer = make(clip_norm=1e-3)
    (report,) = trainer.steps(1)
    assert report.gradient_norm > 1e-3
    assert trainer.gradients.flat.norm().item() == pytest.approx(1e-3, rel=1e-4)
