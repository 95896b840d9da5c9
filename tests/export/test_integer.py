"""Blocks of networks as ONNX Runtime runs them: every convolution in integers, outputs those of the
model."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghnqat_sdk.export import export_onnx

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
runtime = pytest.importorskip("onnxruntime")


def conv_norm(inputs: int, outputs: int, size: int = 3, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, size, padding=size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = conv_norm(3, 8), conv_norm(8, 8), conv_norm(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return F.relu(self.two(F.relu(self.one(x))) + x)


class Inverted(nn.Module):
    """Clipped activations, and a sum without one."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.deep = conv_norm(3, 12, 1), conv_norm(12, 12, 3, groups=12)
        self.narrow = conv_norm(12, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(F.relu6(self.deep(F.relu6(self.wide(x) * 1.0)))) + x


class Gated(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, activation: type[nn.Module], gate: type[nn.Module]) -> None:
        super().__init__()
        self.stem, self.activation, self.gate = conv_norm(3, 8), activation(), gate()
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.stem(x))
        mean = F.adaptive_avg_pool2d(x, 1)
        return self.gate(self.excite(F.relu(self.squeeze(mean)))) * x


class Branches(nn.Module):
    """Pooling, and branches that are concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.small, self.large = (
            nn.Conv2d(3, 8, 3),
            nn.Conv2d(8, 4, 1),
            nn.Conv2d(8, 6, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.stem(x)), 2, 1)
        large = F.relu(self.large(F.pad(x, (1, 1, 1, 1))))
        return torch.cat([F.relu(self.small(x)), large], 1)


class Shuffled(nn.Module):
    """Halves of the channels, one of which passes by, put together by turns."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.side = conv_norm(3, 8), conv_norm(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        one, other = F.relu(self.stem(x)).chunk(2, 1)
        x = torch.cat([one, F.relu(self.side(other))], 1)
        return x.unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2)


class Dense(nn.Module):
    """Norms in front of convolutions, of features that grow."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.conv = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


class Norms(nn.Module):
    """Norms of the images, between an activation and a convolution, and of a value that is read
    without it as well."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.stem = nn.BatchNorm2d(3), nn.Conv2d(3, 6, 3)
        self.middle, self.conv = nn.BatchNorm2d(6), nn.Conv2d(6, 6, 1)
        self.last = nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.middle(F.relu(self.stem(self.first(x)))))
        return self.last(x) + x


BLOCKS = {
    "residual": Residual,
    "inverted": Inverted,
    "hard gate": lambda: Gated(nn.Hardswish, nn.Hardsigmoid),
    "gate": lambda: Gated(nn.SiLU, nn.Sigmoid),
    "branches": Branches,
    "shuffled": Shuffled,
    "dense": Dense,
    "norms": Norms,
}


