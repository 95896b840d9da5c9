"""A run that diverges leaves what was good."""

import pytest

from ghnqat_sdk.errors import CheckpointError
from ghnqat_sdk.training.checkpoint import load_training_state
from ghnqat_sdk.training.config import ValidationConfig
from ghnqat_sdk.training.optimizers import AdamWConfig


def rate(learning_rate: float) -> dict[str, object]:
    return {"optimizer": AdamWConfig(learning_rate=learning_rate), "checkpoint_every": 1}


@pytest.mark.parametrize("validated_every", [1, 9])
@pytest.mark.parametrize("too_high", [1e6, 1e30, 1e38])  # finite weights, and infinite ones
def test_a_run_that_diverges_keeps_its_last_checkpoint(
    make_run, contents, too_high, validated_every
):
    validation = ValidationConfig(every=validated_every, networks=1, images=20)
    stable = make_run(**rate(1e-3), validation=validation)
    list(stable.run(2))
    before = contents(stable.folder)
    run = make_run(**rate(too_high), validation=validation)
    assert run.resume()
    reason = r"has diverged by step 3: .* is not finite .* of step 2 is kept: lower optimizer.lear"
    with pytest.raises(CheckpointError, match=reason):
        list(run.run(6))
    after = contents(stable.folder)
    assert before.pop("run.json") != after.pop("run.json")
    assert after == before
    run = make_run(**rate(1e-3), validation=validation)
    assert run.resume()
    list(run.run(3))
    assert load_training_state(run.folder)[1]["step"] == 3


def test_a_run_that_diverges_at_once_has_no_checkpoint(make_run):
    run = make_run(**rate(1e30))
    with pytest.raises(CheckpointError, match=r"no checkpoint yet: .* is 1e\+30, and start again"):
        list(run.run(2))
    assert {path.name for path in run.folder.iterdir()} == {"run.json", "run.lock"}
