import copy
import re
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.export.pt2e import pt2e_quantizer
from ghnqat_sdk.quantization.calibrate import calibrate
from ghnqat_sdk.quantization.convert import to_fake_quantized, to_float
from ghnqat_sdk.quantization.ranges import ClippedRanges

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torchao's, about itself
    pytest.importorskip("torchao")
    from torchao.quantization.pt2e import qat_utils
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

# torchao and ExecuTorch say these to themselves.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)

PAGE = Path(__file__).parents[2] / "docs" / "executorch.md"
IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
INTEGER = "conv2d", "linear"


class Net(nn.Module):
    """Results that are pooled, joined, added, sampled up and read twice on their way to the next
    layer, and a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.wide = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.left, self.right = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 3, padding=1)
        self.same, self.up = nn.Conv2d(8, 8, 1), nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.last = nn.Conv2d(8, 8, 3)
        self.hidden, self.drop, self.head = nn.Linear(8, 12), nn.Dropout(), nn.Linear(12, 5)

    def forward(self, x):
        x = F.relu6(self.norm(self.stem(x)))
        x = F.max_pool2d(F.relu(self.wide(x)), 2)
        x = F.max_pool2d(torch.cat((F.relu(self.left(x)), F.relu(self.right(x))), 1), 2)
        x = F.relu(x + self.same(x))
        x = self.last(F.interpolate(self.up(x), scale_factor=2.0))
        return self.head(self.drop(F.relu(self.hidden(x.mean((2, 3))))))


@pytest.fixture(autouse=True)
def no_search(monkeypatch):
    """Spares the search for torchao's own QAT of convolutions and norms, which finds none here."""
    monkeypatch.setattr(qat_utils, "_fold_conv_bn_qat_helper", lambda model, *_, **__: model)


def quantized(bits) -> nn.Module:
    torch.manual_seed(0)
    model = Net()
    nn.init.normal_(model.norm.weight)  # some of them negative
    to_fake_quantized(model, bits, ClippedRanges())
    calibrate(model, [IMAGES])
    return model.eval()


def converted(qmodel, dynamic_shapes=None) -> nn.Module:
    twin = to_float(copy.deepcopy(qmodel)).eval()
    program = torch.export.export(twin, (IMAGES,), dynamic_shapes=dynamic_shapes)
    prepared = prepare_pt2e(program.module(), pt2e_quantizer(qmodel, xnnpack=True))
    with torch.no_grad():
        prepared(IMAGES)
    return convert_pt2e(prepared)


@pytest.mark.parametrize("bits", [(8, 8), (4, 8), (2, 8)])
def test_layers_are_between_signed_bytes_and_outputs_near_those_of_the_model(bits):
    qmodel = quantized(bits)
    model = converted(qmodel)
    assert_near(model, qmodel)
    layers = [node for node in model.graph.nodes if node_name(node) in INTEGER]
    assert len(layers) == 8
    for node in layers:
        before, weight, after = node.args[0], node.args[1], followed(node)
        assert node_name(weight) == "dequantize_per_channel"
        assert node_name(before) == "dequantize_per_tensor"
        assert node_name(after) == "quantize_per_tensor"
        for step in (before, weight, after):
            assert torch.int8 in step.args


def node_name(node) -> str:
    return str(node.target).split(".")[-2] if node.op == "call_function" else ""


def followed(node):
    """What reads the result of a layer, or of the activation after it, alone."""
    (reader,) = node.users
    if node_name(reader) in ("relu", "relu6"):
        (reader,) = reader.users
    return reader


def assert_near(model, qmodel):
    with torch.no_grad():
        expected = qmodel(IMAGES)
        difference = (model(IMAGES) - expected).square().mean()
    assert difference < 1e-3 * expected.square().mean()


def test_pooled_and_joined_outputs_are_quantized_as_their_reader_is():
    model = converted(quantized((4, 8)))
    alike = [node for node in model.graph.nodes if node_name(node) in ("cat", "max_pool2d")]
    read_once = [node for node in alike if len(node.users) == 1]
    for node in read_once:
        (reader,) = node.users
        if node_name(reader) == "quantize_per_tensor":
            assert {x.args[1:] for x in node.all_input_nodes} == {reader.args[1:]}
    assert (len(alike), len(read_once)) == (3, 2)


