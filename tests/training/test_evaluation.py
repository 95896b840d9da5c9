import pytest
import torch
from module_route import images as drawn_images
from toys import Toy, Toys

from ghnqat_sdk.data import ImageSet, load_images
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.quantization.lookup import fake_quantized_layers
from ghnqat_sdk.quantization.quantizers import FakeQuantizer
from ghnqat_sdk.training.compute import ComputeConfig, Setting
from ghnqat_sdk.training.evaluation import (
    Statistic,
    _predicted_model,
    calibration_batches,
    evaluate_architecture,
    evaluate_graphs,
    evaluated_network,
)
from ghnqat_sdk.training.prepared import prepare_network
from ghnqat_sdk.training.spaces.families import Families

protocols = pytest.mark.parametrize("protocol", ["paper", "calibrated"])


@pytest.fixture
def shown(data) -> ImageSet:
    return load_images(data, "test").sample(64, 0)


def test_statistic_is_mean_standard_error_and_maximum():
    statistic = Statistic.of([10.0, 20.0, 30.0])
    assert (statistic.mean, statistic.max) == (20.0, 30.0)
    assert statistic.sem == pytest.approx(10 / 3**0.5)
    assert str(statistic) == "20.0 ± 5.8; 30.0"
    assert Statistic.of([4.0]).sem == 0


@protocols
def test_evaluation_gives_one_figure_for_each_graph(small, data, shown, protocol):
    networks = [Toys("val")[index] for index in (0, 2)] + [Families("val")[1]]
    calibration = calibration_batches(data, 0, 64)
    result = evaluate_graphs(
        small, networks, shown, (4, 4), protocol=protocol, calibration=calibration
    )
    assert len(result.top1.graphs) == 3
    pairs = zip(result.top1.graphs, result.top5.graphs, strict=True)
    assert all(0 <= first <= fifth <= 100 for first, fifth in pairs)
    assert result.as_dict()["top1"].keys() == {"mean", "sem", "max", "graphs"}


@protocols
def test_several_bit_widths_at_once_give_the_figures_of_each_alone(small, data, shown, protocol):
    settings, architecture = [(2, 2), (32, 32), (4, 8)], Toy("val", 1)
    given = {"protocol": protocol, "calibration": calibration_batches(data, 0, 64)}
    together = evaluate_architecture(small, architecture, shown, settings, **given)
    alone = [evaluate_graphs(small, [architecture], shown, b, **given) for b in settings]
    assert together == [(result.top1.mean, result.top5.mean) for result in alone]


def test_calibration_batches_are_training_images_the_same_for_the_same_seed(data):
    one, again, other = (calibration_batches(data, seed, 100) for seed in (0, 0, 1))
    assert [tuple(batch.shape) for batch in one] == [(64, 3, 32, 32), (36, 3, 32, 32)]
    assert torch.equal(one[0], again[0])
    assert not torch.equal(one[0], other[0])


def test_a_hypernetwork_told_float_predicts_the_same_for_every_bit_width(small):
    network = evaluated_network(Toy("val", 1), (4, 4), small.config.ranges, 10)
    float_ = _predicted_model(small, network.at((32, 32)), (32, 32), "cpu")
    quantized = _predicted_model(small, network.at((4, 4)), (32, 32), "cpu")
    layers = fake_quantized_layers(quantized)
    assert len(layers) == 4
    for name, layer in layers.items():
        predicted = float_.get_submodule(name).weight
        rounded = FakeQuantizer(4, "weight", small.config.ranges)(predicted)
        torch.testing.assert_close(layer.weight.data, rounded.data, rtol=0, atol=0)


def test_a_hypernetwork_is_told_the_bits_of_each_setting_or_others(small, shown, monkeypatch):
    told, forward = [], small.forward

    def noted(graphs):
        told.extend({node.bits for graph in graphs for node in graph.nodes})
        return forward(graphs)

    monkeypatch.setattr(small, "forward", noted)
    settings = [(4, 4), (2, 8)]
    evaluate_architecture(small, Toy("val", 0), shown, settings)
    assert told == settings
    evaluate_architecture(small, Toy("val", 0), shown, settings, told=(32, 32))
    assert told[2:] == [(32, 32), (32, 32)]


@torch.no_grad()
@pytest.mark.parametrize(
    "architecture", [Toy("val", 1), Toy("val", 2), Families("val")[30]], ids=str
)
def test_training_evaluation_and_functional_use_give_the_same_scores(small, architecture):
    """A prediction is used in three ways: by plans, by copied models, and functionally."""
    network = evaluated_network(architecture, (32, 32), small.config.ranges, 10)
    images = drawn_images(8)
    (predicted,) = small([network.graph])
    functional = torch.func.functional_call(network.model, predicted, images)
    copied = _predicted_model(small, network, (32, 32), "cpu").eval()(images)
    how = Setting((32, 32), small.config.ranges, compute=ComputeConfig(dense="float32"))
    planned, _ = prepare_network(architecture, 10).plan.run(predicted, images, how)
    for scores in (copied, planned):
        torch.testing.assert_close(scores, functional, rtol=1e-3, atol=1e-3)


def test_wrong_arguments_are_refused(small, shown):
    networks = [Toy("val", 1)]
    with pytest.raises(ArgumentError, match="'paper' or 'calibrated'"):
        evaluate_graphs(small, networks, shown, (4, 4), protocol="paperr")
    with pytest.raises(ArgumentError, match="calibration="):
        evaluate_graphs(small, networks, shown, (4, 4), protocol="calibrated")
    with pytest.raises(ArgumentError, match="no architectures"):
        evaluate_graphs(small, [], shown, (4, 4))


def shown_of_another_number_of_classes_are_refused(small, shown):
    few = ImageSet(shown.images, shown.labels % 2, ("cat", "dog"))
    with pytest.raises(ArgumentError, match=r"of 2 classes.*tell 10"):
        evaluate_graphs(small, [Toy("val", 1)], few, (4, 4))
