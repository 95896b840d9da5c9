import copy
import functools
import math

import pytest
import torch
from torch import Tensor, nn

import ghnqat_sdk as gq
from ghnqat_sdk.data import load_images


def cnn(classes: int, bias: bool = True) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3, groups=12),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, classes, bias=bias),
    )


def convolutional(classes: int, after: list[nn.Module]) -> nn.Module:
    body = [nn.Conv2d(3, 12, 3, stride=2), nn.ReLU(), nn.Conv2d(12, classes, 1)]
    return nn.Sequential(*body, *after, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def colours(per_class: list[int], seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Batches of noisy images, brighter in the channel of their class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(per_class)).repeat_interleave(torch.tensor(per_class))
    labels = labels[torch.randperm(len(labels), generator=generator)]
    images = torch.randn(len(labels), 3, 8, 8, generator=generator)
    images += 1.5 * nn.functional.one_hot(labels % 3, 3)[:, :, None, None]
    images[labels >= 3] *= -1
    return list(zip(images.split(32), labels.split(32), strict=True))


def accuracy(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> float:
    model.eval()
    hits = [model(images).argmax(1) == labels for images, labels in batches]
    return 100 * torch.cat(hits).double().mean().item()


def calibrated(model: nn.Module, bits: tuple[int, int] = (4, 4)) -> nn.Module:
    torch.manual_seed(0)
    qmodel = gq.from_float(model, bits)
    gq.calibrate(qmodel, colours([100] * 6), progress=False)
    return qmodel


@pytest.fixture(autouse=True)
def same_models() -> None:
    torch.manual_seed(0)


def state(model: nn.Module) -> list[Tensor]:
    return [tensor.clone() for tensor in model.state_dict().values()]


@pytest.mark.parametrize("classes", [2, 3, 6])
@pytest.mark.parametrize(("bits", "least"), [((2, 4), 60), ((4, 4), 85), ((32, 32), 90)])
def test_a_fitted_head_tells_any_number_of_classes_apart(classes, bits, least):
    qmodel = calibrated(cnn(classes), bits)
    report = gq.fit_head(qmodel, colours([60] * classes))
    unseen = colours([60] * classes, seed=1)
    assert accuracy(qmodel, unseen) > least
    assert abs(report.accuracy - accuracy(qmodel, unseen)) < 12
    (head,) = report.heads
    assert (head.layer, head.classes) == ("7", classes)
    assert (head.images, head.held_out) == (60 * classes, 12 * classes)


def test_only_the_classifier_changes_and_modes_and_rng_stay():
    qmodel = calibrated(cnn(3)).train()
    before, rng = dict(zip(qmodel.state_dict(), state(qmodel), strict=True)), torch.get_rng_state()
    ranges = qmodel[7].input_quantizer.frozen_range
    gq.fit_head(qmodel, colours([20] * 3))
    changed = [n for n, x in qmodel.state_dict().items() if not torch.equal(x, before[n])]
    assert changed == ["7.weight", "7.bias"]
    assert all(module.training for module in qmodel.modules())
    assert torch.equal(rng, torch.get_rng_state())
    assert qmodel[7].input_quantizer.frozen_range == ranges
    assert not qmodel[7]._forward_pre_hooks


def test_a_model_that_is_not_calibrated_is_fitted_with_batch_statistics_and_stays_so():
    torch.manual_seed(0)
    qmodel = gq.from_float(cnn(3))
    gq.fit_head(qmodel, colours([60] * 3))
    assert not qmodel[7].quantization.calibrated
    with pytest.warns(gq.UncalibratedWarning):
        assert accuracy(qmodel, colours([60] * 3, seed=1)) > 90


def test_a_head_without_a_bias_is_fitted():
    qmodel = calibrated(cnn(3, bias=False))
    gq.fit_head(qmodel, colours([60] * 3))
    assert accuracy(qmodel, colours([60] * 3, seed=1)) > 80


@pytest.mark.parametrize("after", [[], [nn.ReLU()]], ids=["plain", "relu"])
def test_a_convolution_before_the_pooling_is_fitted_and_a_relu_behind_it_does_no_harm(after):
    qmodel = calibrated(convolutional(3, after))
    report = gq.fit_head(qmodel, colours([60] * 3))
    assert report.heads[0].layer == "2"
    assert accuracy(qmodel, colours([60] * 3, seed=1)) > 90


def test_rare_classes_are_not_given_up():
    qmodel = calibrated(cnn(3))
    report = gq.fit_head(qmodel, colours([200, 200, 10]))
    rare = [(x[y == 2], y[y == 2]) for x, y in colours([40] * 3, seed=1)]
    assert accuracy(qmodel, rare) > 90
    assert report.heads[0].balanced_accuracy > 85


def test_a_class_without_images_is_reported_and_never_answered():
    qmodel = calibrated(cnn(4))
    report = gq.fit_head(qmodel, colours([60] * 3))
    assert report.heads[0].absent == (3,)
    assert "no image of class 3" in str(report)
    answers = {int(a) for x, _ in colours([60] * 6) for a in qmodel.eval()(x).argmax(1)}
    assert 3 not in answers


def test_logits_suit_smoothed_labels():
    """They are sure, but not as sure as they could be: training has something to learn from."""
    qmodel = calibrated(cnn(6))
    gq.fit_head(qmodel, colours([40] * 6))
    images, labels = (torch.cat(parts) for parts in zip(*colours([40] * 6, seed=1), strict=True))
    logits = qmodel.eval()(images).detach()

    def losses(smoothing: float) -> list[float]:
        scaled = (logits * factor for factor in (0.3, 1.0, 3.0))
        loss = functools.partial(nn.functional.cross_entropy, label_smoothing=smoothing)
        return [loss(scores, labels).item() for scores in scaled]

    softer, as_fitted, harder = losses(0.2)
    assert as_fitted < min(softer, harder)
    assert losses(0.0)[1] < 0.5 * math.log(6)
    assert losses(0.0)[2] < losses(0.0)[1]


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.colour, self.sign = nn.Linear(12, 3), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x).flatten(1)
        return self.colour(features), self.sign(features)


@pytest.mark.parametrize("together", [True, False], ids=["one tensor", "two tensors"])
def test_several_heads_are_fitted_each_to_its_column_of_the_labels(together):
    qmodel = calibrated(Two())
    pairs = [(x, (y % 3, y // 3)) for x, y in colours([40] * 6)]
    batches = [(x, torch.stack(ys, 1)) if together else (x, *ys) for x, ys in pairs]
    report = gq.fit_head(qmodel, batches, layers={"colour": 0, "sign": 1})
    assert [(head.layer, head.classes) for head in report.heads] == [("colour", 3), ("sign", 2)]
    assert min(head.accuracy for head in report.heads) > 85
    assert len(str(report).splitlines()) == 2


def test_heads_that_are_not_told_apart_must_be_named():
    with pytest.raises(gq.ArgumentError, match=r"layers=\{'colour': 0, 'sign': 1\}"):
        gq.fit_head(calibrated(Two()), colours([20] * 3))


def test_batches_are_read_once_whatever_their_size():
    images, labels = (torch.cat(parts) for parts in zip(*colours([40] * 3), strict=True))
    heads = []
    for size in (7, 120):
        qmodel = calibrated(cnn(3))
        gq.fit_head(qmodel, iter(zip(images.split(size), labels.split(size), strict=True)))
        heads.append(qmodel[7].weight)
    torch.testing.assert_close(*heads, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "got no images"),
        ([(torch.zeros(0, 3, 8, 8), torch.zeros(0, dtype=torch.int64))], "got no images"),
        ([torch.zeros(4, 3, 8, 8)], "without labels"),
        ([(torch.zeros(4, 3, 8, 8),)], "without labels"),
        (torch.zeros(4, 3, 8, 8), "expected an iterable"),
        ([(torch.zeros(4, 3, 8, 8), torch.zeros(4))], "whole numbers"),
        ([(torch.zeros(4, 3, 8, 8), "abcd")], "whole numbers"),
        ([(torch.zeros(4, 3, 8, 8), torch.tensor([0, 1, 2, 3]))], "from 0 to 3"),
        ([(torch.zeros(4, 3, 8, 8), torch.tensor([0, 1, 2, -1]))], "from -1 to 2"),
        ([(torch.zeros(4, 3, 8, 8), torch.tensor([0, 1, 2]))], "one for each"),
        ([(torch.zeros(4, 5, 8, 8), torch.zeros(4).long())], "could not be run"),
        ([(torch.zeros(3, 3, 8, 8), torch.eye(3).long())], r"labels\.argmax\(1\)"),
        ([(torch.full((8, 3, 8, 8), torch.nan), torch.zeros(8).long())], "not finite"),
        (colours([40]), "5 of each of two or more"),
        (colours([4, 4, 4]), "5 of each of two or more"),
    ],
)
def test_what_cannot_be_fitted_is_refused_and_the_model_stays_as_it_was(batches, message):
    qmodel = calibrated(cnn(3))
    before, rng = state(qmodel), torch.get_rng_state()
    with pytest.raises(gq.ArgumentError, match=message):
        gq.fit_head(qmodel, batches)
    assert all(torch.equal(a, b) for a, b in zip(before, state(qmodel), strict=True))
    assert torch.equal(rng, torch.get_rng_state())
    assert qmodel.training
    assert not qmodel[7]._forward_pre_hooks


def test_failure_late_in_the_batches_leaves_the_model_as_it_was():
    qmodel = calibrated(cnn(3))
    before = state(qmodel)
    late = [*colours([40] * 3), (torch.full((8, 3, 8, 8), torch.nan), torch.zeros(8).long())]
    with pytest.raises(gq.ArgumentError, match="not finite"):
        gq.fit_head(qmodel, late)
    assert all(torch.equal(a, b) for a, b in zip(before, state(qmodel), strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ridge": 0}, "ridge='auto'"),
        ({"ridge": "strong"}, "ridge='auto'"),
        ({"layers": "3"}, "Name one with layers=…: '7'"),
        ({"layers": "head"}, "'head': no fake-quantized classifier"),
        ({"layers": {"7": 1}}, "a batch has 1"),
    ],
)
def test_wrong_arguments_say_what_to_write(arguments, message):
    with pytest.raises(gq.ArgumentError, match=message):
        gq.fit_head(calibrated(cnn(3)), colours([20] * 3), **arguments)


def test_models_without_a_classifier_or_without_quantization_are_refused():
    with pytest.raises(gq.ArgumentError, match="there is none"):
        gq.fit_head(gq.from_float(nn.Sequential(nn.Conv2d(3, 4, 3))), colours([20] * 3))
    with pytest.raises(gq.ArgumentError, match="predict_quantized_params"):
        gq.fit_head(cnn(3), colours([20] * 3))


def test_learned_steps_of_the_old_weight_are_refused():
    qmodel = calibrated(cnn(3))
    gq.qat.learn_steps(qmodel)
    with pytest.raises(gq.ArgumentError, match="before learn_steps"):
        gq.fit_head(qmodel, colours([20] * 3))


def test_prediction_fits_the_head_in_one_call(small):
    model = cnn(3)
    before = copy.deepcopy(model.state_dict())
    qmodel = gq.predict_quantized_params(
        model, hypernetwork=small, calibration=iter(colours([60] * 3)), head="fit"
    )
    report = gq.prediction_report(qmodel)
    assert report.kept == dict.fromkeys(("7.weight", "7.bias"), "fitted to the labels")
    assert "7.weight" not in report.predicted
    assert accuracy(qmodel, colours([60] * 3, seed=1)) > 80
    assert all(torch.equal(before[name], x) for name, x in model.state_dict().items())


def test_a_head_is_fitted_only_with_images(small):
    with pytest.raises(gq.ArgumentError, match="calibration="):
        gq.predict_quantized_params(cnn(3), hypernetwork=small, head="fit")


def test_a_head_kept_for_its_class_count_is_pointed_out_with_what_to_write(small):
    with pytest.warns(gq.RandomHeadWarning, match="fit_head") as caught:
        gq.predict_quantized_params(cnn(3), hypernetwork=small)
    assert len(caught) == 1
    assert caught[0].filename == __file__


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("classes", "head"), [(10, "auto"), (3, "keep"), (3, "predict")])
def test_a_head_kept_on_request_or_predicted_is_not_pointed_out(small, classes, head):
    gq.predict_quantized_params(cnn(classes), hypernetwork=small, head=head)


def test_images_of_real_objects_are_told_apart_by_predicted_features(data):
    train, test = load_images(data, "train"), load_images(data, "test")
    vehicles = torch.tensor([0, 0, 1, 1, 1, 1, 1, 1, 0, 0])
    model = nn.Sequential(
        *(nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 64, 3, 2, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2)),
    )
    batches = [(x, vehicles[y]) for x, y in train.batches(60)]
    qmodel = gq.predict_quantized_params(model, calibration=batches, head="fit")
    assert accuracy(qmodel, [(x, vehicles[y]) for x, y in test.batches(100)]) > 70
