import sys

import numpy as np
import pytest
import torch
from torch import nn

from ghnqat_sdk.errors import ArgumentError, CheckpointError, ExportError
from ghnqat_sdk.export import onnx as export
from ghnqat_sdk.export.onnx import export_onnx
from ghnqat_sdk.qat import learn_steps
from ghnqat_sdk.quantization.calibrate import calibrate
from ghnqat_sdk.quantization.convert import to_fake_quantized
from ghnqat_sdk.quantization.layers import fake_quantized_layers
from ghnqat_sdk.quantization.ranges import ClippedRanges

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
runtime = pytest.importorskip("onnxruntime")
two_bits = pytest.mark.skipif(
    tuple(map(int, runtime.__version__.split(".")[:2])) < (1, 24),
    reason="ONNX Runtime reads UINT2 from 1.24 on, which Python 3.10 cannot have",
)

IMAGES = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Norms after a convolution, after a grouped one, after a sum (which stays), and after a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.deep_norm = nn.BatchNorm2d(8)
        self.sum_norm = nn.BatchNorm2d(8)
        self.hidden = nn.Linear(8, 8)
        self.hidden_norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.sum_norm(x + self.deep_norm(self.deep(x))))
        return self.head(torch.relu(self.hidden_norm(self.hidden(x.mean((2, 3))))))


def quantized(bits, model=None) -> nn.Module:
    torch.manual_seed(0)
    model = Net() if model is None else model
    for norm in [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]:
        nn.init.normal_(norm.weight)  # some of them negative
        nn.init.normal_(norm.bias)
    to_fake_quantized(model, bits, ClippedRanges())
    calibrate(model, [IMAGES, IMAGES + 0.1])
    return model.eval()


def run(path, images):
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0])


@pytest.mark.parametrize(
    ("bits", "packed"),
    [
        ((8, 8), False),
        ((4, 8), True),
        ((3, 4), True),
        ((2, 2), False),
        pytest.param((2, 2), True, marks=two_bits),
        ((32, 4), False),
    ],
)
def test_onnx_runtime_gives_the_outputs_of_the_model(bits, packed, tmp_path):
    qmodel = quantized(bits)
    report = export_onnx(qmodel, tmp_path / "m.onnx", IMAGES, packed=packed)
    with torch.no_grad():
        difference = run(tmp_path / "m.onnx", IMAGES) - qmodel(IMAGES)
    # An input next to the middle of two levels may round either way; all others agree.
    assert difference.abs().median() < 1e-4
    assert report.largest_difference == pytest.approx(
        difference.abs().max().item(), rel=1e-3, abs=1e-6
    )
    assert (report.folded, report.kept) == (3, 1)
    assert report.agreement > 0.9
    assert report.images == 16
    assert report.dynamic_batch
    assert run(tmp_path / "m.onnx", IMAGES[:3]).shape == (3, 5)


@two_bits
def test_weights_are_stored_as_integers_of_their_width(tmp_path):
    bits = {"stem": (8, 8), "deep": (2, 2), "hidden": (2, 4), "head": (32, 32)}
    qmodel = quantized(bits)
    sizes = {
        packed: export_onnx(qmodel, tmp_path / f"{packed}.onnx", IMAGES, packed=packed)
        for packed in (0, 1)
    }
    kinds = {}
    for packed in sizes:
        model = onnx.load(tmp_path / f"{packed}.onnx")
        assert not any(
            node.op_type == "QuantizeLinear" and "weight" in node.input[0]
            for node in model.graph.node
        )
        kinds[packed] = {
            tuple(t.dims): onnx.TensorProto.DataType.Name(t.data_type)
            for t in model.graph.initializer
            if len(t.dims) in (2, 4) and t.dims[0] > 1
        }
    assert kinds[0] == {
        (8, 3, 3, 3): "UINT8",
        (8, 1, 3, 3): "UINT8",
        (8, 8): "UINT8",
        (5, 8): "FLOAT",
    }
    assert kinds[1] == {
        (8, 3, 3, 3): "UINT8",
        (8, 1, 3, 3): "UINT2",
        (8, 8): "UINT4",
        (5, 8): "FLOAT",
    }
    assert sizes[1].size == (tmp_path / "1.onnx").stat().st_size < sizes[0].size
    assert (sizes[0].opset, sizes[1].opset) == (21, 25)
    assert "batch norms: 3 folded, 1 kept" in str(sizes[0])


def test_inputs_below_8_bits_are_clipped(tmp_path):
    qmodel = quantized({"stem": (8, 8)} | dict.fromkeys(["deep", "hidden", "head"], (4, 4)))
    export_onnx(qmodel, tmp_path / "m.onnx", IMAGES)
    model = onnx.load(tmp_path / "m.onnx")
    values = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    readers = {name: node for node in model.graph.node for name in node.input}
    after = [readers[n.output[0]] for n in model.graph.node if n.op_type == "QuantizeLinear"]
    assert [node.op_type for node in after] == ["DequantizeLinear", "Clip", "Clip", "Clip"]
    assert {values[node.input[2]].item() for node in after[1:]} == {15}


