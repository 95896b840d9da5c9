"""Linear layers on more than two dimensions, which torch writes as products with transposed
matrices."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghnqat_sdk.export import export_onnx
from ghnqat_sdk.export.onnx_graph import Graph
from ghnqat_sdk.export.runtime import runner, session_of
from ghnqat_sdk.export.weights import transpose_stored_weights
from ghnqat_sdk.quantization.ranges import ClippedRanges

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


class Mixer(nn.Module):
    """A block of ConvNeXt without its depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 4, 4)
        self.wide, self.narrow = nn.Linear(32, 96), nn.Linear(96, 32, bias=False)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        x = x + self.narrow(F.gelu(self.wide(x)))
        return self.head(x.mean((1, 2)))


class Tokens(nn.Module):
    """One layer on many tokens and on one, an activation between layers, and scores by token."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 24, 2, 2), nn.Linear(24, 24)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.inner(self.stem(x).flatten(2).transpose(1, 2)))
        return self.head(x * self.inner(x.mean(1))[:, None])


def matrices(path: Path) -> dict[tuple[int, ...], str]:
    kinds = onnx.TensorProto.DataType.Name
    constants = onnx.load(path).graph.initializer
    return {tuple(t.dims): kinds(t.data_type) for t in constants if min(t.dims, default=0) > 1}


def products(path: Path) -> int:
    """How many linear layers ONNX Runtime runs in integers."""
    optimized = path.with_name("optimized.onnx")
    session_of(path.read_bytes(), optimized=optimized)
    kinds = [node.op_type for node in onnx.load(optimized).graph.node]
    return sum(kind in ("MatMulIntegerToFloat", "QLinearMatMul", "QGemm") for kind in kinds)


@pytest.mark.parametrize(
    ("bits", "stored", "error", "ranges"),
    [
        ((4, 8), {"INT4", "UINT4"}, 1e-3, ClippedRanges(per_channel=True)),
        ((4, 4), {"INT4", "UINT4"}, 1e-9, ClippedRanges()),
    ],
)
def test_weights_are_packed_and_outputs_stay(
    bits, stored, error, ranges, quantized, images, tmp_path
):
    report = export_onnx(
        quantized(Mixer(), bits, ranges), tmp_path / "m.onnx", images, storage="int4"
    )
    assert report.agreement.relative_error < error
    in_integers = report.integer_convolutions, products(tmp_path / "m.onnx")
    assert report.simulated + sum(in_integers) == 4
    assert in_integers[1] == 3 and (bits[1] < 8 or in_integers[0] == 1)
    assert report.roundings.channels == 32 + 96 + 32 + 10
    found = matrices(tmp_path / "m.onnx")
    assert {found[32, 96], found[96, 32], found[32, 3, 4, 4]} <= stored
    assert "INT16" not in found.values()


def test_products_of_a_layer_that_is_called_twice_run_in_integers(quantized, images, tmp_path):
    report = export_onnx(quantized(Tokens(), (4, 8)), tmp_path / "m.onnx", images)
    assert report.agreement.relative_error < 1e-3
    assert products(tmp_path / "m.onnx") == 3


def test_packing_changes_no_output(quantized, images, tmp_path):
    qmodel = quantized(Mixer(), (4, 8))
    outputs = []
    for storage in ("int8", "int4"):
        export_onnx(qmodel, tmp_path / "m.onnx", images, storage=storage)
        outputs += runner((tmp_path / "m.onnx").read_bytes())([images])
    assert torch.equal(*outputs)


def test_a_weight_that_is_read_both_ways_round_is_stored_for_each() -> None:
    from onnx import TensorProto, helper, numpy_helper

    levels = np.array([[1, 2, 3], [4, 5, 6]], np.int16)
    nodes = [
        helper.make_node("DequantizeLinear", ["levels", "scale"], ["weight"], axis=0),
        helper.make_node("Transpose", ["weight"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "turned"], ["tokens"]),
        helper.make_node("Gemm", ["tokens", "weight"], ["y"]),
    ]
    float_ = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])]
    graph = helper.make_graph(
        nodes, "both", float_, [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])]
    )
    graph.initializer.append(numpy_helper.from_array(levels, "levels"))
    graph.initializer.append(numpy_helper.from_array(np.float32([0.5, 2]), "scale"))
    opsets = [helper.make_opsetid("", 21)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    x = torch.tensor([[1.0, -2.0, 0.5]])
    expected = runner(model)([x])
    changed = Graph(model)
    transpose_stored_weights(changed)
    changed.store()
    assert torch.equal(*expected, *runner(changed.model)([x]))
    assert [node.op_type for node in changed.nodes] == [
        "DequantizeLinear", "DequantizeLinear", "MatMul", "Gemm",
    ]  # fmt: skip