class WithHead(nn.Module):
    def __init__(self, body: nn.Module, channels: int) -> None:
        super().__init__()
        self.body, self.last = body, nn.Conv2d(channels, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(self.last(self.body(x)), 1).flatten(1)


def network(name: str) -> nn.Module:
    body = BLOCKS[name]().eval()
    with torch.no_grad():
        channels = body(torch.zeros(1, 3, 8, 8)).shape[1]
    return WithHead(body.train(), channels)


def outputs(path, x: Tensor) -> Tensor:
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


@pytest.mark.parametrize("name", BLOCKS)
def test_every_convolution_runs_in_integers_and_at_any_size(name, quantized, images, tmp_path):
    qmodel = quantized(network(name), (4, 8))
    report = export_onnx(qmodel, tmp_path / "m.onnx", images)
    assert report.integer_convolutions == report.convolutions >= 3
    assert report.simulated == 0
    assert report.agreement.relative_error < 5e-3
    assert report.dynamic == ("batch", "height", "width")
    other = torch.randn(3, 3, 12, 10, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = qmodel(other)
    error = (
        outputs(tmp_path / "m.onnx", other) - expected
    ).square().sum() / expected.square().sum()
    assert error < 0.02


def test_values_named_in_float_edges_stay_float(quantized, images, tmp_path):
    qmodel = quantized(network("residual"))
    every = export_onnx(qmodel, tmp_path / "m.onnx", images)
    name = "body.relu_3"
    assert name in every.edges
    report = export_onnx(qmodel, tmp_path / "m.onnx", images, float_edges=[name])
    assert set(every.edges) - set(report.edges) >= {name}
    assert report.integer_convolutions == every.integer_convolutions  # its reader rounds it


def test_relu_becomes_part_of_a_range(quantized, images, tmp_path):
    export_onnx(quantized(network("residual")), tmp_path / "m.onnx", images)
    kinds = [node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node]
    assert not {"Relu", "Clip", "BatchNormalization"} & set(kinds)
    assert kinds.count("Conv") == 4


def test_a_dead_channel_keeps_its_bias(quantized, images, tmp_path):
    model = nn.Sequential(*conv_norm(3, 2, 1), nn.Flatten(2))
    qmodel = quantized(model, (4, 8))
    with torch.no_grad():
        qmodel[1].weight.copy_(torch.tensor([1.0, 0.0]))
        qmodel[1].bias.copy_(torch.tensor([0.5, 3.0]))
    report = export_onnx(qmodel, tmp_path / "m.onnx", images)
    assert report.integer_convolutions == 1
    dead = outputs(tmp_path / "m.onnx", images)[:, 1]
    level = max(high - low for low, high in report.edges.values()) / 255
    assert level < 0.06
    assert torch.allclose(dead, torch.tensor(3.0), atol=level / 2)


def test_activations_of_few_bits_are_simulated(quantized, images, tmp_path):
    report = export_onnx(quantized(network("residual"), (4, 4)), tmp_path / "m.onnx", images)
    assert (report.integer_convolutions, report.simulated, report.edges) == (0, 4, {})
    assert "simulated in float: 4 layers" in str(report)


class Detector(nn.Module):
    """Boxes in pixels beside scores from 0 to 1."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.box, self.score = conv_norm(3, 8), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return torch.cat([self.box(x).sigmoid() * 640, self.score(x).sigmoid()], 1)


def test_a_concatenation_keeps_its_small_part(quantized, images, tmp_path):
    qmodel = quantized(Detector(), (8, 8))
    report = export_onnx(qmodel, tmp_path / "model.onnx", images)
    assert report.integer_convolutions == report.convolutions == 3
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    (outputs,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        scores = qmodel(images)[:, 4:]
    error = (torch.from_numpy(outputs)[:, 4:] - scores).square().mean()
    assert error < 1e-3 * scores.var()


def test_the_range_of_the_images_is_that_of_the_calibration(quantized, images, tmp_path):
    qmodel = quantized(Residual(), (8, 8))
    bright = export_onnx(qmodel, tmp_path / "model.onnx", images.abs())
    assert bright.edges["x"] == export_onnx(qmodel, tmp_path / "other.onnx", images).edges["x"]
    assert bright.edges["x"][0] < 0


def test_a_norm_by_the_statistics_of_each_batch_stays_float(quantized, images, tmp_path):
    norm = nn.BatchNorm2d(6, track_running_stats=False)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), norm, nn.ReLU(), nn.Conv2d(6, 4, 1))
    report = export_onnx(quantized(model), tmp_path / "m.onnx", images)
    assert report.integer_convolutions == 2
    assert report.agreement.relative_error < 5e-3


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_paddings_of_values_that_are_there_move_integers(mode, quantized, images, tmp_path):
    padded = nn.Conv2d(6, 6, 3, padding=1, padding_mode=mode)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), padded, nn.ReLU(), nn.Conv2d(6, 4, 1))
    report = export_onnx(quantized(model), tmp_path / "m.onnx", images)
    assert (report.integer_convolutions, report.simulated) == (3, 0)
    assert report.agreement.relative_error < 5e-3


def test_each_call_of_a_layer_has_a_bias_on_levels_of_its_own(quantized, images, tmp_path):
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1)
            nn.init.constant_(self.conv.bias, 1.0)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.stem(x))
            return self.conv(F.relu(self.conv(10 * x))).mean((2, 3))

    report = export_onnx(quantized(Twice()), tmp_path / "m.onnx", images)
    assert report.integer_convolutions == report.convolutions == 3
    assert report.agreement.relative_error < 1e-3


def test_layers_without_a_bias_that_the_runtime_fuses_are_exact_at_4_bits(
    quantized, images, tmp_path
):
    convolutions = [nn.Conv2d(n, 6, 3, bias=False) for n in (3, 6, 6)]
    model = nn.Sequential(*(m for conv in convolutions for m in (conv, nn.ReLU())))
    qmodel = quantized(model, (4, 4))
    report = export_onnx(qmodel, tmp_path / "m.onnx", images)
    assert report.integer_convolutions + report.simulated == report.convolutions == 3
    with torch.no_grad():  # far beyond the ranges: levels are clipped to 4 bits
        difference = outputs(tmp_path / "m.onnx", 9 * images) - qmodel(9 * images)
    assert difference.abs().max() < 1e-5


def test_every_layer_and_every_norm_is_in_the_report(quantized, images, tmp_path):
    model = nn.Sequential(
        *(*conv_norm(3, 6), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6), nn.ReLU6()),
        *(nn.Conv2d(6, 6, 1), nn.Flatten(), nn.Linear(216, 5)),
    )
    bits = {"0": (32, 8), "3": (8, 32), "5": (32, 32), "7": (8, 8)}
    report = export_onnx(quantized(model, bits), tmp_path / "m.onnx", images)
    assert (report.convolutions, report.integer_convolutions) == (3, 0)
    assert (report.simulated, report.in_float) == (1, 2)
    assert (report.folded, report.kept) == (1, 0)
    assert "in float: 2 layers" in str(report)


@pytest.mark.parametrize("bias", [False, True])
def test_float_weights_stay_float_between_integers(bias, quantized, images, tmp_path):
    model = nn.Sequential(
        *(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3, bias=bias), nn.BatchNorm2d(6)),
        *(nn.ReLU(), nn.Conv2d(6, 4, 1), nn.Flatten()),
    )
    qmodel = quantized(model, {"0": (8, 8), "2": (32, 8), "5": (8, 8)})
    report = export_onnx(qmodel, tmp_path / "m.onnx", images)
    assert (report.convolutions, report.integer_convolutions) == (3, 2)
