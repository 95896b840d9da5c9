"""Hypernetworks on disk and on the Hub: config.json and model.safetensors, never a pickle."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ghnqat_sdk.choices import require_switches
from ghnqat_sdk.errors import ArgumentError, CheckpointError
from ghnqat_sdk.files import digest, make_folder, require_folder, write_atomically
from ghnqat_sdk.hypernetwork.card import model_card, read_evaluations
from ghnqat_sdk.hypernetwork.config_file import read_config
from ghnqat_sdk.hypernetwork.ghn import GraphHypernetwork, HypernetworkConfig
from ghnqat_sdk.hypernetwork.hub import connected, download
from ghnqat_sdk.hypernetwork.names import (
    CARD_FILE,
    CHECKSUM_FILE,
    CONFIG_FILE,
    DEFAULT,
    HUB,
    HUB_REPO,
    REPO_ID,
    WEIGHTS_FILE,
)

_EMBEDDED = Path(__file__).parent / "weights"
_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}


def save_pretrained(
    hypernetwork: GraphHypernetwork, folder: str | Path, *, dtype: torch.dtype | None = None
) -> Path:
    """Write `config.json` and `model.safetensors` into `folder`, made if needed, and return it.

    A reader meets each file old or new, never half. `dtype` is the file's; loading gives float32 in
    any case.

    Raises:
        ArgumentError: an argument cannot be meant, or the weights are not finite in `dtype`.
        CheckpointError: the folder cannot be written.
    """
    folder = require_folder(folder, "save_pretrained(hypernetwork, 'my-ghn')")
    files = _contents(hypernetwork, dtype)
    try:
        make_folder(folder)
        for name, content in files.items():
            write_atomically(folder / name, content)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"Cannot write to {str(folder)!r} ({error}). Name another folder."
        ) from error
    return folder


def load_pretrained(
    source: str | Path = DEFAULT,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
) -> GraphHypernetwork:
    """Load a hypernetwork: float32, on the CPU, in evaluation mode. Nothing in its files is ever
    executed.

    Args:
        source: "default" for the weights that ship with the package, "hub" for the newest ones that
            its authors published, else a local folder, else a Hub repo id "owner/name". A `Path` is
            always a local folder.
        revision: Branch, tag or commit of the Hub repo; main if omitted.
        cache_dir: Where downloads are kept; the Hub's usual cache if omitted.

    Raises:
        ArgumentError: an argument cannot be meant.
        CheckpointError: the files are missing, damaged, of another version, or cannot be
            downloaded.
    """
    folder = _locate(source, revision, cache_dir)
    try:
        if folder == _EMBEDDED:
            checksum = (folder / CHECKSUM_FILE).read_bytes()
            if checksum != checksum_of((folder / WEIGHTS_FILE).read_bytes()):
                raise CheckpointError(
                    "The weights that ship with ghnqat-sdk are damaged. Reinstall the package."
                )
        return _read_weights(folder / WEIGHTS_FILE, read_config(folder / CONFIG_FILE))
    except OSError as error:
        advice = (
            "Reinstall ghnqat-sdk"
            if folder == _EMBEDDED
            else "Name a folder that save_pretrained wrote"
        )
        raise CheckpointError(
            f"Cannot read {CONFIG_FILE} and {WEIGHTS_FILE}: {error}. {advice}."
        ) from error


def hypernetwork_of(
    given: str | Path | GraphHypernetwork, *, revision: str | None = None
) -> GraphHypernetwork:
    """A hypernetwork as it is, anything else by `load_pretrained`; the one that ships is read once,
    so nobody must change it or hand it out."""
    if isinstance(given, GraphHypernetwork):
        return given
    if isinstance(given, str) and given == DEFAULT and revision is None:
        return _shipped()
    return load_pretrained(given, revision=revision)


@cache
def _shipped() -> GraphHypernetwork:
    with torch.inference_mode(False):  # others will use it outside
        return load_pretrained()


def push_to_hub(
    hypernetwork: GraphHypernetwork,
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    commit_message: str = "Upload hypernetwork",
    data: str | None = None,
    license: str | None = None,
    evaluations: Sequence[str | Path] = (),
) -> str:
    """Upload to the Hub repo "owner/name", made if needed, as one commit; return the commit's URL.

    The commit has `config.json`, `model.safetensors`, `model.safetensors.sha256` and a model card.
    A card that the repo has stays, unless something is said here for a new one.

    Args:
        hypernetwork: What to publish.
        repo_id: Where.
        private: Whether a repo that is made here is private.
        token: Of the Hub; the one of `hf auth login` if omitted.
        commit_message: Its first line.
        data: For the card: the data set that it was trained on, such as "CIFAR-10".
        license: For the card: of the weights, by the Hub's names, such as "apache-2.0".
        evaluations: For the card: files that `ghnqat evaluate --json FILE` wrote.

    Raises:
        ArgumentError: an argument cannot be meant, the weights are not finite, or a file is no
            evaluation.
        CheckpointError: the Hub cannot be reached, or refuses.
    """
    if not isinstance(repo_id, str) or not REPO_ID.fullmatch(repo_id):
        raise ArgumentError(
            f"repo_id={repo_id!r} is not 'owner/name'. Write push_to_hub(hypernetwork, "
            "'me/my-ghn')."
        )
    require_switches(private=private)
    files = _contents(hypernetwork, None)
    files[CHECKSUM_FILE] = checksum_of(files[WEIGHTS_FILE])
    card = model_card(
        hypernetwork.config,
        repo_id,
        data=data,
        license=license,
        evaluations=read_evaluations(evaluations),
    )
    with connected(f"Cannot push to {repo_id!r}", token) as hub:
        from huggingface_hub import CommitOperationAdd

        hub.create_repo(repo_id, private=private, exist_ok=True)
        if data or license or evaluations or not hub.file_exists(repo_id, CARD_FILE):
            files[CARD_FILE] = card.encode()
        # Not upload_folder, which may spread the files over several commits.
        additions = [CommitOperationAdd(name, content) for name, content in files.items()]
        return str(hub.create_commit(repo_id, additions, commit_message=commit_message).commit_url)


def checksum_of(weights: bytes) -> bytes:
    """The checksum file of a weights file, as `sha256sum` writes it."""
    return f"{hashlib.sha256(weights).hexdigest()}  {WEIGHTS_FILE}\n".encode()


def _contents(hypernetwork: GraphHypernetwork, dtype: torch.dtype | None) -> dict[str, bytes]:
    """File name to content, the weights first: a new config must never describe old weights."""
    if not isinstance(hypernetwork, GraphHypernetwork):
        raise ArgumentError(
            f"{type(hypernetwork).__name__} is no GraphHypernetwork. If it wraps one, pass .module."
        )
    if dtype is not None and dtype not in _DTYPES.values():
        raise ArgumentError(
            f"dtype={dtype!r} is not a floating dtype. Write dtype=torch.float16, or leave it out."
        )
    tensors = {
        name: t.detach().to("cpu", dtype).contiguous()
        for name, t in hypernetwork.state_dict().items()
    }
    if name := _not_finite(tensors):
        raise ArgumentError(
            f"{name!r} is not finite as {tensors[name].dtype}: omit dtype, or save other weights."
        )
    config = hypernetwork.config.model_dump_json(indent=2) + "\n"
    return {
        WEIGHTS_FILE: save(tensors, {"format": "pt", "sha256": digest(tensors)}),
        CONFIG_FILE: config.encode(),
    }


def _locate(source: Any, revision: Any, cache_dir: str | Path | None) -> Path:
    """The local folder that `source` stands for, downloaded if need be."""
    expected = (
        "Write 'default', a folder that save_pretrained wrote, or a Hub repo id 'owner/name'."
    )
    if not isinstance(source, (str, os.PathLike)):
        raise ArgumentError(f"Cannot load {source!r}. {expected}")
    published = source == HUB
    if source == DEFAULT or (os.path.isdir(source) and not published):
        if revision is not None:
            raise ArgumentError(
                f"revision={revision!r} is for Hub repos, and {str(source)!r} is local. Leave it "
                "out."
            )
        return _EMBEDDED if source == DEFAULT else Path(source)
    repo_id = HUB_REPO if published else str(source)
    is_local = not isinstance(source, str) or (os.path.exists(source) and not published)
    if is_local or not REPO_ID.fullmatch(repo_id):
        raise CheckpointError(f"{str(source)!r} is not a folder. {expected}")
    if revision is not None and not (
        isinstance(revision, str) and revision and ".." not in revision
    ):
        raise ArgumentError(
            f"revision={revision!r} is not a name. Write a branch, tag or commit, or leave it out."
        )
    return download(repo_id, revision, cache_dir)


def _read_weights(path: Path, config: HypernetworkConfig) -> GraphHypernetwork:
    """The hypernetwork, which takes memory only once the file's header fits the config."""
    with torch.device("meta"):
        hypernetwork = GraphHypernetwork(config)
    expected = {name: list(t.shape) for name, t in hypernetwork.state_dict().items()}
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            found = {
                n: s.get_shape() if s.get_dtype() in _DTYPES else s.get_dtype()
                for n, s in slices.items()
            }
            if wrong := sorted(n for n in {*found, *expected} if found.get(n) != expected.get(n)):
                want, got = (shapes.get(wrong[0], "absent") for shapes in (expected, found))
                raise ValueError(
                    f"{wrong[0]!r} is {got}, and {want} by {CONFIG_FILE} ({len(wrong)} tensors "
                    "differ)"
                )
            tensors = {name: file.get_tensor(name) for name in expected}
            stored = (file.metadata() or {}).get("sha256")
            if stored is not None and stored != digest(tensors):
                raise ValueError("its contents do not match its checksum")
        hypernetwork.float().to_empty(device="cpu").load_state_dict(tensors)
        if name := _not_finite(hypernetwork.state_dict()):
            raise ValueError(f"{name!r} holds NaN or infinity")
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"{str(path)!r} is damaged, or not the safetensors file of this config: {error}. "
            "Restore the file that save_pretrained wrote; a file from torch.save is never read, "
            "since loading one can run code."
        ) from error
    return hypernetwork.eval()


def _not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    return next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), None)
