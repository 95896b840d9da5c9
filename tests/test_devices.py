"""What a user does, on each device that there is: the CUDA cases run where torch finds one."""

import pytest
import torch
from torch import nn

import ghnqat_sdk as gq
from ghnqat_sdk.data import load_images
from ghnqat_sdk.training.compute import ComputeConfig
from ghnqat_sdk.training.config import RunConfig
from ghnqat_sdk.training.sampler import SamplingConfig
from ghnqat_sdk.training.shares import DeepNetsShare
from ghnqat_sdk.training.trainer import Trainer

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


def cnn() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, 2, 1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3, 2, 1, groups=12, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 10),
    )


@pytest.mark.parametrize("device", DEVICES)
def test_a_model_is_predicted_calibrated_and_trained_on_its_device(device, small, data):
    images = load_images(data, "train")
    batches = [(x.to(device), y.to(device)) for x, y in images.batches(64)]
    qmodel = gq.predict_quantized_params(cnn().to(device), (4, 4), hypernetwork=small)
    gq.calibrate(qmodel, batches)
    qmodel.train()
    loss = nn.functional.cross_entropy(qmodel(batches[0][0]), batches[0][1])
    loss.backward()
    assert all(p.device.type == device and p.grad is not None for p in qmodel.parameters())
    assert qmodel.eval()(batches[0][0]).isfinite().all()


@pytest.mark.parametrize("device", DEVICES)
def test_a_hypernetwork_is_trained_on_the_device_of_its_config(device, small, data):
    config = RunConfig(
        hypernetwork=small.config,
        networks=(DeepNetsShare(channels=16, max_macs=8e6),),
        sampling=SamplingConfig(meta_batch=1, image_batch=16, least_images=16, window=2),
        compute=ComputeConfig(device=device),
    )
    trainer = Trainer(config, load_images(data, "train"))
    before = [p.clone() for p in trainer.model.parameters()]
    (report,) = trainer.steps(1)
    assert report.networks[0].loss > 0
    after = list(trainer.model.parameters())
    assert all(p.device.type == device for p in after)
    assert not all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
