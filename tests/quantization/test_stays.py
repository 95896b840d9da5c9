"""What measuring, and a call that raises, leave as it was."""

import warnings

import pytest
import torch
from torch import nn

import ghnqat_sdk as gq
from ghnqat_sdk.quantization.state import evaluating

IMAGES = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(64) % 4


class Counting(nn.Module):
    """Keeps a count, an average and a grid for the last size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)
        self.size = (0, 0)
        self.register_buffer("steps", torch.zeros(()))
        self.register_buffer("average", torch.zeros(8))
        self.register_buffer("grid", torch.zeros(0, 0), persistent=False)

    def forward(self, x):
        x = self.conv(x)
        self.steps += 1
        self.average.data.lerp_(x.detach().mean((0, 2, 3)), 0.1)
        if self.size != x.shape[2:]:
            self.size = x.shape[2:]
            self.grid = torch.ones(*x.shape[2:], device=x.device)
        return self.head((x * self.grid).mean((2, 3)))


def counting() -> nn.Module:
    torch.manual_seed(0)
    qmodel = gq.from_float(Counting(), (4, 4))
    gq.calibrate(qmodel, [IMAGES])
    return qmodel


MEASURING = {
    "report": lambda qmodel: gq.quantization_report(qmodel, IMAGES[..., :6, :6]),
    "head": lambda qmodel: gq.fit_head(qmodel, [(IMAGES[..., :6, :6], LABELS)]),
}


@pytest.mark.parametrize("measure", MEASURING.values(), ids=MEASURING)
def test_what_a_forward_brings_up_to_date_stays_where_it_is_measured(measure):
    qmodel = counting()
    buffers = dict(qmodel.named_buffers())
    before = {name: buffer.clone() for name, buffer in buffers.items()}
    assert before["steps"] > 0
    measure(qmodel)
    assert all(buffer is buffers[name] for name, buffer in qmodel.named_buffers())
    torch.testing.assert_close(buffers, before, rtol=0, atol=0)
    assert qmodel.size == qmodel.grid.shape == (6, 6)


def test_buffers_that_cannot_be_compared_stay_too():
    model = nn.Linear(2, 2)
    model.register_buffer("sparse", torch.eye(2).to_sparse())
    model.register_buffer("nowhere", torch.empty(2, device="meta"))
    with evaluating(model):
        model.sparse.mul_(3)
    assert torch.equal(model.sparse.to_dense(), torch.eye(2))


def test_a_graph_that_has_saved_a_buffer_can_go_back_after_a_measurement():
    qmodel = gq.from_float(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), (4, 4))
    gq.calibrate(qmodel, [IMAGES])
    loss = qmodel.eval()(IMAGES).sum()
    gq.quantization_report(qmodel, IMAGES)
    loss.backward()


@pytest.mark.filterwarnings("error::ghnqat_sdk.errors.GhnqatWarning")
def test_a_calibration_whose_warning_is_an_error_changes_nothing(small):
    qmodel = gq.predict_quantized_params(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), hypernetwork=small
    )
    gq.calibrate(qmodel, [IMAGES])
    qmodel.append(nn.BatchNorm2d(8))
    before, expected = type(qmodel[2]), qmodel.eval()(IMAGES)
    with pytest.raises(gq.UnfamiliarDataWarning):
        gq.calibrate(qmodel, [50 * IMAGES + 128])
    assert type(qmodel[2]) is before
    assert torch.equal(qmodel(IMAGES), expected)


def test_an_evaluation_whose_warning_is_an_error_raises_each_time():
    qmodel = gq.from_float(nn.Conv2d(3, 8, 3)).eval()
    for _ in range(2):
        with pytest.raises(gq.UncalibratedWarning):
            qmodel(IMAGES)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        qmodel(IMAGES)
        qmodel(IMAGES)
    assert len(caught) == 1
