"""The training loop: hypernetwork → parameters of a meta-batch of networks → their losses → one step.

Networks and bit-widths of step t are drawn from a generator seeded by (seed, t), everything else random in process r
from one seeded by (seed, t, r), so that a resumed run sees the same as an uninterrupted one, and gives the same weights
on a CPU.
"""

from __future__ import annotations

import functools
import json
import math
import random
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ghnqat_sdk.errors import ArgumentError, CheckpointError
from ghnqat_sdk.files import write_atomically
from ghnqat_sdk.graph.graph import FLOAT_BITS
from ghnqat_sdk.hypernetwork.ghn import GraphHypernetwork
from ghnqat_sdk.hypernetwork.pretrained import load_pretrained, save_pretrained
from ghnqat_sdk.quantization.bits import Bits
from ghnqat_sdk.training.checkpoint import load_training_state, pack, save_training_state, unpack, writing
from ghnqat_sdk.training.config import RunConfig
from ghnqat_sdk.training.datasets import ImageSet, augment, normalise_images
from ghnqat_sdk.training.distributed import Processes
from ghnqat_sdk.training.evaluate import evaluate_graphs
from ghnqat_sdk.training.objective import Network, NetworkLoss, network_loss, prepare_network
from ghnqat_sdk.training.optimizer import make_optimizer
from ghnqat_sdk.training.spaces import Architecture, ArchitectureSpace

RUN_FILE = "run.json"
BEST_FOLDER = "best"
LAST_FOLDER = "last"

_FLOAT = (FLOAT_BITS, FLOAT_BITS)
_MACS_PER_LAYER = 700_000  # a layer's fixed cost, batch norm and quantization included, as measured on a CPU
_KEPT_NETWORKS = 4096  # about half a megabyte each


@dataclass
class Progress:
    """Where a run stands; saved with its state.

    Attributes:
        step: Optimizer steps done.
        skipped_networks: Networks left out because their loss or gradient was not finite.
        skipped_steps: Steps without an update, because nothing finite was left.
        best: Best validation figure so far, mean top-1 in percent over the trained bit-widths.
        seconds: Training time, interruptions left out.
    """

    step: int = 0
    skipped_networks: int = 0
    skipped_steps: int = 0
    best: float = -1.0
    seconds: float = 0.0


@dataclass(frozen=True)
class StepReport:
    """What one step of this process measured.

    Attributes:
        loss: Mean over the networks with a finite loss.
        gradient_norm: Before clipping.
        learning_rate: Of this step.
        networks: (bits such as "W4/A4", loss, batch accuracy) of each network.
    """

    loss: float
    gradient_norm: float
    learning_rate: float
    networks: tuple[tuple[str, float, float], ...]


