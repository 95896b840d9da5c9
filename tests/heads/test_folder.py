import torch
from torch import nn

import ghnqat_sdk as gq
from ghnqat_sdk.heads import fit_head_to_folder


def test_a_head_is_fitted_to_a_folder(data):
    torch.manual_seed(0)
    qmodel = gq.from_float(
        nn.Sequential(
            nn.Conv2d(3, 12, 3, stride=2),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(12, 10),
        )
    )
    report = fit_head_to_folder(qmodel, data, size=16, count=120)
    assert report.heads[0].images == 120
    assert qmodel[4].quantization.calibrated
