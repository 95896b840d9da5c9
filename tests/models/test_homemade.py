import pytest
import torch
from homemade import IMAGES, MODELS, conv
from torch import Tensor, nn

import ghnqat_sdk as gq
from ghnqat_sdk.calls import tensors_in

KEPT = {
    "weight_norm": {
        "0.parametrizations.weight.original0"
    },  # the length of each filter: another factor of one weight
}


@pytest.mark.parametrize(
    ("make", "example"), MODELS.items(), ids=lambda value: getattr(value, "__name__", "")
)
def test_everything_is_predicted_finite_and_trainable(make, example):
    torch.manual_seed(0)
    model = make()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()

    qmodel = gq.predict_quantized_params(model, (4, 4), example_inputs=example, head="predict")

    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    report = gq.prediction_report(qmodel)
    kept = KEPT.get(make.__name__, set())
    assert set(report.kept) == kept
    assert set(report.predicted) == {name for name, _ in model.named_parameters()} - kept

    dtype = next(model.parameters()).dtype
    example = IMAGES if example is None else example
    batch = (
        {key: torch.randn(t.shape, dtype=dtype) for key, t in example.items()}
        if isinstance(example, dict)
        else None
    )
    images = None if batch else torch.randn(example.shape, dtype=dtype)

    def run() -> list[Tensor]:
        return list(tensors_in(qmodel(**batch) if batch else qmodel(images)))

    qmodel.requires_grad_().train()
    sum(output.square().mean() for output in run()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in qmodel.parameters())
    gq.calibrate(qmodel, [batch or images])
    qmodel.eval()
    assert all(output.isfinite().all() for output in run())


def test_buffers_and_hooks_of_the_users_survive_in_the_copy():
    calls = []
    model = nn.Sequential(conv(3, 8), nn.Flatten(), nn.Linear(8 * 32 * 32, 10))
    model.register_buffer("mean", torch.tensor([1.0]))
    model[0].register_forward_hook(lambda *_: calls.append(1))
    qmodel = gq.predict_quantized_params(model, example_inputs=IMAGES)
    calls.clear()
    qmodel(torch.randn(2, 3, 32, 32))
    assert calls == [1]
    assert torch.equal(qmodel.mean, model.mean)
    assert qmodel.mean is not model.mean
