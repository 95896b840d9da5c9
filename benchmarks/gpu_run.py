"""Train a run for some minutes on one GPU, which many processes share and none waits for another.

    nvidia-cuda-mps-control -d    # lets their kernels run side by side
    python benchmarks/gpu_run.py runs/stable --data data/cifar10 --minutes 9
    python benchmarks/gpu_run.py runs/stable --data data/cifar10 --minutes 9 --decay 0.3 --output w

Predicted networks are on the GPU, and the hypernetwork is on the processors: its step takes a core
as long as the GPU's driver would need to launch it. The run in the folder is continued, as an
ordinary one with larger batches, and `ghnqat-train run --resume` can go on with it. With --decay
the rate falls to zero in that share of the time: the weights before it are kept as the run, and
the average of those after it goes to --output.

It prints a line now and then: images a second, and losses. LOG.md has what its first version did on
an H200.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from multiprocessing.synchronize import Lock
from pathlib import Path

import common
import torch
from gpu_losses import DeviceLosses
from gpu_pool import Fact, Plan, Pool, flat_of
from torch import multiprocessing

from ghnqat_sdk.data import ImageSet
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.hypernetwork.pretrained import save_pretrained
from ghnqat_sdk.training.compute import ComputeConfig
from ghnqat_sdk.training.config import RunConfig, load_config
from ghnqat_sdk.training.distributed import Processes
from ghnqat_sdk.training.features import FeatureCache
from ghnqat_sdk.training.folder import RUN_FILE
from ghnqat_sdk.training.process import settle_process, sparing_old_objects
from ghnqat_sdk.training.run import Run, open_features
from ghnqat_sdk.training.teacher import load_teacher
from ghnqat_sdk.training.trainer import Trainer

_STEPS_BETWEEN_SPARINGS = 40


def work(
    rank: int,
    config: RunConfig,
    train: ImageSet,
    pool: Pool,
    lock: Lock,
    options: argparse.Namespace,
    plan: Plan,
) -> None:
    """What one process does until the pool says stop."""
    torch.set_num_threads(1)
    settle_process()
    features = features_of(config, train, options.device)
    trainer = Trainer(config, train, features=features, processes=Processes(rank, options.workers))
    trainer.losses = DeviceLosses(
        trainer.losses, ComputeConfig(device=options.device), options.workers
    )
    weights = flat_of(trainer.parameters)
    parts = weights.split(pool.sizes)
    for parameter, part in zip(trainer.parameters, parts, strict=True):
        parameter.data = part.view_as(parameter)
    step = options.first_step
    with sparing_old_objects() as spare:
        while not pool.facts[Fact.STOP]:
            weights.copy_(pool.weights)
            learn(trainer, step, pool, lock, plan)
            step += 1
            if step % _STEPS_BETWEEN_SPARINGS == 0:
                spare()


def features_of(config: RunConfig, train: ImageSet, device: str) -> FeatureCache | None:
    if config.hints is None:
        return None
    teacher = load_teacher(config.hints.teacher, train.classes)
    return FeatureCache.open(config.hints.features, teacher, train).to(device)


def learn(trainer: Trainer, step: int, pool: Pool, lock: Lock, plan: Plan) -> None:
    """Some networks learn, and the pool gets what they gave."""
    losses = trainer.losses
    losses.fading = plan.hint()
    drawn, networks = trainer.networks.of_step(
        trainer.sampler.step(step, trainer.processes.rank, trainer.processes.size)
    )
    predicted = trainer._predict(networks, drawn)
    results = losses.of_step(step, trainer.processes.rank, networks, drawn, predicted)
    trainer.gradients.zero()
    trainer._backward(step, predicted, results)
    finite = [result for result in results if result.finite]
    limit = trainer.config.clip_norm * trainer.config.gradient_scale_at(step)
    with lock:
        facts = pool.facts
        facts[Fact.NETWORKS] += len(finite)
        facts[Fact.SKIPPED] += len(results) - len(finite)
        facts[Fact.IMAGES] += sum(draw.images for draw in drawn)
        facts[Fact.MAC_IMAGES] += sum(d.images * d.architecture.macs for d in drawn)
        facts[Fact.LOSS] += sum(min(result.loss, 5.0) for result in finite)
        facts[Fact.LOSSES] += len(finite)
        pool.add(trainer.gradients.flat, len(drawn), plan, trainer.config.average, limit)


def config_for(config: RunConfig, options: argparse.Namespace) -> RunConfig:
    """The run's, with larger batches, and networks that are drawn a few times each."""
    sampling = config.sampling.model_copy(
        update={
            "meta_batch": 3,
            "uses": 2.0,
            "window": 24,
            "image_batch": options.images,
            "least_images": max(2, options.images // 4),
            "batch_macs": options.images * options.macs,
        }
    )
    # Other networks and images than the run has seen already.
    return config.model_copy(update={"sampling": sampling, "seed": options.seed, "average": 0.99})


def follow(
    run: Run, pool: Pool, workers: Sequence, lock: Lock, options: argparse.Namespace, plan: Plan
) -> None:
    """Print lines, and write what there is to write, until the time is up."""
    kept = False
    last, lines = pool.facts.clone(), 1
    while time.time() - plan.began < plan.total and any(w.is_alive() for w in workers):
        time.sleep(min(0.5, plan.total / 20))
        if not kept and plan.decayed() > 0:
            write(run, pool, lock)
            kept = True
        if time.time() - plan.began > lines * options.every:
            facts, lines = pool.facts.clone(), lines + 1
            tell(facts, facts - last, plan, options.every)
            last = facts
    if not kept:
        write(run, pool, lock)
    pool.facts[Fact.STOP] = 1
    if options.decay:
        averages = run.trainer.averaged()
        with lock, torch.no_grad():
            for own, value in zip(
                averages.parameters(), pool.average.split(pool.sizes), strict=False
            ):
                own.copy_(value.view_as(own))
        save_pretrained(averages, options.output)


def write(run: Run, pool: Pool, lock: Lock) -> None:
    with lock:
        pool.give(run.trainer)
    run.save()


def tell(facts: torch.Tensor, recent: torch.Tensor, plan: Plan, seconds: float) -> None:
    shown = {
        "seconds": round(time.time() - plan.began),
        "updates": int(facts[Fact.UPDATES]),
        "images": int(facts[Fact.IMAGES]),
        "images/s": round(float(recent[Fact.IMAGES]) / seconds),
        "networks/s": round(float(recent[Fact.NETWORKS]) / seconds, 1),
        "loss": round(float(recent[Fact.LOSS] / recent[Fact.LOSSES].clamp(min=1)), 3),
        "norm": round(float(facts[Fact.NORM]), 3),
        "skipped": int(facts[Fact.SKIPPED]),
    }
    print(json.dumps(shown), flush=True)


def train_run(options: argparse.Namespace) -> Run:
    """Continue the run in a folder; returns it as it was written."""
    began = time.time()
    own = load_config(options.run / RUN_FILE)
    config = config_for(own, options)
    train, validation = (own.data.load(options.data, part) for part in ("train", "val"))
    torch.set_num_threads(os.cpu_count() or 1)
    features = open_features(own, train, Processes())
    run = Run(own, options.run, train, validation, features=features)
    if not run.resume():
        raise ArgumentError(f"{str(options.run)!r} holds no state. Start it with ghnqat-train run.")
    total = 60 * options.minutes
    plan = Plan(began, total * (1 - options.decay), total, options.rate, options.gather)
    pool = Pool(run.trainer)
    options.first_step = run.progress.step
    context = multiprocessing.get_context("spawn")
    lock = context.Lock()
    given = (config, train, pool, lock, options, plan)
    workers = [context.Process(target=work, args=(rank, *given)) for rank in range(options.workers)]
    for worker in workers:
        worker.start()
    follow(run, pool, workers, lock, options, plan)
    for worker in workers:
        worker.join(60)
        worker.kill()
    return run


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("run", type=Path, help="folder of the run")
    common.add_data(parser)
    parser.add_argument(
        "--minutes", type=float, required=True, help="of everything, start included"
    )
    parser.add_argument("--decay", type=float, default=0.0, help="share of the time (default: 0)")
    parser.add_argument("--output", type=Path, help="folder of decayed weights")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--images", type=int, default=512, help="of one network")
    parser.add_argument("--macs", type=float, default=30e6, help="from which on it sees fewer")
    parser.add_argument("--gather", type=int, default=20, help="networks of an update")
    parser.add_argument("--rate", type=float, default=2e-3, help="0.005 made weights forget")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--every", type=float, default=15.0, help="seconds between lines")
    options = parser.parse_args()
    if options.decay and options.output is None:
        parser.error("--decay needs --output, a folder for the decayed weights")
    progress = train_run(options).progress
    print(f"{options.run}: step {progress.step}, {progress.images / 1e6:.2f} M images")


if __name__ == "__main__":
    main()
