import torch
from torch import nn

from ghnqat_sdk.qat import learn_steps
from ghnqat_sdk.quantization.calibrate import calibrate
from ghnqat_sdk.quantization.convert import to_fake_quantized
from ghnqat_sdk.quantization.ranges import ClippedRanges

IMAGES = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def calibrated() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 5),
    )
    to_fake_quantized(model, (4, 4), ClippedRanges())
    calibrate(model, [IMAGES])
    return model.eval()


def exported_and_loaded(qmodel, tmp_path) -> nn.Module:
    program = torch.export.export(qmodel, (IMAGES,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    torch.export.save(program, tmp_path / "model.pt2")
    return torch.export.load(tmp_path / "model.pt2").module()


def test_a_calibrated_model_is_exported_for_any_batch_size(tmp_path):
    qmodel = calibrated()
    module = exported_and_loaded(qmodel, tmp_path)
    with torch.no_grad():
        for images in (IMAGES, IMAGES[:3]):
            assert torch.allclose(module(images), qmodel(images), atol=1e-5)


def test_learned_steps_are_exported(tmp_path):
    qmodel = calibrated()
    with torch.no_grad():
        for log_scale in learn_steps(qmodel):
            log_scale += 0.3
    module = exported_and_loaded(qmodel, tmp_path)
    with torch.no_grad():
        assert torch.allclose(module(IMAGES), qmodel(IMAGES), atol=1e-5)
