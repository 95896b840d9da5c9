"""The training loop: sample, predict, loss, one step, average.

Networks and bit-widths of step t, those of all processes together, follow from (seed, t, number of
processes), everything else random in process r from (seed, t, r): a resumed run sees the same as an
uninterrupted one with as many processes, and can go on with another number.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ghnqat_sdk.data import ImageSet
from ghnqat_sdk.hypernetwork.ghn import GraphHypernetwork
from ghnqat_sdk.training.average import averaging
from ghnqat_sdk.training.balance import relative_norm
from ghnqat_sdk.training.config import RunConfig
from ghnqat_sdk.training.distributed import Processes
from ghnqat_sdk.training.features import FeatureCache
from ghnqat_sdk.training.gradients import FlatGradients
from ghnqat_sdk.training.initial import check_fit, check_parts, initial_parts
from ghnqat_sdk.training.losses import Losses
from ghnqat_sdk.training.objective import NetworkLoss
from ghnqat_sdk.training.prepared import PreparedNetwork, PreparedNetworks
from ghnqat_sdk.training.reports import NetworkReport, Progress, StepReport, counted
from ghnqat_sdk.training.sampler import Draw

Predicted = dict[str, Tensor]
"""Parameters of one network, by name."""


class Learned(NamedTuple):
    """What gradients of a step are of.

    Attributes:
        drawn: The networks.
        results: What each of them gave.
        unfit: How many were drawn besides, and are for images of other sizes.
    """

    drawn: list[Draw]
    results: list[NetworkLoss]
    unfit: int


class Trainer:
    """One hypernetwork, its average, its optimizer and its hints (a teacher's features, compared
    with blocks), and how one step changes them.

    Args:
        config: The run.
        train: Training images.
        features: The teacher's over the same images; needed where the config has hints.
        processes: This process's place among all; a single process by default.

    Raises:
        ArgumentError: images of another number of classes than the config's, hints without
            features, initial weights of another architecture, limits that no network meets, or a
            class of the user's own that cannot be used.
    """

    def __init__(
        self,
        config: RunConfig,
        train: ImageSet,
        *,
        features: FeatureCache | None = None,
        processes: Processes | None = None,
    ) -> None:
        check_fit(config, train, features)
        check_parts(config)
        self.config = config
        self.features = features
        self.processes = processes or Processes()
        self.model, self.hints = initial_parts(config, train, features)
        self.losses = Losses(config, train, features, self.hints)
        modules = [self.model] if self.hints is None else [self.model, self.hints]
        self.parameters = [p for module in modules for p in module.parameters()]
        self.gradients = FlatGradients(self.parameters)  # each `grad` is a part of it from here on
        self.average = averaging(self.model, config.average)
        self.optimizer = config.optimizer.build(modules)
        self.sampler = config.build_sampler()
        self.networks = PreparedNetworks(
            config.hypernetwork.num_classes, config.sampling.window, config.data.size
        )
        self.progress = Progress()

    def steps(self, until: int) -> Iterator[StepReport]:
        """Train until so many steps are done, yielding after each."""
        started_at = time.monotonic() - self.progress.seconds
        noted = time.process_time()
        while self.progress.step < until:
            report, learned = self._step(self.progress.step)
            self.progress.step += 1
            self.progress.seconds = time.monotonic() - started_at
            spent = time.process_time()
            self._count(learned, spent - noted)
            noted = spent
            yield report

    def averaged(self) -> GraphHypernetwork:
        """The hypernetwork with averaged weights, in evaluation mode."""
        module = self.average.module
        assert isinstance(module, GraphHypernetwork)
        return module.eval()

    def learn(self, step: int) -> Learned:
        """Put gradients of what this process draws in a step, counted from zero, into `gradients`.

        They come in two stages: first those of each loss by the predicted tensors, network by
        network, so that one network's activations are alive at a time. Then one backward pass takes
        all of them through the hypernetwork, whose prediction was one pass as well.
        """
        all_drawn = self.sampler.step(step, self.processes.rank, self.processes.size)
        drawn, networks = self.networks.of_step(all_drawn)
        predicted = self._predict(networks, drawn)
        results = self.losses.of_step(step, self.processes.rank, networks, drawn, predicted)
        self.gradients.zero()
        self._backward(step, predicted, results)
        return Learned(drawn, results, len(all_drawn) - len(drawn))

    def _step(self, step: int) -> tuple[StepReport, Learned]:
        """One step, counted from zero; its report counts those that are done."""
        rate = self._set_learning_rate(step)
        learned = self.learn(step)
        norm = self._update(step)
        reports = [
            NetworkReport(draw, result.loss, result.hint, result.accuracy)
            for draw, result in zip(learned.drawn, learned.results, strict=True)
        ]
        return StepReport(step + 1, tuple(reports), norm, rate), learned

    def _count(self, learned: Learned, cpu_seconds: float) -> None:
        """Add to the progress what all processes did."""
        finite = [result.finite for result in learned.results]
        counts = counted(learned.drawn, finite, learned.unfit, cpu_seconds)
        self.progress.add(self.processes.total(counts))

    def _set_learning_rate(self, step: int) -> float:
        rate = self.config.learning_rate_at(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _predict(
        self, networks: Sequence[PreparedNetwork], drawn: Sequence[Draw]
    ) -> list[Predicted]:
        if not networks:
            return []
        graphs = [
            network.graph.with_bits(draw.bits)
            for network, draw in zip(networks, drawn, strict=True)
        ]
        return self.model(graphs, dtype=self.config.compute.dtype("decoder"))

    def _backward(
        self, step: int, predicted: Sequence[Predicted], results: Sequence[NetworkLoss]
    ) -> None:
        """One backward pass of the hypernetwork for all networks with finite gradients.

        It ends at the hypernetwork's weights; the projections of hints, which the networks' losses
        alone depend on, get their gradients beside it.
        """
        tensors: list[Tensor] = []
        gradients: list[Tensor] = []
        limit = self.config.network_clip_norm * self.config.gradient_scale_at(step)
        for parameters, result in zip(predicted, results, strict=True):
            if not result.finite:
                continue
            # One network, an exploding one without norm above all, must not outweigh the others.
            norm = max(result.norm, limit)
            if self.config.relative_norm:
                norm = max(relative_norm(result.gradients, parameters), 1e-12)
            share = limit / norm / len(results)
            for name, gradient in result.gradients.items():
                tensors.append(parameters[name])
                gradients.append(gradient * share)
            if self.hints is not None:
                self.hints.add_gradients(result.of_projections, share)
        if tensors:
            torch.autograd.backward(tensors, gradients)

    def _update(self, step: int) -> float:
        """Average over processes, clip, step; returns the gradient's norm before clipping."""
        self.gradients.mean_over(self.processes)
        limit = self.config.clip_norm * self.config.gradient_scale_at(step)
        norm = self.gradients.clip(limit)
        # With a gradient of zero, where no network was finite, momentum would still change weights;
        # an infinite or undefined one cannot be clipped.
        if 0 < norm < float("inf"):
            self.optimizer.step()
            if not self.config.optimizer.same_everywhere:  # as decompositions, which round apart
                self.processes.take_from_first(self.parameters)
            self.average.update_parameters(self.model)
        return norm