class Trainer:
    """Trains one hypernetwork in one folder.

    The folder holds `run.json` (the config), `checkpoint.safetensors` (the state, to resume from), `log.jsonl`, and
    `last/` and `best/`: the averaged weights as `load_pretrained` reads them.

    Args:
        config: The run.
        folder: Where it lives; a folder that holds another run is refused.
        train, validation: Image sets; only rank 0 validates.
        processes: This process's place among all; a single process by default.
        device: Where the networks run.
        initial: Weights to start from: anything that `load_pretrained` takes; only used for a new run.
        tensorboard: Log losses and validation figures to the folder's `tensorboard/` (needs tensorboard).

    Raises:
        ArgumentError: the folder holds a run with another config, `initial` has another architecture, or the images
            another number of classes.
        CheckpointError: the saved state is damaged, or a file cannot be written.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: str | Path,
        train: ImageSet,
        validation: ImageSet,
        *,
        processes: Processes | None = None,
        device: str | torch.device = "cpu",
        initial: str | Path | None = None,
        tensorboard: bool = False,
    ) -> None:
        if len(train.classes) != config.hypernetwork.num_classes:
            raise ArgumentError(
                f"The images are of {len(train.classes)} classes, and the config's hypernetwork.num_classes is "
                f"{config.hypernetwork.num_classes}. Change it in the config, or give other images."
            )
        self.config, self.folder = config, Path(folder)
        self.train_images, self.validation_images = train, validation
        self.processes = processes or Processes()
        self.device = torch.device(device)
        self.space = ArchitectureSpace("train")
        torch.manual_seed(config.seed)
        self.model = GraphHypernetwork(config.hypernetwork).to(self.device)
        if initial is not None:
            _copy_weights(self.model, load_pretrained(initial))
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay))
        self.optimizer = make_optimizer(self.model, config)
        self.progress = Progress()
        self._recent: list[StepReport] = []
        self._architecture = functools.lru_cache(maxsize=4 * _KEPT_NETWORKS)(self.space.__getitem__)
        self._networks: dict[Architecture, Network] = {}
        self.writer = _tensorboard_writer(self.folder) if tensorboard and self.processes.rank == 0 else None

    def resume(self) -> bool:
        """Continue from the folder's state, if there is one; says whether there was."""
        saved = self.folder / RUN_FILE
        if saved.exists() and not self._is_config(saved.read_bytes()):
            raise ArgumentError(
                f"{str(saved)!r} holds another run. Resume with that config (--config {saved}), or choose another "
                f"--output folder."
            )
        state = load_training_state(self.folder)
        if state is None:
            return False
        self._restore(*state)
        return True

    def run(self) -> Iterator[StepReport]:
        """Train to the end, yielding after every step; checkpoints and validates as the config says."""
        self._start_folder()
        started = time.monotonic() - self.progress.seconds
        while self.progress.step < self.config.steps:
            report = self._step(self.progress.step)
            self.progress.step += 1
            self.progress.seconds = time.monotonic() - started
            self._write_scalars(report)
            last = self.progress.step == self.config.steps
            if last or self.progress.step % self.config.validate_every == 0:
                self._validate()
            if last or self.progress.step % self.config.checkpoint_every == 0:
                self._save()
            yield report

    def _is_config(self, text: bytes) -> bool:
        try:
            return RunConfig.model_validate_json(text) == self.config
        except ValueError:
            return False

    # One step

    def _step(self, step: int) -> StepReport:
        config = self.config
        self._set_learning_rate(step)
        draw = random.Random(f"{config.seed}/{step}/{self.processes.rank}")
        torch.manual_seed(draw.getrandbits(62))
        chosen = self._draw_share(step)
        networks = [self._network(architecture) for architecture, _ in chosen]
        predicted = self.model([n.graph.with_bits(bits) for n, (_, bits) in zip(networks, chosen, strict=True)])
        results = []
        for network, (architecture, bits), parameters in zip(networks, chosen, predicted, strict=True):
            images, labels = self._draw_images(draw, self._batch(architecture), self._image_size(architecture, step))
            results.append(network_loss(network.at(bits), parameters, images, labels, config.label_smoothing))
        self.optimizer.zero_grad()
        self._backward(predicted, results)
        norm = self._update()
        by_bits = tuple(
            ("W{}/A{}".format(*bits), r.loss, r.accuracy) for (_, bits), r in zip(chosen, results, strict=True)
        )
        finite = [r.loss for r in results if math.isfinite(r.loss)]
        return StepReport(sum(finite) / max(len(finite), 1), norm, self.optimizer.param_groups[0]["lr"], by_bits)

    def _backward(self, predicted: list[dict[str, Tensor]], results: list[NetworkLoss]) -> None:
        """One backward pass of the hypernetwork for all networks with finite gradients."""
        tensors, gradients = [], []
        for parameters, result in zip(predicted, results, strict=True):
            if not math.isfinite(result.loss) or not all(g.isfinite().all() for g in result.gradients.values()):
                self.progress.skipped_networks += 1
                continue
            share = self._network_share(result) / len(results)
            for name, gradient in result.gradients.items():
                tensors.append(parameters[name])
                gradients.append(gradient * share)
        if self.config.penalty:
            squares = [t.square().mean() for parameters in predicted for t in parameters.values()]
            tensors.append(self.config.penalty * torch.stack(squares).sum() / len(predicted))
            gradients.append(torch.ones((), device=self.device))
        if tensors:
            torch.autograd.backward(tensors, gradients)

    def _network_share(self, result: NetworkLoss) -> float:
        """Factor that keeps one network, an exploding one without norm above all, from outweighing the others."""
        norm = torch.stack([g.norm() for g in result.gradients.values()]).norm().item()
        return min(1.0, self.config.network_clip_norm / max(norm, 1e-12))

    def _update(self) -> float:
        """Average gradients over processes, clip, step; returns the gradient's norm before clipping."""
        parameters = list(self.model.parameters())
        self.processes.average_gradients(parameters)
        norm = nn.utils.clip_grad_norm_(parameters, self.config.clip_norm).item()
        if not math.isfinite(norm) or norm == 0.0:
            self.progress.skipped_steps += 1
            return norm
        self.optimizer.step()
        if self.config.optimizer == "soap":  # its products and decompositions may round differently in each process
            self.processes.take_from_first(parameters)
        self.average.update_parameters(self.model)
        return norm

    def _network(self, architecture: Architecture) -> Network:
        """Built and traced once for each architecture, as long as there is room."""
        if architecture not in self._networks:
            settings = self.config.hypernetwork
            network = prepare_network(architecture, _FLOAT, settings.ranges, settings.num_classes, self.config.noise)
            if len(self._networks) >= _KEPT_NETWORKS:
                return network
            self._networks[architecture] = network
        return self._networks[architecture]

    def _draw_share(self, step: int) -> list[tuple[Architecture, Bits]]:
        """This process's share of the step's networks, which all processes draw alike and deal out by cost.

        Sorted and dealt there and back again, so that no process waits long for another.
        """
        draw, size, rank = random.Random(f"{self.config.seed}/{step}"), self.processes.size, self.processes.rank
        drawn = [
            (self._draw_architecture(draw, step), self._draw_bits(draw, step))
            for _ in range(self.config.meta_batch * size)
        ]
        drawn.sort(key=lambda pair: self._cost(pair[0]))
        return [pair for i, pair in enumerate(drawn) if i % (2 * size) in (rank, 2 * size - 1 - rank)]

    def _cost(self, architecture: Architecture) -> float:
        images = self._batch(architecture) / self.config.image_batch
        return architecture.macs * images + _MACS_PER_LAYER * architecture.depth

    def _draw_architecture(self, draw: random.Random, step: int) -> Architecture:
        simple = step < self.config.simple_phase * self.config.steps
        weights = dict[str, float](self.config.norm_weights.items())
        while True:
            architecture = self._architecture(draw.randrange(self.config.pool))
            if architecture.macs > self.config.max_macs or (simple and not architecture.simple):
                continue
            if not weights or draw.random() * max(1.0, *weights.values()) < weights.get(architecture.norm, 1.0):
                return architecture

    def _draw_bits(self, draw: random.Random, step: int) -> Bits:
        if step < self.config.float_phase * self.config.steps:
            return _FLOAT
        return draw.choices([b.bits for b in self.config.bits], [b.share for b in self.config.bits])[0]

    def _image_size(self, architecture: Architecture, step: int) -> int:
        """Whole images, or crops in the crop phase; a head without pooling takes one size only."""
        crops = step < self.config.crop_phase * self.config.steps and architecture.head.pooled
        return self.config.crop if crops else self.train_images.images.shape[-1]

    def _batch(self, architecture: Architecture) -> int:
        """Number of images; fewer for a network that costs more than `batch_macs` allows.

        Whole quarters of `image_batch`, or an eighth: oneDNN compiles a convolution for every shape, and of few sizes
        most are in its cache.
        """
        whole = self.config.image_batch
        quarter = max(whole // 4, 1)
        affordable = whole if self.config.batch_macs is None else int(self.config.batch_macs / architecture.macs)
        return max(min(whole, affordable // quarter * quarter), whole // 8, 2)

    def _draw_images(self, draw: random.Random, count: int, size: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(draw.getrandbits(62))
        batch = self.train_images.stratified(count, generator)
        images = augment(normalise_images(batch.images), generator, self.config.padding, size)
        return images.to(self.device), batch.labels.to(self.device)

    def _set_learning_rate(self, step: int) -> None:
        config = self.config
        warmup = min(1.0, (step + 1) / max(config.warmup_steps, 1))
        done = max(0.0, (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1))
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    # Validation and state

    def averaged(self) -> GraphHypernetwork:
        """The hypernetwork with averaged weights, in evaluation mode."""
        module = self.average.module
        assert isinstance(module, GraphHypernetwork)
        return module.eval()

    def _validate(self) -> None:
        """Mean top-1 of unseen validation networks on validation images; the best weights so far go to `best/`."""
        if self.processes.rank == 0:
            # The same images whatever the run's seed, so that figures of runs compare.
            images = self.validation_images.sample(self.config.validation_images, seed=0)
            space = ArchitectureSpace("val")
            affordable = (a for a in space if a.macs <= self.config.max_macs)
            chosen = [a for a, _ in zip(affordable, range(self.config.validation_graphs), strict=False)]
            figures = {}
            for share in self.config.bits:
                result = evaluate_graphs(self.averaged(), chosen, images, share.bits, device=self.device)
                figures["W{}/A{}".format(*share.bits)] = result.top1.mean
            mean = sum(figures.values()) / len(figures)
            self._log({"validation": figures, "mean": mean, **_averages(self._recent)})
            self._recent.clear()
            if self.writer:
                self.writer.add_scalars("validation", figures, self.progress.step)
            if mean > self.progress.best:
                self.progress.best = mean
                save_pretrained(self.averaged(), self.folder / BEST_FOLDER)
        self.processes.wait()

    def _log(self, entry: dict[str, object]) -> None:
        where = {"step": self.progress.step, "seconds": round(self.progress.seconds, 1)}
        with writing(self.folder), (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(where | entry) + "\n")

    def _write_scalars(self, report: StepReport) -> None:
        self._recent.append(report)
        if self.writer:
            self.writer.add_scalar("loss", report.loss, self.progress.step)
            self.writer.add_scalar("gradient norm", report.gradient_norm, self.progress.step)
            self.writer.add_scalar("learning rate", report.learning_rate, self.progress.step)
            self.writer.add_scalar("skipped networks", self.progress.skipped_networks, self.progress.step)

    def _start_folder(self) -> None:
        if self.processes.rank == 0:
            with writing(self.folder):
                write_atomically(self.folder / RUN_FILE, self.config.model_dump_json(indent=2).encode())
        self.processes.wait()

    def _save(self) -> None:
        states: dict[str, Tensor] = {}
        optimizer = pack(self.optimizer.state_dict(), "optimizer", states)
        states = {name: tensor.contiguous() for name, tensor in states.items()}
        # Go on with the layouts that a resumed run reads, so that matrix products round alike in both.
        self._load_optimizer(optimizer, states)
        if self.processes.rank == 0:
            tensors = {f"model.{name}": t for name, t in self.model.state_dict().items()}
            tensors |= {f"average.{name}": t for name, t in self.average.state_dict().items()}
            facts = vars(self.progress) | {"processes": self.processes.size, "optimizer": optimizer}
            save_training_state(self.folder, tensors | states, facts)
            save_pretrained(self.averaged(), self.folder / LAST_FOLDER)
        self.processes.wait()

    def _load_optimizer(self, packed: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        state = unpack(packed, tensors)
        state["state"] = {int(index): of_parameter for index, of_parameter in state["state"].items()}
        self.optimizer.load_state_dict(state)

    def _restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        if facts.pop("processes", 1) != self.processes.size:
            raise ArgumentError(
                f"The run in {str(self.folder)!r} was made with another number of processes than "
                f"{self.processes.size}; a resumed run needs the same number to stay the same run."
            )
        try:
            self.model.load_state_dict(_with_prefix(tensors, "model."))
            self.average.load_state_dict(_with_prefix(tensors, "average."))
            self._load_optimizer(facts.pop("optimizer"), tensors)
            self.progress = Progress(**facts)
        except (RuntimeError, TypeError, KeyError, ValueError) as error:
            raise CheckpointError(f"The state in {str(self.folder)!r} does not fit its config: {error}") from error


def _averages(reports: list[StepReport]) -> dict[str, object]:
    """Mean training loss and accuracy by bits over some steps, networks with a non-finite loss left out."""
    seen: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for report in reports:
        for bits, loss, accuracy in report.networks:
            if math.isfinite(loss):
                seen[bits].append((loss, 100 * accuracy))
    means = {
        bits: [round(sum(column) / len(pairs), 3) for column in zip(*pairs, strict=True)]
        for bits, pairs in seen.items()
    }
    return {"training": means}


def _tensorboard_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ArgumentError('TensorBoard is not installed. Write pip install "ghnqat-sdk[train]".') from error
    return SummaryWriter(str(folder / "tensorboard"))


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _copy_weights(model: GraphHypernetwork, initial: GraphHypernetwork) -> None:
    """`initial` into `model`; where only `model`'s decoder has a second layer, tiles take nothing from it yet."""
    state, second = initial.state_dict(), model.config.decoder.second
    if second and not initial.config.decoder.second:
        for name, own in model.state_dict().items():
            tensor = state.setdefault(name, own)
            if own.shape[-1] == tensor.shape[-1] + second:
                state[name] = F.pad(tensor, (0, second))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ArgumentError(
            f"The initial weights belong to another architecture ({error}). Use a config whose 'hypernetwork' equals "
            f"that of the initial weights, but for a second layer of the decoder that they may lack."
        ) from error
