"""Range rules and roundings of a user's own: they work, are saved by name, and load again."""

import json
import sys

import pytest
import rules_of_users
import torch
from torch import nn

from ghnqat_sdk import load_pretrained, predict_quantized_params, save_pretrained
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.hypernetwork.ghn import GraphHypernetwork, HypernetworkConfig
from ghnqat_sdk.quantization.calibrate import calibrate
from ghnqat_sdk.quantization.convert import from_float
from ghnqat_sdk.quantization.lookup import fake_quantized_layers
from ghnqat_sdk.quantization.ranges import ClippedRanges, CustomRanges, MinMaxRanges
from ghnqat_sdk.quantization.report import quantization_report
from ghnqat_sdk.quantization.roundings import CustomRounding, NearestRounding, NoiseRounding
from ghnqat_sdk.quantization.store import load_quantized, save_quantized

IMAGES = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
QUANTILES = CustomRanges(factory=rules_of_users.Quantiles, settings={"share": 0.1})
DOWN = CustomRounding(factory="rules_of_users.Down")


def cnn() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))


def test_a_range_rule_of_ones_own_says_where_values_are_clipped():
    layer = from_float(cnn(), ranges=QUANTILES)[0]
    low, high = torch.quantile(layer.weight.detach().flatten(), torch.tensor([0.1, 0.9])).tolist()
    levels = layer.weight_quantizer(layer.weight)
    step = (high - low) / 15
    assert levels.max().item() == pytest.approx(high, abs=step)
    assert levels.min().item() == pytest.approx(low, abs=step)
    assert levels.max() < layer.weight.max() - step


def test_a_rounding_of_ones_own_says_to_which_level_a_value_comes():
    layer = from_float(cnn(), (4, 4), ranges="min-max", rounding=DOWN)[0]
    weight, levels = layer.weight, layer.weight_quantizer(layer.weight)
    step = (weight.max() - weight.min()).item() / 15
    assert levels.unique().numel() <= 16
    assert (weight - levels).min() > -1e-6
    assert (weight - levels).max().item() == pytest.approx(step, rel=0.2)
    layer(IMAGES).sum().backward()
    assert layer.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "rules",
    [{"ranges": QUANTILES}, {"rounding": DOWN}, {"ranges": QUANTILES, "rounding": DOWN}],
    ids=["ranges", "rounding", "both"],
)
def test_rules_of_ones_own_are_saved_and_loaded_by_name(rules, tmp_path):
    qmodel = from_float(cnn(), **rules)
    calibrate(qmodel, [IMAGES])
    loaded = load_quantized(cnn(), save_quantized(qmodel, tmp_path)).eval()
    assert torch.equal(loaded(IMAGES), qmodel.eval()(IMAGES))
    assert not torch.equal(loaded(IMAGES), load_plain(qmodel)(IMAGES))
    saved = json.loads((tmp_path / "quantization.json").read_text())
    for name, rule in rules.items():
        assert saved[name]["factory"] == f"rules_of_users.{rule.factory.split('.')[1]}"


def load_plain(qmodel: nn.Module) -> nn.Module:
    """A model of the same values with the package's rules."""
    plain = from_float(cnn())
    plain.load_state_dict(qmodel.state_dict())
    calibrate(plain, [IMAGES])
    return plain.eval()


def test_parts_with_different_rules_keep_theirs(tmp_path):
    one = from_float(nn.Conv2d(3, 4, 3), ranges=QUANTILES)
    two = from_float(nn.Conv2d(4, 5, 3), ranges="min-max", rounding=DOWN)
    whole = nn.Sequential(one, two)
    calibrate(whole, [IMAGES])
    floats = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3))
    loaded = load_quantized(floats, save_quantized(whole, tmp_path))
    assert torch.equal(loaded.eval()(IMAGES), whole.eval()(IMAGES))
    assert loaded[0].weight_quantizer.ranges == QUANTILES
    assert loaded[1].weight_quantizer.ranges == MinMaxRanges()
    assert loaded[1].input_quantizer.rounding == DOWN


def transposed() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.ConvTranspose2d(3, 4, 3), nn.Conv2d(4, 5, 3))


@pytest.mark.parametrize("rule", [rules_of_users.Quantiles, rules_of_users.QuantilesOfRows])
def test_a_transposed_convolution_has_a_rule_of_ones_own_that_a_file_can_name(rule, tmp_path):
    qmodel = from_float(transposed(), ranges=CustomRanges(factory=rule, settings={"share": 0.1}))
    weight = qmodel[0].weight_quantizer
    assert weight.range_of(qmodel[0].weight)[0].ndim == 0
    calibrate(qmodel, [IMAGES])
    loaded = load_quantized(transposed(), save_quantized(qmodel, tmp_path))
    assert loaded[0].weight_quantizer.ranges == weight.ranges == weight.ranges.tensorwise()
    assert torch.equal(loaded.eval()(IMAGES), qmodel.eval()(IMAGES))