class Shuffled(nn.Module):
    """Channels that change places between two layers, by views for any number of images."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 3)

    def forward(self, x):
        x = F.relu(self.stem(x))
        images, _, *sides = x.shape
        x = x.view(images, 2, 4, *sides).transpose(1, 2).reshape(images, 8, *sides)
        return self.last(x).mean((2, 3))


def test_programs_for_any_number_of_images_are_quantized():
    torch.manual_seed(0)
    qmodel = Shuffled()
    to_fake_quantized(qmodel, (4, 8), ClippedRanges())
    calibrate(qmodel, [IMAGES])
    any_number = ({0: torch.export.Dim.AUTO},)
    model = converted(qmodel.eval(), dynamic_shapes=any_number)
    assert_near(model, qmodel)
    with torch.no_grad():
        assert model(IMAGES[:2]).shape == (2, 5)


class Gated(nn.Module):
    """A result that is pooled for a gate, multiplied by the gate, and joined."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gate = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)
        self.last = nn.Conv2d(16, 5, 1)

    def forward(self, x):
        x = F.relu(self.stem(x))
        gated = x * torch.sigmoid(self.gate(F.adaptive_avg_pool2d(x, 1)))
        return self.last(torch.cat((gated, x), 1)).mean((2, 3))


def gated() -> nn.Module:
    torch.manual_seed(0)
    qmodel = Gated()
    to_fake_quantized(qmodel, (4, 8), ClippedRanges())
    calibrate(qmodel, [IMAGES])
    return qmodel.eval()


def test_each_reader_dequantizes_an_output_for_itself():
    qmodel = gated()
    model = converted(qmodel)
    assert_near(model, qmodel)
    steps = [node for node in model.graph.nodes if node_name(node) == "dequantize_per_tensor"]
    readers = {node_name(reader) for node in steps for reader in node.users}
    assert {"adaptive_avg_pool2d", "mul", "cat"} <= readers
    assert [len(node.users) for node in steps] == [1] * len(steps)


def test_inputs_of_other_bits_are_refused():
    with pytest.raises(ArgumentError, match="inputs of 8 bits, and 'stem' has 4"):
        converted(quantized((4, 4)))


@pytest.mark.parametrize("bits", [(32, 32), (4, 32), (32, 8)])
def test_layers_without_integers_stay_in_float(bits):
    qmodel = quantized(bits)
    model = converted(qmodel)
    assert_near(model, qmodel)
    assert not any("dequantize_per_channel" in str(node.target) for node in model.graph.nodes)


@pytest.mark.parametrize("bits", [(8, 8), (4, 8), (4, 32)])
def test_the_lowered_program_agrees_with_the_model(bits, tmp_path):
    qmodel = quantized(bits)
    assert_near(lowered(qmodel, tmp_path / "model.pte"), qmodel)


def test_the_lowered_program_of_a_gate_agrees_with_the_model(tmp_path):
    qmodel = gated()
    assert_near(lowered(qmodel, tmp_path / "model.pte"), qmodel)


def lowered(qmodel, file):
    """What a program of ExecuTorch does to images."""
    pytest.importorskip("executorch")
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    program = torch.export.export(converted(qmodel), (IMAGES,))
    edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    outside = {str(node.target) for node in edge.exported_program().graph.nodes}
    assert not [name for name in outside if "convolution" in name or "addmm" in name]
    edge.to_executorch().save(str(file))
    method = Runtime.get().load_program(file).load_method("forward")
    return lambda images: method.execute([images])[0]


def test_the_snippet_of_the_page_runs(tmp_path, monkeypatch):
    """`py` rather than `python`: ExecuTorch is no dependency of the other snippets."""
    pytest.importorskip("executorch")
    monkeypatch.chdir(tmp_path)
    (snippet,) = re.findall(r"^```py\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    qmodel = quantized((4, 8))
    twin = to_float(copy.deepcopy(qmodel)).eval()
    known = {"torch": torch, "qmodel": qmodel, "twin": twin, "images": IMAGES}
    tools = {each.__name__: each for each in (prepare_pt2e, convert_pt2e, pt2e_quantizer)}
    variables = known | tools
    exec(snippet, variables)
    assert_near(lambda _: variables["outputs"], qmodel)
