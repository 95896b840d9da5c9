import json

import numpy as np
import pytest
import torch
from small_networks import Net, Pointwise
from torch import nn

from ghnqat_sdk.data import ImageSet
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.export import export_onnx
from ghnqat_sdk.export.runtime import require_opset
from ghnqat_sdk.qat import learn_steps
from ghnqat_sdk.quantization.functional import scale_and_zero_point
from ghnqat_sdk.quantization.ranges import ClippedRanges

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
runtime = pytest.importorskip("onnxruntime")


def knows_two_bits() -> bool:
    """Whether this ONNX Runtime has opset 25, the first with integers of two bits."""
    try:
        require_opset(25)
    except ArgumentError:
        return False
    return True


def run(path, images):
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0])


def constants(path) -> dict[str, np.ndarray]:
    return {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


@pytest.mark.parametrize(
    ("bits", "storage", "error"),
    [
        ((8, 8), "int8", 1e-2),
        ((4, 8), "int4", 1e-2),
        ((3, 4), "int4", 1e-5),
        ((2, 2), "int2", 1e-5),
        ((32, 4), "int8", 1e-5),
    ],
)
def test_onnx_runtime_gives_the_outputs_of_the_model(
    bits, storage, error, quantized, images, tmp_path
):
    if storage == "int2" and not knows_two_bits():
        pytest.skip("this ONNX Runtime is too old")
    qmodel = quantized(Net(), bits)
    report = export_onnx(qmodel, tmp_path / "m.onnx", images, storage=storage)
    with torch.no_grad():
        expected = qmodel(images)
    difference = run(tmp_path / "m.onnx", images) - expected
    # An input next to the middle of two levels may round either way; all others agree.
    assert difference.square().median() < error * expected.square().mean()
    assert report.agreement.relative_error < 0.02
    assert report.agreement.largest_difference == pytest.approx(
        difference.abs().max().item(), rel=1e-3
    )
    assert report.folded + report.kept == 4
    assert report.agreement.images == 16
    assert "batch" in report.dynamic
    assert run(tmp_path / "m.onnx", images[:3]).shape == (3, 5)


@pytest.mark.parametrize(
    ("bits", "storage", "error"), [((4, 8), "int4", 1e-2), ((3, 4), "int8", 1e-5)]
)
def test_ranges_of_channels_become_scales_of_channels(
    bits, storage, error, quantized, images, tmp_path
):
    qmodel = quantized(Pointwise(), bits, ClippedRanges(per_channel=True))
    report = export_onnx(qmodel, tmp_path / "m.onnx", images, storage=storage)
    with torch.no_grad():
        expected = qmodel(images)
    difference = run(tmp_path / "m.onnx", images) - expected
    assert difference.square().median() < error * expected.square().mean()
    assert report.roundings.rounded == 0
    ranges = qmodel.conv.weight_quantizer.range_of(qmodel.conv.weight)
    steps = scale_and_zero_point(*ranges, bits[0])[0].flatten()
    stored = [x for x in constants(tmp_path / "m.onnx").values() if x.shape == (4,)]
    assert any(np.allclose(x, steps.numpy(), rtol=1e-5) for x in stored if x.dtype == np.float32)


def test_weights_are_stored_with_the_bits_of_the_storage(quantized, images, tmp_path):
    bits = {"stem": (8, 8), "deep": (2, 8), "hidden": (2, 8), "head": (4, 4)}
    qmodel = quantized(Net(), bits)
    kinds, outputs = {}, {}
    wanted = {"int8": "INT8", "int4": "INT4"} | ({"int2": "UINT2"} if knows_two_bits() else {})
    for storage in wanted:
        path = tmp_path / f"{storage}.onnx"
        report = export_onnx(qmodel, path, images, storage=storage)
        assert report.size == path.stat().st_size
        # two layers; the batch norm that follows none of them is a third convolution of the file
        assert report.integer_convolutions == report.convolutions == 2
        kinds[storage] = {
            tuple(t.dims): onnx.TensorProto.DataType.Name(t.data_type)
            for t in onnx.load(path).graph.initializer
        }
        outputs[storage] = run(path, images)
    assert {kinds[storage][8, 3, 3, 3] for storage in kinds} == {"INT8"}
    assert {storage: kinds[storage][80, 8] for storage in kinds} == wanted
    assert all(torch.equal(outputs["int8"], output) for output in outputs.values())


def test_levels_of_up_to_7_bits_are_stored_as_they_are(quantized, images, tmp_path):
    qmodel = quantized(Pointwise(), (7, 8))
    report = export_onnx(qmodel, tmp_path / "m.onnx", images)
    assert (report.roundings.channels, report.roundings.rounded) == (4, 0)
    layer = qmodel.conv
    wanted = layer.weight_quantizer(layer.weight).detach()
    stored = constants(tmp_path / "m.onnx")
    levels = next(v for v in stored.values() if v.shape == (4, 3, 1, 1))
    step = wanted.abs()[wanted != 0].min() / np.abs(levels[levels != 0]).min()
    assert torch.allclose(torch.from_numpy(levels.astype(np.float32)) * step, wanted, rtol=1e-4)


def test_8_bit_levels_that_do_not_fit_a_signed_byte_are_rounded(quantized, images, tmp_path):
    model = Pointwise()
    nn.init.uniform_(model.conv.weight, 0.1, 1.0)  # so that levels go up to 255
    with torch.no_grad():
        model.conv.weight[0] *= 0.1
    report = export_onnx(quantized(model, (8, 8)), tmp_path / "m.onnx", images)
    assert report.roundings.channels == 4
    assert 1 <= report.roundings.rounded <= 3
    assert 0 < report.roundings.largest <= 0.5 / 127
    assert "rounded again" in str(report)


def test_inputs_below_8_bits_are_clipped(quantized, images, tmp_path):
    qmodel = quantized(Net(), (4, 4))
    export_onnx(qmodel, tmp_path / "m.onnx", images)
    model = onnx.load(tmp_path / "m.onnx")
    values = constants(tmp_path / "m.onnx")
    readers = {name: node for node in model.graph.node for name in node.input}
    after = [readers[n.output[0]] for n in model.graph.node if n.op_type == "QuantizeLinear"]
    assert [node.op_type for node in after] == ["Clip"] * 4
    assert {values[node.input[2]].item() for node in after} == {15}


def test_the_file_says_what_images_it_takes_and_nothing_of_where_it_was_made(
    quantized, images, tmp_path
):
    pictures = ImageSet(
        torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
        torch.tensor([0, 1]),
        ("cat", "dog", "cow", "hen"),
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.2, 0.2),
    )
    export_onnx(quantized(Pointwise()), tmp_path / "m.onnx", images, images=pictures)
    facts = {
        each.key: json.loads(each.value) for each in onnx.load(tmp_path / "m.onnx").metadata_props
    }
    assert facts == {
        "input_size": [3, 8, 8],
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.2, 0.2],
        "classes": ["cat", "dog", "cow", "hen"],
    }
    assert b"test_onnx" not in (tmp_path / "m.onnx").read_bytes()