def test_an_input_that_rounds_otherwise_than_its_weight_does_so_in_the_loaded_model(tmp_path):
    qmodel = from_float(cnn(), (32, 8), rounding="noise")
    calibrate(qmodel, [IMAGES])
    for layer in fake_quantized_layers(qmodel).values():
        layer.input_quantizer.rounding = NearestRounding()
    loaded = load_quantized(cnn(), save_quantized(qmodel, tmp_path))
    assert loaded[0].input_quantizer.rounding == NearestRounding()
    assert loaded[0].weight_quantizer.rounding == NoiseRounding()
    assert torch.equal(loaded.eval()(IMAGES), qmodel.eval()(IMAGES))


def test_files_that_say_no_rules_of_inputs_are_read(tmp_path):
    save_quantized(from_float(cnn(), rounding="noise"), tmp_path)
    file = tmp_path / "quantization.json"
    older = json.loads(file.read_text())
    for layer in older["layers"].values():
        del layer["input_rules"]
    file.write_text(json.dumps(older))
    assert load_quantized(cnn(), tmp_path)[0].input_quantizer.rounding == NoiseRounding()


@pytest.mark.parametrize("make", [cnn, transposed])
def test_a_saved_model_imports_nothing_and_says_what_to_import(make, tmp_path, monkeypatch):
    save_quantized(from_float(make(), ranges=QUANTILES), tmp_path)
    monkeypatch.delitem(sys.modules, "rules_of_users")
    with pytest.raises(ArgumentError, match="write `import rules_of_users` first"):
        load_quantized(make(), tmp_path)
    assert "rules_of_users" not in sys.modules


def test_an_object_works_and_a_file_asks_for_its_name(tmp_path):
    qmodel = from_float(cnn(), ranges=rules_of_users.Quantiles(0.1))
    assert torch.equal(qmodel.train()(IMAGES), from_float(cnn(), ranges=QUANTILES)(IMAGES))
    with pytest.raises(ArgumentError, match=r"ranges=CustomRanges\(factory=Quantiles, settings"):
        save_quantized(qmodel, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_report_measures_the_rounding_that_the_model_has():
    down = from_float(cnn(), rounding=DOWN)
    nearest = from_float(cnn())
    reports = [quantization_report(model, IMAGES).layers[0].weight for model in (down, nearest)]
    assert reports[0].sqnr < reports[1].sqnr - 3


def test_a_hypernetwork_keeps_the_rule_that_it_was_trained_with(tmp_path, monkeypatch):
    save_pretrained(GraphHypernetwork(HypernetworkConfig(ranges=QUANTILES)), tmp_path)
    loaded = load_pretrained(tmp_path)
    assert loaded.config.ranges == QUANTILES
    layers = fake_quantized_layers(predict_quantized_params(cnn(), hypernetwork=loaded))
    assert all(layer.input_quantizer.ranges == QUANTILES for layer in layers.values())
    monkeypatch.delitem(sys.modules, "rules_of_users")
    with pytest.raises(ArgumentError, match="write `import rules_of_users` first"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ({"ranges": "min-max"}, MinMaxRanges()),
        ({"ranges": ClippedRanges(weight_sigmas={4: 2.0})}, ClippedRanges(weight_sigmas={4: 2.0})),
        ({"rounding": "nearest"}, NearestRounding()),
        ({"rounding": "noise"}, NoiseRounding()),
    ],
)
def test_rules_of_the_package_are_given_by_name_or_object(given, rule):
    quantizer = from_float(cnn(), **given)[0].weight_quantizer
    assert getattr(quantizer, next(iter(given))) == rule


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"ranges": 5}, r"ranges=5 is no RangeRule object. Write ranges=ClippedRanges\(\)"),
        ({"ranges": "no-such"}, "ranges=no-such is no RangeRule"),
        ({"ranges": MinMaxRanges}, "MinMaxRanges'> is no RangeRule object"),
        ({"ranges": DOWN}, "is no RangeRule object"),
        ({"ranges": CustomRanges(factory="os.system")}, "no class 'system' that is a RangeRule"),
        ({"rounding": True}, 'rounding=True is no RoundingRule object. Write rounding="nearest"'),
        ({"rounding": "clipped"}, "rounding=clipped is no RoundingRule"),
        (
            {"rounding": CustomRounding(factory=rules_of_users.Down, settings={"by": 1})},
            "rules_of_users.Down cannot be made",
        ),
    ],
)
def test_what_is_no_rule_is_refused_and_the_model_left_alone(given, reason):
    model = cnn()
    with pytest.raises(ArgumentError, match=reason):
        from_float(model, inplace=True, **given)
    assert not fake_quantized_layers(model)


@pytest.mark.parametrize(
    ("noise", "rounding"), [(False, NearestRounding()), (True, NoiseRounding())]
)
def test_files_with_the_switch_of_old_are_read(noise, rounding, tmp_path):
    save_quantized(from_float(cnn()), tmp_path)
    file = tmp_path / "quantization.json"
    older = json.loads(file.read_text())
    del older["rounding"]
    file.write_text(json.dumps(older | {"noise": noise}))
    assert load_quantized(cnn(), tmp_path)[0].weight_quantizer.rounding == rounding
