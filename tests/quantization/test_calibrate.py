import pytest
import torch
from to_calibrate import make
from torch import nn

from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.quantization.calibrate import calibrate
from ghnqat_sdk.quantization.convert import to_fake_quantized
from ghnqat_sdk.quantization.functional import fake_quantize
from ghnqat_sdk.quantization.ranges import ClippedRanges, MinMaxRanges


def test_evaluation_after_calibration_does_not_depend_on_the_batch(images):
    model = make()
    calibrate(model, [images])
    model.eval()
    alone = torch.cat([model(image[None]) for image in images[:16]])
    torch.testing.assert_close(model(images[:16]), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1, 10, 100, 256])
def test_calibration_does_not_depend_on_the_batch_size(images, size):
    reference, other = make(ranges=ClippedRanges()), make(ranges=ClippedRanges())
    a = calibrate(reference, images.split(64))
    b = calibrate(other, images.split(size))
    assert a == b
    for x, y in zip(reference.buffers(), other.buffers(), strict=True):
        assert torch.equal(x, y)


def test_statistics_are_those_of_all_values_as_they_are_quantized_afterwards(images):
    model = make()
    calibrate(model, [images])
    seen = model.eval()[0](images)
    variance, mean = torch.var_mean(seen, (0, 2, 3), correction=0)
    torch.testing.assert_close(model[1].running_mean, mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model[1].running_var, variance, rtol=1e-4, atol=1e-4)


def squeezing(bits) -> nn.Module:
    """A norm whose input is one value of each image: its batch statistics differ most."""
    torch.manual_seed(0)
    middle = [nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6), nn.ReLU()]
    last = [nn.Conv2d(6, 8, 1), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 5)]
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), *middle, *last)
    to_fake_quantized(model, bits, MinMaxRanges(), warn=False)
    return model


