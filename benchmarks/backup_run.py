"""Keep a stable run in one small file that replaces the one before, and bring it back.

    python benchmarks/backup_run.py runs/stable backups/stable.safetensors.xz
    python benchmarks/backup_run.py runs/stable backups/stable.safetensors.xz --restore

The file holds the averaged hypernetwork and the projections of its hints in half precision, the
teacher's file, the config and the progress, compressed, at most 15 MB. A restored run goes on from
the average, and its optimizer, whose state is left out, starts anew. --restore writes run.json,
checkpoint.safetensors and teacher.safetensors into a folder that holds no run; the teacher's
features are computed again, into features/ beside them. Then:

    ghnqat-train run --data data/cifar10 --output runs/stable --resume --steps 100000
"""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import common
import torch
from safetensors.torch import load, save
from torch import Tensor

from ghnqat_sdk.errors import ArgumentError, CheckpointError, GhnqatError
from ghnqat_sdk.files import digest, write_atomically
from ghnqat_sdk.training.checkpoint import load_training_state, save_training_state, writing
from ghnqat_sdk.training.config import RunConfig, load_config
from ghnqat_sdk.training.folder import RUN_FILE
from ghnqat_sdk.training.hints import HintConfig

MOST_BYTES = 15_000_000
FORMAT = 2
MODEL, AVERAGE, TEACHER = "model.", "average.module.", "teacher"
TEACHER_FILE = "teacher.safetensors"


def backup(folder: Path, path: Path) -> int:
    """Write the run in `folder` to `path`, in place of what is there; returns the bytes.

    Raises:
        ArgumentError: no run there, or one that takes too many bytes.
        CheckpointError: a file is damaged, or cannot be read or written.
    """
    config = load_config(folder / RUN_FILE)
    state = load_training_state(folder)
    if state is None:
        raise ArgumentError(f"{str(folder)!r} holds no state. Name the folder of a run.")
    tensors, facts = state
    left_out = ("optimizer.", MODEL)
    packed = {n: halved(n, t) for n, t in tensors.items() if not n.startswith(left_out)}
    if config.hints is not None:
        content = file_content(Path(config.hints.teacher))
        packed[TEACHER] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    told = {"format": FORMAT, "config": portable(config), "facts": facts | {"optimizer": None}}
    metadata = {"run": json.dumps(told), "sha256": digest(packed)}
    content = lzma.compress(save(packed, metadata))
    if len(content) > MOST_BYTES:
        raise ArgumentError(
            f"The backup takes {len(content):,} bytes, and {MOST_BYTES:,} is the most that goes "
            f"into the repository. Keep a copy of {str(folder)!r} elsewhere."
        )
    with writing(path.parent):
        write_atomically(path, content)
    return len(content)


def restore(path: Path, folder: Path) -> RunConfig:
    """Write the run in `path` to `folder`.

    Raises:
        ArgumentError: the folder holds a run.
        CheckpointError: the file is damaged, or the folder cannot be written.
    """
    if (folder / RUN_FILE).exists():
        raise ArgumentError(f"{str(folder)!r} holds a run. Choose another folder.")
    tensors, told = opened(path)
    config = RunConfig.model_validate(told["config"])
    teacher = tensors.pop(TEACHER, None)
    state = {n: t.float() if t.is_floating_point() else t for n, t in tensors.items()}
    averages = [name for name in state if name.startswith(AVERAGE)]
    state |= {MODEL + name.removeprefix(AVERAGE): state[name].clone() for name in averages}
    save_training_state(folder, state, told["facts"])
    with writing(folder):
        if config.hints is not None and teacher is not None:
            write_atomically(folder / TEACHER_FILE, teacher.numpy().tobytes())
            places = {"teacher": folder / TEACHER_FILE, "features": folder / "features"}
            hints = config.hints.model_copy(update={k: str(v) for k, v in places.items()})
            config = config.model_copy(update={"hints": hints})
        write_atomically(folder / RUN_FILE, config.model_dump_json(indent=2).encode())
    return config


def halved(name: str, tensor: Tensor) -> Tensor:
    half = tensor.half() if tensor.is_floating_point() else tensor
    if not half.isfinite().all():
        raise ArgumentError(f"{name!r} is not finite in half precision: the run diverged.")
    return half


def portable(config: RunConfig) -> dict[str, Any]:
    """The config without paths of the machine that it ran on."""
    changes: dict[str, Any] = {"initial": None}  # which the state replaces
    if config.hints is not None:
        names = ("teacher", "features")
        default = {name: HintConfig.model_fields[name].default for name in names}
        changes["hints"] = config.hints.model_copy(update=default)
    return config.model_copy(update=changes).model_dump(mode="json")


def opened(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of a backup, and what it says about them."""
    try:
        content = lzma.decompress(path.read_bytes())
        size = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + size])["__metadata__"]
        tensors = load(content)
        told = json.loads(metadata["run"])
        if metadata["sha256"] != digest(tensors) or told["format"] != FORMAT:
            raise ValueError("its contents do not match its checksum and format")
    except Exception as error:  # of the file system, of lzma, of safetensors, or of what is in it
        raise CheckpointError(
            f"{str(path)!r} is no whole backup: {error!r:.200}. Name one that this command wrote."
        ) from error
    return tensors, told


def file_content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"The teacher {str(path)!r} cannot be read: {error}. Call this where the run started."
        ) from error


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("file", type=Path, help="the backup, a .safetensors.xz")
    parser.add_argument("--restore", action="store_true", help="from the file into the folder")
    options = parser.parse_args()
    try:
        if options.restore:
            restore(options.file, options.run)
            print(f"{options.run}: restored")
        else:
            print(f"{options.file}: {backup(options.run, options.file):,} bytes")
    except GhnqatError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