def test_nothing_of_the_exporting_machine_is_in_the_file(tmp_path):
    export_onnx(quantized((4, 4)), tmp_path / "m.onnx", IMAGES)
    assert b"test_export" not in (tmp_path / "m.onnx").read_bytes()


def test_the_model_stays_as_it_is(tmp_path):
    qmodel = quantized((4, 4))
    learn_steps(qmodel)
    qmodel.train()
    before = {name: tensor.clone() for name, tensor in qmodel.state_dict().items()}
    rng = torch.get_rng_state()
    export_onnx(qmodel, tmp_path / "m.onnx", IMAGES)
    assert qmodel.training
    assert torch.equal(torch.get_rng_state(), rng)
    after = qmodel.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_layers_with_equal_weights_are_folded_apart(tmp_path):
    model = nn.Sequential(
        nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
    )
    model[3].load_state_dict(model[0].state_dict())
    qmodel = quantized((4, 8), nn.Sequential(*model, nn.Flatten()))
    assert export_onnx(qmodel, tmp_path / "m.onnx", IMAGES).folded == 2


def test_the_norms_of_a_layer_that_is_used_twice_are_folded_apart(tmp_path):
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.one, self.two = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.two(self.conv(self.one(self.conv(x)))).flatten(1)

    report = export_onnx(quantized((8, 8), Twice()), tmp_path / "m.onnx", IMAGES)
    assert (report.folded, report.kept) == (2, 0)
    assert report.largest_difference < 0.05 * report.largest_output


def test_keyword_arguments_and_single_images(tmp_path):
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, image, shift):
            return (self.conv(image) + shift).flatten(1)

    model = Two()
    to_fake_quantized(model, (8, 8), ClippedRanges())
    batch = {"image": IMAGES, "shift": torch.zeros(16, 4, 6, 6)}
    calibrate(model, [batch])
    assert export_onnx(model, tmp_path / "m.onnx", batch).images == 16
    alone = export_onnx(quantized((8, 8)), tmp_path / "one.onnx", IMAGES[:1])
    assert (alone.images, alone.dynamic_batch) == (1, True)


def test_another_output_is_an_error_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_run_onnx", lambda content, args, kwargs: [torch.randn(16, 5)])
    with pytest.raises(ExportError, match="other outputs"):
        export_onnx(quantized((8, 8)), tmp_path / "m.onnx", IMAGES)
    assert not list(tmp_path.iterdir())


def test_bad_input_is_refused(tmp_path):
    qmodel = quantized((4, 4))
    with pytest.raises(ArgumentError, match="predict_quantized_params"):
        export_onnx(Net(), tmp_path / "m.onnx", IMAGES)
    with pytest.raises(ArgumentError, match=r"does not end in \.onnx"):
        export_onnx(qmodel, tmp_path / "m.pt", IMAGES)
    with pytest.raises(ArgumentError, match="expected a tensor"):
        export_onnx(qmodel, tmp_path / "m.onnx", "images")
    with pytest.raises(ArgumentError, match="could not be run"):
        export_onnx(qmodel, tmp_path / "m.onnx", IMAGES[:, :2])
    with pytest.raises(CheckpointError, match="Cannot write"):
        export_onnx(qmodel, tmp_path / "no" / "m.onnx", IMAGES)
    fake_quantized_layers(qmodel)["head"].input_quantizer.frozen_range = None
    with pytest.raises(ArgumentError, match="'head' has no range"):
        export_onnx(qmodel, tmp_path / "m.onnx", IMAGES)
    qmodel.stem.quantization.calibrated = False
    with pytest.raises(ArgumentError, match="calibrated"):
        export_onnx(qmodel, tmp_path / "m.onnx", IMAGES)


def test_without_onnx_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ArgumentError, match=r"ghnqat-sdk\[onnx\]"):
        export_onnx(quantized((4, 4)), tmp_path / "m.onnx", IMAGES)


def test_a_model_that_torch_cannot_export_is_named(tmp_path):
    class Choosy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            x = self.conv(x)
            return x if x.sum() > 0 else -x

    # torch 2.8 takes one branch for the other; the check against the model then refuses the file.
    refusals = r"cannot take this Choosy: .+data-dependent|gives other outputs than the model"
    with pytest.raises((ArgumentError, ExportError), match=refusals):
        export_onnx(quantized((8, 8), Choosy()), tmp_path / "m.onnx", IMAGES)


def test_folding_mirrors_the_levels_of_negative_factors(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.BatchNorm2d(2), nn.Flatten())
    qmodel = quantized((4, 8), model)
    with torch.no_grad():
        qmodel[1].weight.copy_(torch.tensor([-2.0, 0.0]))
    report = export_onnx(qmodel, tmp_path / "m.onnx", IMAGES)
    values = {
        t.name: onnx.numpy_helper.to_array(t)
        for t in onnx.load(tmp_path / "m.onnx").graph.initializer
    }
    scales = next(
        v for v in values.values() if v.dtype == np.float32 and v.shape == (2,) and (v > 0).all()
    )
    assert report.folded == 1
    assert report.largest_difference < 0.02 * report.largest_output
    assert scales[1] == 1.0
