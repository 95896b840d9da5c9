"""Models in the styles people write at home, each with what it is called with (None: an ordinary
image)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from functional_model import Model
from homemade_blocks import (
    attention_over_patches,
    channel_shuffle_and_split,
    control_flow_on_values,
    conv,
    cosine_classifier,
    dilated_pyramid,
    einsum_head,
    in_place_operations,
    non_square_kernels,
    pooled,
    reparametrized_branches,
    space_to_depth_stem,
    squeeze_excite_and_layer_scale,
)
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torchvision.ops import StochasticDepth

IMAGES = torch.empty(2, 3, 32, 32)


def functional_with_shape_arithmetic() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(m.conv1(x)), 2)
        x = F.max_pool2d(F.relu(m.conv2(x)), 2)
        batch, channels, height, width = x.shape
        return m.fc(x.view(batch, channels * height * width))

    return Model(
        forward, conv1=nn.Conv2d(3, 6, 5), conv2=nn.Conv2d(6, 16, 5), fc=nn.Linear(400, 10)
    )


def loop_over_a_list() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        for block in m.blocks:
            x = x + block(x) if block[0].in_channels == block[0].out_channels else block(x)
        return m.fc(x.mean(dim=[2, 3]))

    return Model(
        forward, blocks=nn.ModuleList([conv(3, 8), conv(8, 8), conv(8, 8)]), fc=nn.Linear(8, 10)
    )


def conditional_on_shape() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        while x.shape[-1] > 4:
            x = m.down(x) if x.shape[1] == 16 else m.stem(x)
        return m.fc(pooled(x))

    return Model(
        forward, stem=conv(3, 16, stride=2), down=conv(16, 16, stride=2), fc=nn.Linear(16, 10)
    )


def module_dict() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.parts["stem"](x)
        branches = {name: m.parts[name](x) for name in ("left", "right")}
        return m.parts["head"](pooled(torch.cat(tuple(branches.values()), 1)))

    parts = {
        "stem": conv(3, 8),
        "left": conv(8, 4, 1),
        "right": conv(8, 4, 5),
        "head": nn.Linear(8, 10),
    }
    return Model(forward, parts=nn.ModuleDict(parts))


class StandardizedConv(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        deviation = self.weight.std((1, 2, 3), keepdim=True) + 1e-5
        weight = (self.weight - mean) / deviation
        return F.conv2d(
            input, weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )


def weight_standardization_and_group_norm() -> nn.Module:
    layers = (StandardizedConv(3, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.SiLU())
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


def prelu() -> nn.Module:
    layers = (nn.Conv2d(3, 8, 3), nn.PReLU(8), nn.Conv2d(8, 8, 3), nn.PReLU())
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


def autoencoder_with_transposed_convolutions() -> nn.Module:
    encoder = nn.Sequential(conv(3, 8, stride=2), conv(8, 16, stride=2))
    decoder = nn.Sequential(
        nn.ConvTranspose2d(16, 8, 2, 2),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 3, 4, 2, 1, groups=1),
        nn.Sigmoid(),
    )
    return nn.Sequential(encoder, decoder)


def unet() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        high = m.enter(x)
        low = m.below(F.max_pool2d(high, 2))
        up = F.interpolate(low, size=high.shape[-2:], mode="bilinear", align_corners=False)
        return m.leave(torch.cat([high, up], dim=1))

    return Model(forward, enter=conv(3, 8), below=conv(8, 8), leave=nn.Conv2d(16, 4, 1))


def one_dimensional() -> nn.Module:
    layers = (
        nn.Conv1d(2, 8, 5),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(8, 16, 3, groups=2),
    )
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 10))


def three_dimensional() -> nn.Module:
    layers = (nn.Conv3d(1, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(), nn.AdaptiveAvgPool3d(1))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 10))


def two_inputs() -> nn.Module:
    def forward(m: Any, left: Tensor, right: Tensor) -> Tensor:
        shared = [m.stem(image) for image in (left, right)]
        return m.fc(pooled(torch.abs(shared[0] - shared[1])))

    return Model(forward, stem=conv(3, 8), fc=nn.Linear(8, 10))


def image_and_numbers() -> nn.Module:
    def forward(m: Any, image: Tensor, *, numbers: Tensor) -> Tensor:
        return m.fc(torch.cat([pooled(m.stem(image)), F.relu(m.mlp(numbers))], 1))

    return Model(forward, stem=conv(3, 8), mlp=nn.Linear(5, 8), fc=nn.Linear(16, 10))


def dict_outputs() -> nn.Module:
    def forward(m: Any, x: Tensor) -> dict[str, Tensor]:
        x = m.stem(x)
        return {"classes": m.classes(pooled(x)), "mask": m.mask(x)}

    return Model(forward, stem=conv(3, 8), classes=nn.Linear(8, 10), mask=nn.Conv2d(8, 1, 1))


def auxiliary_head_in_training_only() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Any:
        middle = m.stem(x)
        main = m.fc(pooled(m.body(middle)))
        return (main, m.auxiliary(pooled(middle))) if m.training else main

    heads = {"fc": nn.Linear(8, 10), "auxiliary": nn.Linear(8, 10)}
    return Model(forward, stem=conv(3, 8), body=conv(8, 8), **heads)


def weight_norm() -> nn.Module:
    layer = parametrizations.weight_norm(nn.Conv2d(3, 8, 3))
    return nn.Sequential(layer, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


def orthogonal_parametrization() -> nn.Module:
    head = parametrizations.orthogonal(nn.Linear(8, 8))
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def own_parametrization() -> nn.Module:
    layer = nn.Conv2d(3, 8, 3)
    parametrize.register_parametrization(layer, "weight", Doubled())
    return nn.Sequential(layer, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


def shared_blocks() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        for _ in range(3):
            x = m.block(x) + x
        return m.fc(pooled(x))

    return Model(forward, stem=conv(3, 8), block=conv(8, 8), fc=nn.Linear(8, 10))


def tied_weights() -> nn.Module:
    first, second = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
    second.weight = first.weight
    layers = (nn.Conv2d(3, 8, 3), first, nn.ReLU(), second)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


def dropout_and_stochastic_depth() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        x = x + m.depth(m.body(x))
        return m.fc(F.dropout(pooled(x), 0.5, m.training))

    drops = {
        "depth": StochasticDepth(0.5, "row"),
        "fc": nn.Sequential(nn.Dropout(0.2), nn.Linear(8, 10)),
    }
    return Model(
        forward, stem=conv(3, 8), body=nn.Sequential(conv(8, 8), nn.Dropout2d(0.1)), **drops
    )


def frozen_in_double_precision() -> nn.Module:
    model = nn.Sequential(
        conv(3, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    ).double()
    return model.requires_grad_(False)


IMAGE = None
MODELS: dict[Callable[[], nn.Module], Any] = {
    functional_with_shape_arithmetic: IMAGE,
    loop_over_a_list: IMAGE,
    conditional_on_shape: IMAGE,
    module_dict: IMAGE,
    weight_standardization_and_group_norm: IMAGE,
    prelu: IMAGE,
    autoencoder_with_transposed_convolutions: IMAGE,
    unet: IMAGE,
    one_dimensional: torch.empty(2, 2, 64),
    three_dimensional: torch.empty(2, 1, 8, 8, 8),
    two_inputs: {"left": IMAGES, "right": IMAGES},
    image_and_numbers: {"image": IMAGES, "numbers": torch.empty(2, 5)},
    dict_outputs: IMAGE,
    auxiliary_head_in_training_only: IMAGE,
    weight_norm: IMAGE,
    orthogonal_parametrization: IMAGE,
    own_parametrization: IMAGE,
    shared_blocks: IMAGE,
    tied_weights: IMAGE,
    dropout_and_stochastic_depth: IMAGE,
    non_square_kernels: IMAGE,
    einsum_head: IMAGE,
    in_place_operations: IMAGE,
    control_flow_on_values: IMAGE,
    squeeze_excite_and_layer_scale: IMAGE,
    channel_shuffle_and_split: IMAGE,
    space_to_depth_stem: IMAGE,
    dilated_pyramid: IMAGE,
    attention_over_patches: torch.empty(2, 3, 32, 32),
    cosine_classifier: IMAGE,
    reparametrized_branches: IMAGE,
    frozen_in_double_precision: IMAGE,
}
