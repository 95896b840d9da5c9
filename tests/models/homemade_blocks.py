"""Blocks in the styles people write at home, each in a network around it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from functional_model import Model
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation


def conv(cin: int, cout: int, kernel: int = 3, stride: int = 1, **options: Any) -> nn.Sequential:
    padding = options.pop("padding", kernel // 2)
    layer = nn.Conv2d(cin, cout, kernel, stride, padding, bias=False, **options)
    return nn.Sequential(layer, nn.BatchNorm2d(cout), nn.ReLU())


def pooled(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


def non_square_kernels() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.fc(pooled(F.relu(m.tall(m.wide(x)))))

    kernels = {
        "wide": nn.Conv2d(3, 8, (1, 7), padding=(0, 3)),
        "tall": nn.Conv2d(8, 8, (9, 1), padding=(4, 0)),
    }
    return Model(forward, **kernels, fc=nn.Linear(8, 10))


def einsum_head() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        return torch.einsum("bchw,nc->bn", m.stem(x), m.head) / x.shape[-1] ** 2 + m.bias

    return Model(
        forward,
        stem=conv(3, 8),
        head=nn.Parameter(torch.zeros(10, 8)),
        bias=nn.Parameter(torch.zeros(10)),
    )


def in_place_operations() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        y = m.body(x)
        y += x
        y.mul_(0.5).relu_()
        y = y.clone()
        y[:, 0] = 0
        return m.fc(pooled(y))

    return Model(forward, stem=conv(3, 8), body=nn.Conv2d(8, 8, 3, padding=1), fc=nn.Linear(8, 10))


def control_flow_on_values() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        if x.mean() > 1e6:
            x = x / x.mean()
        return m.fc(pooled(x))

    return Model(forward, stem=conv(3, 8), fc=nn.Linear(8, 10))


def squeeze_excite_and_layer_scale() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        x = x + m.scale.view(1, -1, 1, 1) * m.excite(x)
        return m.fc(pooled(x))

    excite = nn.Sequential(conv(8, 8, groups=8), SqueezeExcitation(8, 2))
    return Model(
        forward,
        stem=conv(3, 8),
        excite=excite,
        scale=nn.Parameter(torch.ones(8)),
        fc=nn.Linear(8, 10),
    )


def channel_shuffle_and_split() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        left, right = m.stem(x).chunk(2, dim=1)
        x = torch.cat([left, m.branch(right)], 1)
        x = x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
        return m.fc(pooled(x))

    return Model(forward, stem=conv(3, 16), branch=conv(8, 8, groups=4), fc=nn.Linear(16, 10))


def space_to_depth_stem() -> nn.Module:
    layers = (
        nn.PixelUnshuffle(4),
        conv(48, 16),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )
    return nn.Sequential(*layers)


def dilated_pyramid() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        return m.fc(pooled(torch.stack([rate(x) for rate in m.rates]).sum(0)))

    rates = nn.ModuleList(conv(8, 12, padding=d, dilation=d) for d in (1, 2, 3))
    return Model(forward, stem=conv(3, 8), rates=rates, fc=nn.Linear(12, 10))


def attention_over_patches() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        tokens = m.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([m.token.expand(len(x), -1, -1), tokens], 1) + m.position
        return m.fc(m.block(tokens)[:, 0])

    block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    tables = {
        "token": nn.Parameter(torch.zeros(1, 1, 16)),
        "position": nn.Parameter(torch.zeros(1, 17, 16)),
    }
    return Model(
        forward, patches=nn.Conv2d(3, 16, 8, 8), block=block, fc=nn.Linear(16, 10), **tables
    )


def cosine_classifier() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        features = F.normalize(pooled(m.stem(x)), dim=1)
        return m.scale.exp() * features @ F.normalize(m.prototypes, dim=1).T

    values = {
        "prototypes": nn.Parameter(torch.randn(10, 8)),
        "scale": nn.Parameter(torch.tensor(1.0)),
    }
    return Model(forward, stem=conv(3, 8), **values)


def reparametrized_branches() -> nn.Module:
    """As in RepVGG: a 3 × 3, a 1 × 1 and an identity branch with norms of their own."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        return m.fc(pooled(F.relu(m.three(x) + m.one(x) + m.identity(x))))

    three = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
    one = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
    return Model(
        forward,
        stem=conv(3, 8),
        three=three,
        one=one,
        identity=nn.BatchNorm2d(8),
        fc=nn.Linear(8, 10),
    )
