"""benchmarks/gradient_noise.py: signal and noise of gradients."""

import pytest
import torch

from ghnqat_sdk import load_pretrained
from ghnqat_sdk.training.datasets import load_images
from ghnqat_sdk.training.objective import prepare_network
from ghnqat_sdk.training.spaces import ArchitectureSpace


@pytest.fixture
def gradient_noise(benchmark_module):
    return benchmark_module("gradient_noise")


def test_signal_is_what_gradients_have_in_common_and_noise_the_rest(gradient_noise):
    torch.manual_seed(0)
    common = torch.randn(2000)  # squared norm of about 2000
    figures = [gradient_noise.signal_and_noise([common + 2 * torch.randn(2000) for _ in range(3)]) for _ in range(50)]
    signal, noise = (torch.tensor(column).mean().item() for column in zip(*figures, strict=True))
    assert signal == pytest.approx(common.square().sum().item(), rel=0.05)
    assert noise == pytest.approx(8000, rel=0.05)


def test_equal_gradients_have_no_noise(gradient_noise, data):
    hypernetwork = load_pretrained().train()
    space = ArchitectureSpace("val")
    smallest = min((space[i] for i in range(20)), key=lambda architecture: architecture.macs)
    network = prepare_network(smallest, (4, 4), hypernetwork.config.ranges, 10)
    batch = gradient_noise.draw(load_images(data, "train"), "stratified", 10, torch.Generator().manual_seed(0))
    assert batch.labels.tolist() == list(range(10))
    gradients = [gradient_noise.gradient(hypernetwork, network, batch) for _ in range(2)]
    signal, noise = gradient_noise.signal_and_noise(gradients)
    assert signal > 0
    assert abs(noise) < 1e-3 * signal
