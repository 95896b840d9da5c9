"""Inputs and labels in batches that are mappings."""

import pytest
import torch
from torch import Tensor, nn

import ghnqat_sdk as gq
from ghnqat_sdk.signatures import Signature

IMAGES = torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(0))
GAIN = torch.full((20, 1, 1, 1), 5.0)
LABELS = torch.arange(20) % 2


class Gained(nn.Module):
    """With an input that may be left out, and labels as models of Hugging Face take them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(
        self, x: Tensor, gain: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        assert labels is None
        return self.head(self.conv(x if gain is None else x * gain).relu().mean((2, 3)))


EXAMPLES = [IMAGES, {"x": IMAGES}, {"x": IMAGES, "gain": GAIN}]


@pytest.mark.parametrize("example", EXAMPLES, ids=["tensor", "dict", "dict of all"])
def test_what_forward_takes_is_an_input_whatever_the_example_inputs_were(example):
    qmodel = gq.from_float(Gained(), example_inputs=example)
    batch = {"x": IMAGES, "gain": GAIN, "labels": LABELS}
    (low, high) = gq.calibrate(qmodel, [batch], method="min-max").ranges["conv"]
    assert (low, high) == ((5 * IMAGES).min().item(), (5 * IMAGES).max().item())
    assert gq.quantization_report(qmodel, batch).layers[0].activation.high == high
    assert gq.fit_head(qmodel, [batch]).heads[0].images == 20


CALLS = {
    "calibrate": lambda qmodel, batch: gq.calibrate(qmodel, [batch]),
    "fit_head": lambda qmodel, batch: gq.fit_head(qmodel, [batch]),
    "quantization_report": gq.quantization_report,
}


@pytest.mark.parametrize("example", EXAMPLES[:2], ids=["tensor", "dict"])
@pytest.mark.parametrize("call", CALLS)
def test_an_entry_that_is_neither_input_nor_label_is_refused(call, example):
    qmodel = gq.from_float(Gained(), example_inputs=example)
    advice = r"entry 'gian'.+forward takes 'x', 'gain', .+ write \{'x': .+, 'labels': .+\}"
    with pytest.raises(gq.ArgumentError, match=advice):
        CALLS[call](qmodel, {"x": IMAGES, "gian": GAIN, "labels": LABELS})


def test_labels_that_are_missing_are_asked_for_by_name():
    with pytest.raises(gq.ArgumentError, match=r"\{'x': batch\['x'\], 'labels': labels\}"):
        gq.fit_head(gq.from_float(Gained()), [{"x": IMAGES}])


def taken(forward: object, keywords: tuple[str, ...] | None = None) -> list[str]:
    model = nn.Module()
    model.forward = forward
    signature = Signature(keywords=keywords).of(model)
    return [name for name in ("x", "y", "labels", "mask") if signature.takes(name)]


def test_a_label_is_an_input_where_forward_or_the_example_has_it():
    assert taken(lambda x, labels=None: x) == ["x"]
    assert taken(lambda x, labels=None: x, ("x", "labels")) == ["x", "labels"]
    assert taken(lambda x, y: x) == ["x", "y"]


def test_a_forward_that_takes_any_name_gets_all_but_labels():
    assert taken(lambda x, **others: x) == ["x", "mask"]
    assert taken(lambda y, **others: y) == ["x", "y", "mask"]
