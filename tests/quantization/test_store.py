import json
import threading

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from ghnqat_sdk.errors import ArgumentError, CheckpointError
from ghnqat_sdk.quantization.calibrate import calibrate
from ghnqat_sdk.quantization.convert import to_fake_quantized
from ghnqat_sdk.quantization.lookup import bits_of, fake_quantized_layers
from ghnqat_sdk.quantization.ranges import ClippedRanges
from ghnqat_sdk.quantization.store import load_quantized, save_quantized

IMAGES = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 5)
    )


@pytest.fixture
def qmodel() -> nn.Module:
    torch.manual_seed(0)
    model = cnn()
    to_fake_quantized(model, {"0": (8, 4), "4": (2, 3)}, ClippedRanges())
    calibrate(model, [IMAGES])
    return model.eval()


@pytest.fixture
def saved(qmodel, tmp_path):
    return save_quantized(qmodel, tmp_path / "model")


def test_a_loaded_model_gives_the_same_outputs(qmodel, saved):
    mine = cnn().train()
    before = {name: tensor.clone() for name, tensor in mine.state_dict().items()}
    loaded = load_quantized(mine, str(saved))
    assert torch.equal(loaded.eval()(IMAGES), qmodel(IMAGES))
    assert bits_of(fake_quantized_layers(loaded)) == {"0": (8, 4), "4": (2, 3)}
    assert loaded[0].quantization.calibrated
    assert type(mine[0]) is nn.Conv2d
    assert all(torch.equal(tensor, before[name]) for name, tensor in mine.state_dict().items())


def test_an_uncalibrated_model_stays_uncalibrated(tmp_path):
    model = cnn()
    to_fake_quantized(model, (4, 4), ClippedRanges())
    loaded = load_quantized(cnn(), save_quantized(model, tmp_path))
    assert not loaded[0].quantization.calibrated
    assert loaded[0].input_quantizer.frozen_range is None
    assert torch.equal(loaded.train()(IMAGES), model.train()(IMAGES))


def test_a_model_in_channels_last_is_saved_and_loaded_into_either_format(qmodel, tmp_path):
    folder = save_quantized(qmodel.to(memory_format=torch.channels_last), tmp_path)
    for mine in (cnn(), cnn().to(memory_format=torch.channels_last)):
        loaded = load_quantized(mine, folder).eval()
        assert loaded[0].weight.stride() == mine[0].weight.stride()
        torch.testing.assert_close(loaded(IMAGES), qmodel(IMAGES))


def test_shared_layers_are_kept(tmp_path):
    def make() -> nn.Module:
        layer = nn.Conv2d(3, 3, 3, padding=1)
        return nn.Sequential(layer, nn.ReLU(), layer)

    model = make()
    to_fake_quantized(model, (4, 4), ClippedRanges())
    loaded = load_quantized(make(), save_quantized(model, tmp_path))
    assert loaded[0] is loaded[2]
    assert torch.equal(loaded.train()(IMAGES), model.train()(IMAGES))


def test_saving_again_replaces_both_files_and_leaves_no_others(qmodel, saved):
    with torch.no_grad():
        qmodel[0].weight.mul_(2)
    save_quantized(qmodel, saved)
    assert sorted(path.name for path in saved.iterdir()) == [
        "model.safetensors",
        "quantization.json",
    ]
    assert torch.equal(load_quantized(cnn(), saved)[0].weight, qmodel[0].weight)


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("model.safetensors", lambda raw: raw[:-4]),
        ("model.safetensors", lambda raw: raw[:-4] + b"abcd"),
        ("model.safetensors", lambda raw: b""),
        ("quantization.json", lambda raw: b"{"),
        ("quantization.json", lambda raw: raw.replace(b'"format": 1', b'"format": 2')),
        ("quantization.json", lambda raw: raw.replace(b'"weight_bits": 8', b'"weight_bits": 9')),
        ("quantization.json", lambda raw: raw.replace(b'"4": {', b'"5": {')),
    ],
)
def test_damaged_files_are_refused(saved, file, damage):
    (saved / file).write_bytes(damage((saved / file).read_bytes()))
    with pytest.raises(CheckpointError, match="does not hold this model"):
        load_quantized(cnn(), saved)


