"""The training loop: sample networks, predict their parameters, measure their losses, one step, average, checkpoint.

Networks and bit-widths of step t follow from (seed, t, number of processes), everything else random in process r from
(seed, t, r): a resumed run sees the same as an uninterrupted one, and goes on with any number of processes.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from ghnqat_sdk.data import ImageSet
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.hypernetwork.ghn import GraphHypernetwork
from ghnqat_sdk.hypernetwork.pretrained import load_pretrained
from ghnqat_sdk.training.compute import Setting
from ghnqat_sdk.training.config import RunConfig
from ghnqat_sdk.training.distributed import FlatGradients, Processes
from ghnqat_sdk.training.features import FeatureCache
from ghnqat_sdk.training.networks import Network, prepare_network
from ghnqat_sdk.training.objective import Hints, NetworkLoss, network_loss
from ghnqat_sdk.training.sampler import Draw, Sampler, draw_batch


@dataclass
class Progress:
    """Where a run stands; saved with its state.

    Attributes:
        step: Optimizer steps done.
        networks: Networks learned from.
        images: Images that passed through them, in all processes.
        mac_images: Multiply-accumulates of their forward passes, in all processes.
        skipped_networks: Networks left out because their loss or gradient was not finite.
        seconds: Training time, interruptions left out.
        cpu_seconds: Time of this process's processor.
        best: Best validation figure so far, mean top-1 in percent.
    """

    step: int = 0
    networks: int = 0
    images: int = 0
    mac_images: float = 0.0
    skipped_networks: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    best: float = -1.0


class NetworkReport(NamedTuple):
    """What one network of a step gave; see `NetworkLoss`."""

    draw: Draw
    loss: float
    hint: float | None
    accuracy: float


@dataclass(frozen=True)
class StepReport:
    """What one step of this process measured.

    Attributes:
        step: Steps done, this one included.
        networks: What it drew, and what each gave.
        gradient_norm: Before clipping, over all processes.
        learning_rate: Of this step.
    """

    step: int
    networks: tuple[NetworkReport, ...] = field(repr=False)
    gradient_norm: float = 0.0
    learning_rate: float = 0.0


class Trainer:
    """One hypernetwork, its average, its optimizer and its hints, and how one step changes them.

    Args:
        config: The run.
        train: Training images.
        features: The teacher's over the same images; needed where the config has hints.
        processes: This process's place among all; a single process by default.

    Raises:
        ArgumentError: images of another number of classes than the config's, hints without features, initial weights
            of another architecture, or limits that no network meets.
    """

    def __init__(
        self,
        config: RunConfig,
        train: ImageSet,
        *,
        features: FeatureCache | None = None,
        processes: Processes | None = None,
    ) -> None:
        _check(config, train, features)
        config.compute.check()
        self.config, self.train_images, self.features = config, train, features
        self.processes = processes or Processes()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model = GraphHypernetwork(config.hypernetwork).to(config.compute.device)
            channels = [] if features is None else [stage.shape[-1] for stage in features.stages]
            hints = None if config.hints is None else Hints(config.hints, channels)
            self.hints = None if hints is None else hints.to(config.compute.device)
        if config.initial is not None:
            _copy_weights(self.model, load_pretrained(config.initial))
        modules = [self.model] if self.hints is None else [self.model, self.hints]
        self.parameters = [p for module in modules for p in module.parameters()]
        self.gradients = FlatGradients(self.parameters)
        self.average = AveragedModel(self.model, multi_avg_fn=running_average(config.average))
        self.optimizer = config.optimizer.build(modules)
        settings = [(setting.bits, setting.share) for setting in config.bits.settings]
        self.sampler = Sampler(
            config.seed, config.networks, config.sampling, settings, config.bits.float_until
        )
        self.progress = Progress()
        self._prepared: dict[object, Network] = {}

    def steps(self, until: int) -> Iterator[StepReport]:
        """Train until so many steps are done, yielding after each."""
        started = time.monotonic() - self.progress.seconds
        spent = time.process_time() - self.progress.cpu_seconds
        while self.progress.step < until:
            report = self._step(self.progress.step)
            self.progress.step += 1
            self.progress.seconds = time.monotonic() - started
            self.progress.cpu_seconds = time.process_time() - spent
            yield report

    def averaged(self) -> GraphHypernetwork:
        """The hypernetwork with averaged weights, in evaluation mode."""
        module = self.average.module
        assert isinstance(module, GraphHypernetwork)
        return module.eval()

    def _step(self, step: int) -> StepReport:
        rate = self._set_learning_rate(step)
        rank, size = self.processes.rank, self.processes.size
        drawn = self.sampler.step(step, rank, size)
        networks = [self._network(draw) for draw in drawn]
        graphs = [
            network.graph.with_bits(d.bits) for network, d in zip(networks, drawn, strict=True)
        ]
        predicted = self.model(graphs, dtype=self.config.compute.dtype("decoder"))
        draw = random.Random(f"{self.config.seed}/{step}/{rank}/images")
        with _own_random_numbers(f"{self.config.seed}/{step}/{rank}/noise"):
            results = [
                self._loss(network, one, parameters, draw)
                for network, one, parameters in zip(networks, drawn, predicted, strict=True)
            ]
        self.gradients.zero()
        self._backward(predicted, results)
        norm = self._update()
        self._count(drawn, results)
        reports = (
            NetworkReport(one, r.loss, r.hint, r.accuracy)
            for one, r in zip(drawn, results, strict=True)
        )
        return StepReport(step + 1, tuple(reports), norm, rate)

    def _loss(
        self, network: Network, drawn: Draw, predicted: dict[str, Tensor], draw: random.Random
    ) -> NetworkLoss:
        config = self.config
        generator = torch.Generator().manual_seed(draw.getrandbits(62))
        batch = draw_batch(self.train_images, drawn.images, config.data.padding, generator)
        weight = self._hint_weight()
        hinted = weight > 0 and self.features is not None and drawn.architecture.norm != "none"
        wanted = (
            self.features.gather(batch.indices, batch.moves) if hinted and self.features else ()
        )
        return network_loss(
            network,
            predicted,
            batch.images,
            batch.labels.to(config.compute.device),
            Setting(drawn.bits, config.hypernetwork.ranges, config.bits.noise, config.compute),
            label_smoothing=config.label_smoothing,
            hints=self.hints,
            hint_weight=weight,
            wanted=[features.to(config.compute.device) for features in wanted],
            draw=draw,
        )

    def _hint_weight(self) -> float:
        if self.config.hints is None:
            return 0.0
        fade = 1.0 if self.config.decay is None else self.config.decay.hint(self.progress.step)
        return self.config.hints.weight * fade

    def _backward(self, predicted: list[dict[str, Tensor]], results: list[NetworkLoss]) -> None:
        """One backward pass of the hypernetwork for all networks with finite gradients."""
        tensors, gradients = [], []
        limit = self.config.network_clip_norm * (1 + self._hint_weight())
        for parameters, result in zip(predicted, results, strict=True):
            norm = result.norm
            if not result.finite:
                continue
            # One network, an exploding one without norm above all, must not outweigh the others.
            share = min(1.0, limit / max(norm, 1e-12)) / len(results)
            for name, gradient in result.gradients.items():
                tensors.append(parameters[name])
                gradients.append(gradient * share)
            if self.hints is not None and result.of_projections:
                for projection, of in zip(
                    self.hints.projections, result.of_projections, strict=True
                ):
                    if of is not None:
                        projection.grad += of * share
        if tensors:
            torch.autograd.backward(tensors, gradients)

    def _update(self) -> float:
        """Average gradients over processes, clip, step; returns the gradient's norm before clipping."""
        self.gradients.average(self.processes)
        norm = self.gradients.clip(self.config.clip_norm * (1 + self._hint_weight()))
        if norm > 0 and norm < float("inf"):
            self.optimizer.step()
            if (
                self.config.optimizer.type != "adamw"
            ):  # decompositions may round differently in each process
                self.processes.take_from_first(self.parameters)
            self.average.update_parameters(self.model)
        return norm

    def _network(self, draw: Draw) -> Network:
        """Built, traced and planned once while it is in the window."""
        key = (draw.architecture.key, draw.architecture.macs)  # of two shares, at other channels
        if key not in self._prepared:
            if len(self._prepared) >= self.config.sampling.window:
                self._prepared.pop(next(iter(self._prepared)))
            network = prepare_network(draw.architecture, self.config.hypernetwork.num_classes)
            self._prepared[key] = network
        return self._prepared[key]

    def _count(self, drawn: list[Draw], results: list[NetworkLoss]) -> None:
        size = self.processes.size
        used = [draw for draw, result in zip(drawn, results, strict=True) if result.finite]
        self.progress.networks += size * len(used)
        self.progress.images += size * sum(draw.images for draw in used)
        self.progress.mac_images += float(size * sum(d.images * d.architecture.macs for d in used))
        self.progress.skipped_networks += len(drawn) - len(used)

    def _set_learning_rate(self, step: int) -> float:
        config = self.config
        rate = config.optimizer.learning_rate * config.schedule.factor(step)
        if config.decay is not None:
            rate *= config.decay.rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate


