"""Every classifier of torchvision is traced, with every parameter claimed; small ones run with
predicted parameters."""

import warnings

import pytest
import torch
import torchvision
from torch import nn

import ghnqat_sdk as gq

CLASSIFIERS = torchvision.models.list_models(module=torchvision.models)
SMALL = (
    "resnet18",
    "googlenet",
    "mobilenet_v3_small",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "regnet_y_400mf",
)


def build(name: str, **options) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # googlenet and inception_v3 announce a change of their initialization
        return torchvision.models.get_model(name, weights=None, **options)


@pytest.fixture
def weightless(monkeypatch):
    """Layers get parameters without memory; what a constructor computes with stays real."""
    empty = torch.empty
    monkeypatch.setattr(
        torch, "empty", lambda *args, **options: empty(*args, **options | {"device": "meta"})
    )


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_parameter_of_every_classifier_is_claimed(name, weightless):
    model = build(name)
    graph = gq.trace(model)
    assert graph.unreached == {}
    assert {n: p.shape for n, p in graph.parameters.items()} == {
        n: p.shape for n, p in model.named_parameters()
    }
    assert "classifier" in {node.op for node in graph.nodes}


def test_there_are_eighty_classifiers():
    assert len(CLASSIFIERS) >= 80


@pytest.mark.parametrize("name", SMALL)
def test_predicted_classifiers_are_finite_and_trainable(name):
    torch.manual_seed(0)
    qmodel = gq.predict_quantized_params(build(name, num_classes=10), (4, 4))
    report = gq.prediction_report(qmodel)
    assert set(report.predicted) == {n for n, _ in qmodel.named_parameters()}
    assert report.kept == {}

    images = torch.randn(2, 3, 96, 96)
    outputs = qmodel.train()(images)
    sum(
        output.square().mean() for output in (outputs if isinstance(outputs, tuple) else (outputs,))
    ).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in qmodel.parameters())
    gq.calibrate(qmodel, [images])
    assert qmodel.eval()(images).isfinite().all()


@pytest.mark.parametrize(
    "name", ["deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large", "fcn_resnet50"]
)
def test_segmentation_models_are_claimed_in_whole(name, weightless):
    model = torchvision.models.get_model(name, weights=None, weights_backbone=None)
    graph = gq.trace(model)
    assert graph.unreached == {}
    assert set(graph.parameters) == {n for n, _ in model.named_parameters()}


@pytest.mark.parametrize("name", ["resnet", "mobilenet"])
def test_detection_backbones_are_predicted_in_whole(small, name):
    utils = torchvision.models.detection.backbone_utils
    if name == "resnet":  # with FrozenBatchNorm2d, and the first layers frozen
        backbone = utils.resnet_fpn_backbone(
            backbone_name="resnet18", weights=None, trainable_layers=3
        )
    else:
        mobilenet = torchvision.models.mobilenet_v3_small(weights=None)
        backbone = utils._mobilenet_extractor(mobilenet, fpn=True, trainable_layers=6)
    qmodel = gq.predict_quantized_params(backbone, hypernetwork=small)
    report = gq.prediction_report(qmodel)
    assert set(report.predicted) == {n for n, _ in backbone.named_parameters()}
    features = qmodel.train()(torch.randn(2, 3, 64, 64))
    assert all(level.isfinite().all() for level in features.values())
    sum(level.mean() for level in features.values()).backward()
    gq.calibrate(qmodel, [torch.randn(8, 3, 64, 64)])
    assert all(
        level.isfinite().all() for level in qmodel.eval()(torch.randn(1, 3, 64, 64)).values()
    )


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "mobilenet_v2",
        "densenet121",
        "efficientnet_b0",
        "vgg11_bn",
        "googlenet",
        "convnext_tiny",
    ],
)
def test_torchvision_models_are_predicted_in_full(small, name, weightless):
    model = build(name, num_classes=10)
    graph = gq.trace(model)
    names = {n for n, _ in model.named_parameters()}
    assert graph.unreached == {}
    assert set(graph.parameters) == names
    (predicted,) = small([graph.with_bits((4, 4))])
    assert {n: t.shape for n, t in predicted.items()} == {
        n: p.shape for n, p in model.named_parameters()
    }


def test_googlenet_with_auxiliary_heads_runs_in_training(small):
    model = build("googlenet", num_classes=10, init_weights=False)
    qmodel = gq.predict_quantized_params(model, hypernetwork=small)
    assert gq.prediction_report(qmodel).kept == {}
    outputs = qmodel.train()(torch.randn(2, 3, 96, 96))
    assert all(logits.isfinite().all() for logits in outputs)
