import pytest
import torch

from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.parameters import apply_functionally
from ghnqat_sdk.quantization.convert import fake_quantized_layers, to_fake_quantized
from ghnqat_sdk.quantization.quantizers import FakeQuantizer
from ghnqat_sdk.training.datasets import load_images
from ghnqat_sdk.training.evaluate import (
    Statistic,
    _predicted_model,
    calibration_batches,
    evaluate_architecture,
    evaluate_graphs,
)
from ghnqat_sdk.training.objective import network_loss, prepare_network
from ghnqat_sdk.training.spaces import ArchitectureSpace, sample_architecture


def test_statistic_is_mean_standard_error_and_maximum():
    statistic = Statistic.of([10.0, 20.0, 30.0])
    assert (statistic.mean, statistic.max) == (20.0, 30.0)
    assert statistic.sem == pytest.approx(10 / 3**0.5)


@pytest.mark.parametrize("protocol", ["paper", "calibrated"])
def test_evaluation_gives_one_figure_for_each_graph(small, data, protocol):
    images = load_images(data, "test").sample(64, 0)
    nets = [a for a in map(ArchitectureSpace("val").__getitem__, range(20)) if a.macs < 2e6][:2]
    result = evaluate_graphs(
        small, nets, images, (4, 4), protocol=protocol, calibration=calibration_batches(data, 0, 64)
    )
    assert len(result.top1.graphs) == 2
    assert all(0 <= first <= fifth <= 100 for first, fifth in zip(result.top1.graphs, result.top5.graphs, strict=True))
    assert result.as_dict()["top1"].keys() == {"mean", "sem", "max", "graphs"}


@pytest.mark.parametrize("protocol", ["paper", "calibrated"])
def test_several_bit_widths_at_once_give_the_figures_of_each_alone(small, data, protocol):
    images, settings = load_images(data, "test").sample(64, 0), [(2, 2), (32, 32), (4, 8)]
    architecture = next(a for a in map(ArchitectureSpace("val").__getitem__, range(20)) if a.macs < 2e6)
    given = {"protocol": protocol, "calibration": calibration_batches(data, 0, 64)}
    together = evaluate_architecture(small, architecture, images, settings, **given)
    alone = [evaluate_graphs(small, [architecture], images, bits, **given) for bits in settings]
    assert together == [(result.top1.mean, result.top5.mean) for result in alone]


def test_a_hypernetwork_told_float_predicts_the_same_for_every_bit_width(small):
    network = prepare_network(sample_architecture("val", 1), (4, 4), small.config.ranges, 10)
    float_ = _predicted_model(small, network.at((32, 32)), (32, 32), "cpu")
    quantized = _predicted_model(small, network.at((4, 4)), (32, 32), "cpu")
    for name, layer in fake_quantized_layers(quantized).items():
        predicted = float_.get_submodule(name).weight
        rounded = FakeQuantizer(4, "weight", small.config.ranges)(predicted)
        torch.testing.assert_close(layer.weight.data, rounded.data, rtol=0, atol=0)


def test_functional_use_and_copied_parameters_give_the_same_logits(small):
    """Training and the SDK use a prediction in two ways; they agree."""
    architecture = sample_architecture("val", 1)
    network = prepare_network(architecture, (4, 4), small.config.ranges, 10)
    images = torch.randn(8, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        (predicted,) = small([network.graph])
        functional = apply_functionally(network.model, predicted, images)
        copied = _predicted_model(small, network, (4, 4), "cpu").eval()(images)
    torch.testing.assert_close(functional, copied, rtol=1e-4, atol=1e-4)


def test_the_gradient_of_a_prediction_is_that_of_the_models_own_parameters(small):
    torch.manual_seed(0)
    architecture = sample_architecture("val", 1)
    network = prepare_network(architecture, (4, 4), small.config.ranges, 10)
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8)
    (predicted,) = small([network.graph], channels_last=False)  # as the model has them: no bit may differ
    result = network_loss(network, predicted, images, labels)
    model = architecture.build(10)
    model.load_state_dict({name: tensor.detach() for name, tensor in predicted.items()}, strict=False)
    to_fake_quantized(model, (4, 4), small.config.ranges, warn=False)
    loss = torch.nn.functional.cross_entropy(model.eval()(images), labels)
    loss.backward()
    assert result.loss == pytest.approx(loss.item(), rel=1e-4)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(result.gradients[name], parameter.grad, rtol=1e-2, atol=1e-4)


def test_wrong_arguments_are_refused(small, data):
    images, nets = load_images(data, "test").sample(8, 0), [sample_architecture("val", 1)]
    with pytest.raises(ArgumentError, match="'paper' or 'calibrated'"):
        evaluate_graphs(small, nets, images, (4, 4), protocol="paperr")
    with pytest.raises(ArgumentError, match="calibration="):
        evaluate_graphs(small, nets, images, (4, 4), protocol="calibrated")
    with pytest.raises(ArgumentError, match="no architectures"):
        evaluate_graphs(small, [], images, (4, 4))
