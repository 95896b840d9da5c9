import copy
import random
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_networks import Net, Pointwise

from ghnqat_sdk.data import ImageSet
from ghnqat_sdk.errors import ArgumentError, CheckpointError, ExportError
from ghnqat_sdk.export import export_onnx, pt2e_quantizer
from ghnqat_sdk.export import onnx as export
from ghnqat_sdk.quantization.calibrate import calibrate
from ghnqat_sdk.quantization.convert import from_float
from ghnqat_sdk.quantization.lookup import fake_quantized_layers

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("values", [torch.randn(16, 4), torch.full((16, 4), torch.nan)])
def test_another_output_is_an_error_and_writes_nothing(
    values, quantized, images, tmp_path, monkeypatch
):
    monkeypatch.setattr(export, "runner", lambda content: lambda inputs: [values])
    with pytest.raises(ExportError, match="other outputs"):
        export_onnx(quantized(Pointwise()), tmp_path / "m.onnx", images)
    assert not list(tmp_path.iterdir())


def test_bad_input_is_refused(quantized, images, tmp_path):
    qmodel = quantized(Net(), (4, 4))
    path = tmp_path / "m.onnx"
    with pytest.raises(ArgumentError, match="predict_quantized_params"):
        export_onnx(Net(), path, images)
    with pytest.raises(ArgumentError, match=r"does not end in \.onnx"):
        export_onnx(qmodel, tmp_path / "m.pt", images)
    with pytest.raises(ArgumentError, match="expected a tensor"):
        export_onnx(qmodel, path, "images")
    with pytest.raises(ArgumentError, match="could not be run"):
        export_onnx(qmodel, path, images[:, :2])
    with pytest.raises(ArgumentError, match=r"compiled.+model\._orig_mod"):
        export_onnx(torch.compile(qmodel), path, images)
    for character in ("\0", "\ud800"):
        with pytest.raises(ArgumentError, match="no file's name can have"):
            export_onnx(qmodel, f"m{character}.onnx", images)
    for storage in ("int3", ["int4"]):
        with pytest.raises(ArgumentError, match=r"storage=.+ is unknown"):
            export_onnx(qmodel, path, images, storage=storage)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="timing='yes' is a str; expected True or False"):
        export_onnx(qmodel, path, images, timing="yes")  # type: ignore[arg-type]
    two_bits = quantized(Net(), (2, 4))
    for storage, opset in (("int8", 20), ("int2", 21), ("int8", 999), ("int8", "21")):
        with pytest.raises(ArgumentError, match=f"opset={opset!r} is not one"):
            export_onnx(two_bits, path, images, storage=storage, opset=opset)
    fake_quantized_layers(qmodel)["head"].input_quantizer.frozen_range = None
    with pytest.raises(ArgumentError, match="'head' has no range"):
        export_onnx(qmodel, path, images)
    qmodel.stem.quantization.calibrated = False
    with pytest.raises(ArgumentError, match="calibrated"):
        export_onnx(qmodel, path, images)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("export_to", [lambda q, *_: pt2e_quantizer(q), export_onnx])
def test_roundings_that_no_runtime_knows_are_refused(export_to, images, tmp_path):
    qmodel = from_float(Pointwise(), (4, 32), rounding="noise")
    calibrate(qmodel, [images])
    with pytest.raises(ArgumentError, match=r"'conv' has NoiseRounding.+from_float\(to_float"):
        export_to(qmodel, tmp_path / "m.onnx", images)


def test_unknown_float_edges_are_refused_with_the_names_there_are(quantized, images, tmp_path):
    with pytest.raises(ArgumentError, match=r"'nothing', and no value .* x, conv\.conv"):
        export_onnx(quantized(Pointwise()), tmp_path / "m.onnx", images, float_edges=["nothing"])


@pytest.mark.parametrize("names", ["x", None, 3, [3]])
def test_float_edges_that_are_no_names_are_refused_at_once(
    names, quantized, images, tmp_path, monkeypatch
):
    monkeypatch.setattr(export, "to_onnx", None)
    with pytest.raises(ArgumentError, match=r"float_edges=.+ is .+ Write"):
        export_onnx(quantized(Pointwise()), tmp_path / "m.onnx", images, float_edges=names)


def test_a_batch_without_values_is_refused_for_that(quantized, images, tmp_path):
    qmodel = quantized(Pointwise())
    for batch in (images[:0], (images[..., :0],), {}, ()):
        with pytest.raises(ArgumentError, match="batch without images"):
            export_onnx(qmodel, tmp_path / "m.onnx", batch)
    with pytest.raises(ArgumentError, match="meta device"):
        export_onnx(qmodel, tmp_path / "m.onnx", images.to("meta"))


