"""Training state on disk: one safetensors file, replaced atomically, never a pickle."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer

from ghnqat_sdk.errors import ArgumentError, CheckpointError, first_few
from ghnqat_sdk.files import digest, make_folder, write_atomically
from ghnqat_sdk.training.folder import CHECKPOINT_FILE, LOCK_FILE

_MOST_NAMED = 3


def save_training_state(
    folder: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
) -> None:
    """Write tensors and JSON-able facts (step, counters) as one file in `folder`.

    Raises:
        CheckpointError: it cannot be written; the one before stays.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"facts": json.dumps(dict(facts)), "sha256": digest(contiguous)}
    with writing(folder):
        write_atomically(folder / CHECKPOINT_FILE, save(contiguous, metadata))


def pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON takes it: its tensors go to `tensors`, named by their path from `name` on.

    A tensor comes back with its dimensions in memory as they were: products of others round
    differently.
    """
    if isinstance(value, Tensor):
        order = sorted(range(value.ndim), key=value.stride, reverse=True)
        tensors[name] = value.permute(order)
        in_order = order == list(range(value.ndim))
        return {"tensor": name} if in_order else {"tensor": name, "order": order}
    if isinstance(value, Mapping):
        return {str(key): pack(inner, f"{name}.{key}", tensors) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [pack(inner, f"{name}.{index}", tensors) for index, inner in enumerate(value)]
    return value


def unpack(packed: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `pack` packed; keys are strings and tuples are lists."""
    if isinstance(packed, dict):
        if "tensor" in packed and packed.keys() <= {"tensor", "order"}:
            tensor = tensors[packed["tensor"]]
            order = packed.get("order", range(tensor.ndim))
            return tensor.permute([order.index(dimension) for dimension in range(tensor.ndim)])
        return {key: unpack(inner, tensors) for key, inner in packed.items()}
    return [unpack(inner, tensors) for inner in packed] if isinstance(packed, list) else packed


def restore_optimizer(
    optimizer: Optimizer, packed: Any, tensors: Mapping[str, Tensor], chosen: Collection[str]
) -> None:
    """Give an optimizer the packed state of another.

    Args:
        optimizer: As its config made it.
        packed, tensors: Of the other.
        chosen: What the config says of groups, as weight_decay, which stays; other numbers in them
            are what an optimizer counts or adapts there.

    Raises:
        ValueError: the state belongs to parameters of other groups.
    """
    state = unpack(packed, tensors)
    state["state"] = {int(index): of_parameter for index, of_parameter in state["state"].items()}
    groups = optimizer.param_groups
    built = [{key: group[key] for key in group if key != "params"} for group in groups]
    kept = [{*group} - {*chosen} for group in state["param_groups"]]
    optimizer.load_state_dict(state)
    for group, own, of_state in zip(optimizer.param_groups, built, kept, strict=True):
        group.update({key: value for key, value in own.items() if key not in of_state})


def give_weights(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give a module the tensors of another.

    Raises:
        ValueError: they are of other names or shapes; it says which, the first few of them.
    """
    own = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    unlike = [name for name in own | given if own.get(name) != given.get(name)]
    if not unlike:
        module.load_state_dict(dict(tensors))
        return
    described = [
        f"{name} is {given.get(name, 'missing')}, expected {own.get(name, 'none')}"
        for name in unlike
    ]
    raise ValueError(first_few(described, _MOST_NAMED))


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Make the folder of a run; what the disk refuses becomes our error, and what was there stays.

    Raises:
        CheckpointError: a file cannot be written.
    """
    try:
        make_folder(folder)
        yield
    except OSError as error:
        raise CheckpointError(
            f"The run in {str(folder)!r} cannot be written: {error}. Make room, or correct the "
            f"folder, and continue with --resume from the last checkpoint."
        ) from error


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Around a training of the run in `folder`, which no other process changes meanwhile.

    In this process one may begin before an interrupted one is forgotten, as in a notebook.

    Raises:
        ArgumentError: there is one already.
        CheckpointError: the folder cannot be written.
    """
    with writing(folder):
        lock = FileLock(folder / LOCK_FILE, timeout=0, is_singleton=True)
        try:
            lock.acquire()
        except Timeout as error:
            raise ArgumentError(
                f"Another process is training the run in {str(folder)!r}. Wait for its end, or "
                f"choose another folder."
            ) from error
    try:
        yield
    finally:
        lock.release()


def load_training_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """What `save_training_state` wrote to `folder`, or None where there is nothing yet.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = folder / CHECKPOINT_FILE
    if not path.exists():
        return None
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        stored = metadata.get("sha256")
        if stored is not None and stored != digest(tensors):
            raise ValueError("its contents do not match its checksum")
        return tensors, json.loads(metadata["facts"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{str(path)!r} is damaged ({error}). Delete it to start the run again, or restore a "
            f"copy of it."
        ) from error