@contextmanager
def _own_random_numbers(seed: str) -> Iterator[None]:
    """What draws from torch's generator, as NoiseQuant and dropout do, follows from `seed` alone.

    The generator comes back as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(random.Random(seed).getrandbits(62))
        yield


def running_average(decay: float) -> Callable[..., None]:
    """For `AveragedModel`: an exponential average whose memory is short while little has been averaged."""

    @torch.no_grad()
    def update(averages: list[Tensor], values: list[Tensor], count: Tensor | int) -> None:
        kept = min(decay, (1 + int(count)) / (10 + int(count)))
        torch._foreach_lerp_(averages, values, 1 - kept)

    return update


def _check(config: RunConfig, train: ImageSet, features: FeatureCache | None) -> None:
    if len(train.classes) != config.hypernetwork.num_classes:
        raise ArgumentError(
            f"The images are of {len(train.classes)} classes, and the config's hypernetwork.num_classes is "
            f"{config.hypernetwork.num_classes}. Change it in the config, or give other images."
        )
    if config.hints is not None and features is None:
        raise ArgumentError(
            "The config has hints, and no teacher's features were given. Pass features=FeatureCache.open(folder, "
            "teacher, train), or set hints to null."
        )


def _copy_weights(model: GraphHypernetwork, initial: GraphHypernetwork) -> None:
    try:
        model.load_state_dict(initial.state_dict())
    except RuntimeError as error:
        raise ArgumentError(
            f"The initial weights belong to another architecture ({' '.join(str(error).split()):.300}). Use a config "
            f"whose 'hypernetwork' equals that of the initial weights."
        ) from error