def test_the_model_stays_as_it_is(quantized, images, tmp_path):
    qmodel = quantized(Pointwise(), (4, 8))
    learn_steps(qmodel)
    qmodel.train()
    before = {name: tensor.clone() for name, tensor in qmodel.state_dict().items()}
    rng = torch.get_rng_state()
    export_onnx(qmodel, tmp_path / "m.onnx", images)
    assert qmodel.training
    assert torch.equal(torch.get_rng_state(), rng)
    after = qmodel.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_the_norms_of_a_layer_that_is_used_twice_are_folded_apart(quantized, images, tmp_path):
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.one, self.two = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.two(self.conv(self.one(self.conv(x)))).flatten(1)

    report = export_onnx(quantized(Twice()), tmp_path / "m.onnx", images)
    assert (report.folded, report.kept) == (2, 0)
    assert report.agreement.relative_error < 1e-3


def test_a_negative_factor_of_a_norm_turns_the_levels(quantized, images, tmp_path):
    qmodel = quantized(nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.BatchNorm2d(2)), (4, 8))
    with torch.no_grad():
        qmodel[1].weight.copy_(torch.tensor([-2.0, 2.0]))
    report = export_onnx(qmodel, tmp_path / "m.onnx", images)
    assert (report.folded, report.integer_convolutions) == (1, 1)
    assert report.agreement.relative_error < 1e-3


def test_keyword_arguments_and_single_images(quantized, images, tmp_path):
    qmodel = quantized(Pointwise())
    alone = export_onnx(qmodel, tmp_path / "one.onnx", {"x": images[:1]})
    assert alone.agreement.images == 1
    assert alone.dynamic == ("batch", "height", "width")


def test_one_score_for_each_image(quantized, images, tmp_path):
    class Scores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 1)

        def forward(self, x):
            return self.head(self.conv(x).relu().mean((2, 3))).squeeze(1)

    report = export_onnx(quantized(Scores()), tmp_path / "m.onnx", images)
    assert report.agreement.relative_error < 1e-3


def test_layers_that_an_evaluation_does_not_reach_need_no_range(quantized, images, tmp_path):
    class Auxiliary(Pointwise):
        def __init__(self) -> None:
            super().__init__()
            self.auxiliary = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            outputs = super().forward(x)
            return (outputs, self.auxiliary(x)) if self.training else outputs

    report = export_onnx(quantized(Auxiliary()), tmp_path / "m.onnx", images)
    assert report.convolutions == 1


def test_a_weight_that_is_only_read_stays_float(quantized, images, tmp_path):
    class Cosine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 5, bias=False)

        def forward(self, x):
            x = nn.functional.normalize(self.conv(x).relu().mean((2, 3)))
            return nn.functional.linear(x, nn.functional.normalize(self.head.weight))

    report = export_onnx(quantized(Cosine()), tmp_path / "m.onnx", images)
    assert report.integer_convolutions == report.convolutions == 1
    assert report.agreement.relative_error < 1e-3


def test_transposed_convolutions_are_simulated(quantized, images, tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 4, 2, 2, groups=2))
    report = export_onnx(quantized(model), tmp_path / "m.onnx", images)
    assert (report.integer_convolutions, report.simulated) == (1, 1)
    assert report.agreement.relative_error < 1e-3


def test_times_are_measured_on_request(quantized, images, tmp_path):
    report = export_onnx(quantized(Net(), (8, 8)), tmp_path / "m.onnx", images, timing=True)
    assert min(report.milliseconds) > 0
    assert " ms" in str(report)