def test_files_of_two_models_are_not_mixed(saved, tmp_path):
    other = cnn()
    to_fake_quantized(other, (4, 4), ClippedRanges())
    settings = save_quantized(other, tmp_path / "other") / "quantization.json"
    (saved / "quantization.json").write_text(settings.read_text())
    with pytest.raises(CheckpointError, match="does not belong"):
        load_quantized(cnn(), saved)


def test_another_architecture_is_refused(saved):
    with pytest.raises(CheckpointError, match="the layers differ: 4"):
        load_quantized(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)), saved)
    wider = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5)
    )
    with pytest.raises(CheckpointError, match=r"has shape \(6, 3, 3, 3\), not \(8, 3, 3, 3\)"):
        load_quantized(wider, saved)


def test_wrong_arguments_are_refused(qmodel, saved, tmp_path):
    with pytest.raises(ArgumentError, match="no fake-quantized layer"):
        save_quantized(cnn(), tmp_path / "x")
    with pytest.raises(ArgumentError, match="not a folder"):
        save_quantized(qmodel, saved / "model.safetensors")
    with pytest.raises(ArgumentError, match="fake-quantized already"):
        load_quantized(qmodel, saved)
    for folder in (tmp_path / "nowhere", None):
        with pytest.raises(CheckpointError):
            load_quantized(cnn(), folder)


@pytest.mark.parametrize("wrapper", [torch.compile, nn.DataParallel, AveragedModel])
def test_wrappers_with_other_names_are_refused(wrapper, qmodel, saved, tmp_path):
    with pytest.raises(ArgumentError, match=r"model\.(_orig_mod|module)"):
        save_quantized(wrapper(qmodel), tmp_path / "other")
    with pytest.raises(ArgumentError, match=r"model\.(_orig_mod|module)"):
        load_quantized(wrapper(cnn()), saved)
    assert not (tmp_path / "other").exists()


def test_settings_are_readable(saved):
    facts = json.loads((saved / "quantization.json").read_text())
    assert facts["layers"]["0"]["weight_bits"] == 8
    assert facts["ranges"]["type"] == "clipped"


def with_head(model: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    model[4] = nn.Linear(216, 7)
    return model


def test_a_layer_in_float_is_one_in_the_loaded_model(qmodel, tmp_path):
    qmodel = with_head(qmodel)
    loaded = load_quantized(with_head(cnn()), save_quantized(qmodel, tmp_path / "head"))
    assert type(loaded[4]) is nn.Linear
    assert [*fake_quantized_layers(loaded)] == ["0"]
    assert torch.equal(loaded.eval()(IMAGES), qmodel.eval()(IMAGES))


def test_a_model_calibrated_in_part_is_refused(qmodel, tmp_path):
    other = cnn()[:1]
    to_fake_quantized(other, (4, 4), ClippedRanges())
    with pytest.raises(ArgumentError, match=r"calibrate\(qmodel, batches\) for the whole"):
        save_quantized(nn.Sequential(other, qmodel), tmp_path / "parts")
    assert not (tmp_path / "parts").exists()


class WithState(nn.Conv2d):
    """Has more in its `state_dict` than tensors."""

    def get_extra_state(self) -> dict[str, int]:
        return {"seen": 3}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """None is needed."""


def test_what_no_file_can_hold_of_a_model_is_not_blamed_on_the_folder(qmodel, tmp_path):
    other = nn.Sequential(WithState(3, 4, 3))
    to_fake_quantized(other, (4, 4), ClippedRanges())
    with pytest.raises(ArgumentError, match=r"'0\._extra_state' in the state_dict of .* is a dict"):
        save_quantized(other, tmp_path / "new")
    with pytest.raises(ArgumentError, match=r"'0\.weight' is on the meta device"):
        save_quantized(qmodel.to("meta"), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_model_that_cannot_be_copied_is_not_blamed_on_the_file(qmodel, saved, tmp_path):
    mine = cnn()
    mine.lock = threading.Lock()
    with pytest.raises(ArgumentError, match=r"lock.* cannot be copied"):
        load_quantized(mine, saved)
    qmodel.lock = mine.lock
    assert load_quantized(cnn(), save_quantized(qmodel, tmp_path / "locked"))
