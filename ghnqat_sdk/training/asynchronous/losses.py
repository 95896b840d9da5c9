"""The losses of a step with the networks on one device and the hypernetwork on another."""

from __future__ import annotations

import copy
import dataclasses
import random
from collections.abc import Sequence

import torch
from torch import Tensor

from ghnqat_sdk.training.compute import ComputeConfig
from ghnqat_sdk.training.kernels import flatten, unflatten
from ghnqat_sdk.training.losses import Losses
from ghnqat_sdk.training.objective import NetworkLoss
from ghnqat_sdk.training.prepared import PreparedNetwork
from ghnqat_sdk.training.sampler import Draw

_LEAST_IMAGES = 16
_SHARE_OF_MEMORY = 0.93


class DeviceLosses(Losses):
    """Those of a run, computed on a device.

    What is predicted goes there as one copy and gradients come back as one. A network that does not
    fit into the device's memory learns from fewer images.

    Args:
        losses: The run's; `features` lie on the device already.
        compute: With the device.
        sharers: Processes that share it.
    """

    def __init__(self, losses: Losses, compute: ComputeConfig, sharers: int) -> None:
        config = losses.config.model_copy(update={"compute": compute})
        self.of_run = losses.hints
        hints = None if losses.hints is None else copy.deepcopy(losses.hints).to(compute.device)
        super().__init__(config, losses.images.to(compute.device), losses.features, hints)
        if compute.device.startswith("cuda"):
            torch.cuda.set_per_process_memory_fraction(_SHARE_OF_MEMORY / sharers)

    def of_step(
        self,
        step: int,
        rank: int,
        networks: Sequence[PreparedNetwork],
        drawn: Sequence[Draw],
        predicted: Sequence[dict[str, Tensor]],
    ) -> list[NetworkLoss]:
        if self.hints is not None and self.of_run is not None:
            self.hints.load_state_dict(self.of_run.state_dict())
        return super().of_step(step, rank, networks, drawn, predicted)

    def _of_network(
        self,
        network: PreparedNetwork,
        draw: Draw,
        predicted: dict[str, Tensor],
        hint_weight: float,
        rng: random.Random,
    ) -> NetworkLoss:
        device = self.config.compute.device
        there = moved(predicted, predicted, device)
        seed = rng.getrandbits(62)
        while True:
            try:
                found = super()._of_network(network, draw, there, hint_weight, random.Random(seed))
                break
            except torch.OutOfMemoryError:
                draw = draw._replace(images=draw.images // 2)
                if draw.images < _LEAST_IMAGES:
                    raise
            torch.cuda.empty_cache()
        projections = [None if p is None else p.cpu() for p in found.of_projections]
        gradients = moved(found.gradients, predicted, "cpu")
        return dataclasses.replace(found, gradients=gradients, of_projections=projections)


def moved(tensors: dict[str, Tensor], like: dict[str, Tensor], device: str) -> dict[str, Tensor]:
    """The same on a device, in memory as those of `like`, by one copy of all."""
    flat = torch.cat([flatten(tensor).float() for tensor in tensors.values()])
    sizes = [tensor.numel() for tensor in tensors.values()]
    parts = flat.detach().to(device).split(sizes)
    return {name: unflatten(part, like[name]) for name, part in zip(tensors, parts, strict=True)}
