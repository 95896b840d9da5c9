from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from functional_model import Model
from torch import Tensor, nn

import ghnqat_sdk as gq
from ghnqat_sdk.calls import Call, map_tensors
from ghnqat_sdk.signatures import Signature

IMAGE, MASK = torch.randn(8, 3, 6, 6), torch.randn(8, 1, 6, 6)
Pair = namedtuple("Pair", "image mask")


@dataclass(frozen=True)
class Sample:
    image: Tensor
    mask: Tensor
    name: str = "x"


NESTED = {
    "a dict": ({"image": IMAGE, "mask": MASK}, lambda b: (b["image"], b["mask"])),
    "an ordered dict": (OrderedDict(image=IMAGE, mask=MASK), lambda b: (b["image"], b["mask"])),
    "a list": ([IMAGE, MASK], tuple),
    "a named tuple": (Pair(IMAGE, MASK), lambda b: (b.image, b.mask)),
    "a dataclass": (Sample(IMAGE, MASK), lambda b: (b.image, b.mask)),
    "a list of dicts": ([{"x": IMAGE}, {"x": MASK}], lambda b: (b[0]["x"], b[1]["x"])),
}


@pytest.mark.parametrize("kind", NESTED)
def test_nested_inputs_are_traced_predicted_and_calibrated(small, kind):
    batch, unpacked = NESTED[kind]

    def forward(m, b):
        image, mask = unpacked(b)
        return m.image(image) + m.mask(mask)

    model = Model(forward, image=nn.Conv2d(3, 4, 3), mask=nn.Conv2d(1, 4, 3))
    qmodel = gq.predict_quantized_params(model, hypernetwork=small, example_inputs=(batch,))
    report = gq.calibrate(qmodel, [(batch,), (batch,)])
    assert report.images == 16
    assert set(report.ranges) == {"image", "mask"}


def test_labels_are_what_follows_the_inputs_of_the_trace():
    batch = (IMAGE, MASK, torch.zeros(8))
    assert [len(Call.of_batch(batch, Signature(n)).args) for n in (1, 2)] == [1, 2]
    named = {"x": IMAGE, "label": torch.zeros(8)}
    assert list(Call.of_batch(named, Signature(1, ("x",))).kwargs) == ["x"]


def test_containers_keep_their_class_and_what_is_no_tensor():
    mapped = map_tensors(Sample(IMAGE, MASK), lambda tensor: tensor[:2])
    assert (len(mapped.image), mapped.name) == (2, "x")
    assert type(map_tensors(Pair(IMAGE, MASK), torch.clone)) is Pair


def test_numbers_are_on_the_cpu_whatever_the_default_device():
    with torch.device("meta"):
        numbers = Call.of(torch.empty(2, 3, dtype=torch.float16)).with_numbers().tensors()[0]
    assert (numbers.device.type, numbers.dtype) == ("cpu", torch.float16)
    assert numbers.isfinite().all()


def test_images_of_several_sizes_are_run_as_they_come(small):
    def forward(m, images):
        return [m.head(m.conv(image[None]).mean((2, 3))) for image in images]

    batches = [([IMAGE[0], IMAGE[1, :, :5]],), ([IMAGE[2]],)]
    model = Model(forward, conv=nn.Conv2d(3, 4, 3), head=nn.Linear(4, 10))
    qmodel = gq.predict_quantized_params(model, hypernetwork=small, example_inputs=batches[0])
    report = gq.calibrate(qmodel, batches, method="min-max")
    assert report.images == 3
    seen = torch.cat([IMAGE[0].flatten(), IMAGE[1, :, :5].flatten(), IMAGE[2].flatten()])
    assert report.ranges["conv"] == (seen.min().item(), seen.max().item())


@pytest.mark.parametrize(
    ("made", "advice"),
    [
        (torch.Tensor.to_sparse, r"images\.to_dense\(\)"),
        (torch.Tensor.to_mkldnn, r"images\.to_dense\(\)"),
        (lambda x: torch.nested.nested_tensor([*x]), r"images\.to_padded_tensor\(0\.0\)"),
    ],
)
@pytest.mark.parametrize("function", [gq.calibrate, gq.fit_head])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_batches_that_cannot_be_cut_are_refused(function, made, advice):
    model = nn.Sequential(nn.Conv2d(3, 4, 6), nn.Flatten(), nn.Linear(4, 2))
    qmodel = gq.from_float(model, example_inputs=IMAGE)
    with pytest.raises(gq.ArgumentError, match=advice):
        function(qmodel, [(made(IMAGE), torch.arange(8) % 2)])