def test_a_model_with_a_boolean_output_is_compared(quantized, images, tmp_path):
    class Deciding(Pointwise):
        def forward(self, x):
            y = super().forward(x)
            return y, y > 9

    report = export_onnx(quantized(Deciding()), tmp_path / "m.onnx", images)
    assert report.agreement.relative_error < 1e-2


def test_a_graph_that_is_not_valid_is_an_error_of_the_package(
    quantized, images, tmp_path, monkeypatch
):
    finish = export.shorten_names

    def damage(graph, kept):
        finish(graph, kept)
        graph.model.graph.node.append(graph.model.graph.node[0])

    monkeypatch.setattr(export, "shorten_names", damage)
    with pytest.raises(ExportError, match="not valid ONNX"):
        export_onnx(quantized(Pointwise()), tmp_path / "m.onnx", images)


def test_a_file_that_cannot_be_written_is_named(quantized, images, tmp_path):
    with pytest.raises(CheckpointError, match="Cannot write"):
        export_onnx(quantized(Pointwise()), tmp_path / "no" / "m.onnx", images)


def test_an_opset_that_the_runtime_does_not_know_is_an_error(quantized, images, tmp_path):
    newest = onnx.defs.onnx_opset_version()
    with pytest.raises(ArgumentError, match=f"does not know opset {newest}"):
        export_onnx(quantized(Pointwise()), tmp_path / "m.onnx", images, opset=newest)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_that_is_not_float32_is_asked_to_be(dtype, quantized, images, tmp_path):
    qmodel = copy.deepcopy(quantized(Pointwise())).to(dtype)
    with pytest.raises(ArgumentError, match=r"expected float32.*\.float\(\)"):
        export_onnx(qmodel, tmp_path / "m.onnx", images.to(dtype))


def test_without_onnx_the_error_says_what_to_install(quantized, images, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ArgumentError, match=r"ghnqat-sdk\[onnx\]"):
        export_onnx(quantized(Pointwise()), tmp_path / "m.onnx", images)


def test_a_model_that_torch_cannot_export_is_named(quantized, images, tmp_path):
    class Choosy(Pointwise):
        def forward(self, x):
            x = super().forward(x)
            return x if x.sum() > 0 else -x

    with pytest.raises(ArgumentError, match=r"cannot take this Choosy: .+data-dependent"):
        export_onnx(quantized(Choosy()), tmp_path / "m.onnx", images)
    assert not (tmp_path / "m.onnx").exists()


def test_images_that_the_model_is_not_for_are_refused(quantized, images, tmp_path):
    qmodel, path = quantized(Pointwise()), tmp_path / "m.onnx"
    grey = ImageSet.of(torch.rand(8, 8, 8), torch.arange(8) % 4)
    with pytest.raises(ArgumentError, match="have 1 channels, and the batch has 3"):
        export_onnx(qmodel, path, images, images=grey)
    three = ImageSet.of(torch.rand(9, 3, 8, 8), torch.arange(9) % 3)
    with pytest.raises(ArgumentError, match="of 3 classes, and the model gives 4"):
        export_onnx(qmodel, path, images, images=three)
    with pytest.raises(ArgumentError, match="a Tensor; expected an ImageSet"):
        export_onnx(qmodel, path, images, images=images)  # type: ignore[arg-type]
    assert not path.exists()


def test_a_batch_without_finite_values_is_refused(quantized, images, tmp_path):
    with pytest.raises(ArgumentError, match="NaN or infinity"):
        export_onnx(quantized(Pointwise()), tmp_path / "m.onnx", images * torch.nan)


def test_storage_for_bits_that_no_layer_has_is_refused(quantized, images, tmp_path):
    qmodel = quantized(Pointwise(), (4, 8))
    with pytest.raises(ArgumentError, match="up to 2 bits, and the model's have 4"):
        export_onnx(qmodel, tmp_path / "m.onnx", images, storage="int2")


@pytest.mark.parametrize(
    "noise",
    [
        lambda x: F.dropout(x, 0.3),
        lambda x: x + 1e-3 * torch.rand_like(x),
        lambda x: x + 1e-3 * random.random(),
        lambda x: x + 1e-3 * np.random.random(),
    ],
)
def test_a_model_that_is_random_however_little_is_told_to_be(noise, quantized, images, tmp_path):
    class Random(Pointwise):
        def forward(self, x):
            return noise(super().forward(x))

    with pytest.raises(ExportError, match="other outputs each time"):
        export_onnx(quantized(Random()), tmp_path / "m.onnx", images)


def test_kernels_that_add_in_another_order_are_not_random(quantized, images, tmp_path, monkeypatch):
    qmodel = quantized(Pointwise())
    exact = export._outputs_of

    def on_a_gpu(model, inputs):
        noise = 1e-7 * torch.rand(()) if model is qmodel else 0
        return [output + noise for output in exact(model, inputs)]

    monkeypatch.setattr(export, "_outputs_of", on_a_gpu)
    export_onnx(qmodel, tmp_path / "m.onnx", images)
