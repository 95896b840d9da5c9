"""A user's program. `mypy --strict` must know the types that it names; `test_package.py` runs
it."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn
from typing_extensions import assert_type

import ghnqat_sdk as gq
from ghnqat_sdk.data import ImageSet
from ghnqat_sdk.prediction import PredictionReport
from ghnqat_sdk.quantization.calibration_report import CalibrationReport
from ghnqat_sdk.quantization.report import QuantizationReport
from ghnqat_sdk.search.ranked import Ranking
from ghnqat_sdk.search.suggestion import BitsSuggestion


def network() -> nn.Sequential:
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), head)


def predict(images: Tensor, folder: Path) -> nn.Module:
    graph = gq.trace(network())
    assert_type(graph, gq.ComputationGraph)
    assert_type(graph.nodes[1].op, str)
    assert_type(graph.with_bits((4, 4)), gq.ComputationGraph)

    qmodel = gq.predict_quantized_params(network(), bits=(4, 4), calibration=[images])
    assert_type(qmodel, nn.Module)
    assert_type(gq.prediction_report(qmodel), PredictionReport)
    assert_type(gq.prediction_report(qmodel).predicted, tuple[str, ...])
    assert_type(gq.calibrate(qmodel, [images], progress=False), CalibrationReport)
    assert_type(gq.quantization_report(qmodel, images), QuantizationReport)
    assert_type(gq.suggest_bits(network(), images, weight_bytes=250), BitsSuggestion)

    labelled = ImageSet(images.mul(50).clamp(0, 255).byte(), torch.arange(8) % 2, ("cat", "dog"))
    ranked = gq.rank_architectures([("small", network())], (4, 4), labelled, progress=False)
    assert_type(ranked, Ranking)

    assert_type(gq.save_quantized(qmodel, folder / "model"), Path)
    loaded = gq.load_quantized(network(), folder / "model")
    assert_type(gq.to_float(loaded), nn.Module)
    assert_type(gq.from_float(network(), bits=(4, 4)), nn.Module)
    return qmodel


def train(qmodel: nn.Module, images: Tensor) -> None:
    steps = gq.qat.learn_steps(qmodel)
    assert_type(steps, list[nn.Parameter])
    assert_type(gq.qat.oscillation_loss(qmodel), Tensor)
    assert_type(gq.qat.freeze_batch_norm(gq.qat.fix_steps(qmodel)), nn.Module)


def publish(folder: Path) -> None:
    hypernetwork = gq.load_pretrained()
    assert_type(hypernetwork, gq.GraphHypernetwork)
    assert_type(hypernetwork.config, gq.HypernetworkConfig)
    assert_type(hypernetwork.config.num_classes, int)
    assert_type(gq.GraphHypernetwork(gq.HypernetworkConfig(num_classes=100)), gq.GraphHypernetwork)
    assert_type(gq.save_pretrained(hypernetwork, folder / "ghn"), Path)
    try:
        assert_type(gq.push_to_hub(hypernetwork, "no owner"), str)
    except gq.ArgumentError as error:
        assert_type(error, gq.ArgumentError)


def misspell() -> None:
    try:
        gq.predict_quantised_params  # type: ignore[attr-defined]  # noqa: B018
    except AttributeError as error:
        print(error)


def main() -> None:
    images = torch.randn(8, 3, 16, 16)
    with TemporaryDirectory() as folder:
        qmodel = predict(images, Path(folder))
        publish(Path(folder))
    train(qmodel, images)
    misspell()
    print(tuple(qmodel(images).shape))


if __name__ == "__main__":
    main()