@pytest.mark.parametrize("bits", [(32, 32), (8, 8), (4, 4)])
def test_evaluation_of_the_images_is_that_with_batch_statistics(images, bits):
    model = squeezing(bits).eval()
    expected = model(images)
    calibrate(model, images.split(50), method="min-max")
    assert (model(images) - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.parametrize("method", ["auto", "mean", "min-max", "percentile", "mse"])
def test_evaluation_of_the_images_is_what_calibration_saw(images, method):
    model, seen = squeezing((4, 4)), []
    handle = model.register_forward_hook(lambda *called: seen.append(called[-1]))
    calibrate(model, [images], method=method)
    handle.remove()
    assert (model.eval()(images) - seen[-1]).norm() < 1e-4 * seen[-1].norm()


def test_ranges_are_frozen_and_reported_by_layer(images):
    model = make()
    report = calibrate(model, [images])
    assert set(report.ranges) == {"0", "3", "6"}
    assert report.norms == ("1", "4")
    assert report.images == 256
    assert report.unreached == ()
    assert model[3].input_quantizer.frozen_range == report.ranges["3"]
    low, high = report.ranges["0"]
    assert images.min() <= low < high <= images.max()


def test_ranges_clip_at_few_bits_and_not_at_eight_what_few_images_have(images):
    images[0, 0, 0, 0] = 1000.0
    highs = {
        (method, bits): calibrate(make((4, bits)), [images], method=method).ranges["0"][1]
        for method in ("auto", "mean")
        for bits in (4, 8)
    }
    assert highs["auto", 8] == 1000.0
    assert 250 < highs["auto", 4] == highs["mean", 4] == highs["mean", 8] < 270


def test_at_eight_bits_calls_of_a_shared_layer_share_the_mean_of_their_widest_ranges(images):
    model = nn.ModuleDict({"shared": nn.Conv2d(3, 5, 3)})
    model.forward = lambda x: model["shared"](x) + model["shared"](100 * x)
    to_fake_quantized(model, (8, 8), ClippedRanges())
    low, high = calibrate(model, [images]).ranges["shared"]
    assert low == pytest.approx(50.5 * images.min().item())
    assert high == pytest.approx(50.5 * images.max().item())


def test_min_max_ranges_are_the_extremes_of_all_images(images):
    report = calibrate(make(ranges=ClippedRanges()), [images], method="min-max")
    assert report.ranges["0"] == (images.min().item(), images.max().item())


def test_percentile_ranges_leave_out_a_share_on_each_side(images):
    report = calibrate(make(), [images], method="percentile", percentile=95)
    low, high = report.ranges["0"]
    assert (images < low).float().mean().item() == pytest.approx(0.05, abs=0.005)
    assert (images > high).float().mean().item() == pytest.approx(0.05, abs=0.005)
    whole = calibrate(make(), [images], method="percentile", percentile=100)
    assert whole.ranges["0"] == pytest.approx((images.min().item(), images.max().item()))


@pytest.mark.parametrize("bits", [2, 4])
def test_mse_ranges_quantize_better_than_any_other(images, bits):
    def error(low: float, high: float) -> float:
        return (fake_quantize(images, low, high, bits) - images).square().mean().item()

    reports = {
        m: calibrate(make((4, bits)), [images], method=m)
        for m in ("mse", "min-max", "percentile", "mean")
    }
    errors = {method: error(*report.ranges["0"]) for method, report in reports.items()}
    assert errors["mse"] == min(errors.values())
    assert errors["mse"] < 0.9 * errors["min-max"]
    grid = torch.linspace(0.1, 1.0, 19).tolist()
    low, high = reports["min-max"].ranges["0"]
    assert errors["mse"] < 1.03 * min(error(a * low, b * high) for a in grid for b in grid)


@pytest.mark.parametrize("method", ["min-max", "percentile", "mse"])
@pytest.mark.parametrize("size", [1, 100])
def test_every_method_gives_the_same_for_every_batch_size(images, method, size):
    assert calibrate(make(), images.split(size), method=method) == calibrate(
        make(), [images], method=method
    )


def test_constant_inputs_have_a_range(images):
    for method in ("auto", "mean", "min-max", "percentile", "mse"):
        model = make()
        calibrate(model, [torch.full_like(images, 2.0)], method=method)
        assert model.eval()(images).isfinite().all()


def test_report_is_a_table_of_layers(images):
    text = str(calibrate(make(), [images], method="mse"))
    assert "256 images, 2 batch norms, ranges by 'mse'" in text
    assert (
        len([line for line in text.splitlines() if "4 bits" in line and "zero point" in line]) == 3
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_images_that_are_not_finite_are_refused(images, value):
    model = make()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    images[5, 0, 0, 0] = value
    with pytest.raises(ArgumentError, match="'0' was not finite"):
        calibrate(model, [images])
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert model[0].input_quantizer.frozen_range is None


WRONG = [
    {"method": "median"},
    {"method": None},
    {"percentile": 50},
    {"percentile": 101},
    {"percentile": "all"},
    {"percentile": 99.0},
    {"method": "mse", "percentile": 99.9},
]


@pytest.mark.parametrize("arguments", WRONG)
def test_unknown_methods_are_refused(images, arguments):
    with pytest.raises(ArgumentError, match="Write"):
        calibrate(make(), [images], **arguments)


def test_loaders_that_give_images_and_labels_are_taken(images):
    dataset = torch.utils.data.TensorDataset(images, torch.zeros(256))
    assert calibrate(make(), torch.utils.data.DataLoader(dataset, 32)).images == 256


def test_float_activations_need_no_range(images):
    assert calibrate(make(bits=(4, 32)), [images]).ranges == {}


def test_modes_and_gradients_stay(images):
    model = make().train()
    model[1].eval()
    calibrate(model, [images])
    assert [m.training for m in model[:3]] == [True, False, True]
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_a_model_that_raises_is_left_as_it_was(images):
    model = make().train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with pytest.raises(ArgumentError, match="could not be run on a batch of shape"):
        calibrate(model, [images[:, :2]])
    assert model.training
    assert not model[0].quantization.calibrated
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert not model[1]._forward_pre_hooks


def test_calibrating_again_replaces_what_was_fixed(images):
    once, twice = make(), make()
    calibrate(twice, [images * 100])
    assert calibrate(once, [images]) == calibrate(twice, [images])


def test_layers_that_no_image_reaches_are_named(images):
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.main, self.auxiliary, self.norm = (
                nn.Conv2d(3, 4, 3),
                nn.Linear(4, 2),
                nn.BatchNorm1d(2),
            )

        def forward(self, x):
            return (
                (self.main(x), self.norm(self.auxiliary(x.mean((2, 3)))))
                if self.training
                else self.main(x)
            )

    model = Auxiliary()
    to_fake_quantized(model, (4, 4), MinMaxRanges())
    assert set(calibrate(model, [images]).unreached) == {"auxiliary", "norm"}


@pytest.mark.parametrize("batches", [[], [["not", "a", "tensor"]], [3]])
def test_wrong_batches_are_refused(batches):
    with pytest.raises(ArgumentError, match="calibrate got"):
        calibrate(make(), batches)


def test_a_float_model_is_refused(images):
    with pytest.raises(ArgumentError, match="predict_quantized_params"):
        calibrate(nn.Sequential(nn.Conv2d(3, 4, 3)), [images])
