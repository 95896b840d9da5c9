"""Hypernetworks on disk and on the Hub: config.json and model.safetensors, never a pickle."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ghnqat_sdk.errors import ArgumentError, CheckpointError
from ghnqat_sdk.files import digest, write_atomically
from ghnqat_sdk.hypernetwork.ghn import GraphHypernetwork, HypernetworkConfig
from ghnqat_sdk.hypernetwork.names import CONFIG_FILE, DEFAULT, REPO_ID, WEIGHTS_FILE
from ghnqat_sdk.version import __version__

_EMBEDDED = Path(__file__).parent / "weights"
_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
# What every file of format 2 holds: the package's defaults may change, the meaning of a file may not.
_ALWAYS = ("format", "encoder", "decoder", "num_classes", "images", "s_max", "ranges", "vocabulary")
_CARD = """---
library_name: ghnqat-sdk
tags: [ghnqat-sdk, graph-hypernetwork, quantization, quantization-aware-training]
---
A graph hypernetwork (GHN-QAT, Yun & Wong 2023): it predicts the weights of quantized CNNs with {classes} classes.
```python
import ghnqat_sdk, torchvision
model = torchvision.models.resnet18(num_classes={classes})
qmodel = ghnqat_sdk.predict_quantized_params(model, bits=(4, 4), hypernetwork="{repo_id}")
```
"""


def save_pretrained(
    hypernetwork: GraphHypernetwork, folder: str | Path, *, dtype: torch.dtype | None = None
) -> Path:
    """Write `config.json` and `model.safetensors` into `folder`, made if needed, and return it.

    A reader meets each file old or new, never half. `dtype` is the file's; loading gives float32 in any case.

    Raises:
        ArgumentError: an argument cannot be meant, or the weights are not finite in `dtype`.
        CheckpointError: the folder cannot be written.
    """
    if not isinstance(folder, (str, os.PathLike)) or (
        os.path.exists(folder) and not os.path.isdir(folder)
    ):
        raise ArgumentError(
            f"folder={folder!r} is not a folder. Write save_pretrained(hypernetwork, 'my-ghn')."
        )
    files = _contents(hypernetwork, dtype)
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
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
    """Load a hypernetwork: float32, on the CPU, in evaluation mode. Nothing in its files is ever executed.

    Args:
        source: "default" for the weights that ship with the package, else a local folder, else a Hub repo id
            "owner/name". A `Path` is always a local folder.
        revision: Branch, tag or commit of the Hub repo; main if omitted.
        cache_dir: Where downloads are kept; the Hub's usual cache if omitted.

    Raises:
        ArgumentError: an argument cannot be meant.
        CheckpointError: the files are missing, damaged, of another version, or cannot be downloaded.
    """
    folder = _locate(source, revision, cache_dir)
    try:
        if folder == _EMBEDDED:
            checksum = hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest()
            if checksum.encode() not in (folder / f"{WEIGHTS_FILE}.sha256").read_bytes():
                raise CheckpointError(
                    "The weights that ship with ghnqat-sdk are damaged. Reinstall the package."
                )
        return _read_weights(folder / WEIGHTS_FILE, _read_config(folder / CONFIG_FILE))
    except OSError as error:
        advice = (
            "Reinstall ghnqat-sdk"
            if folder == _EMBEDDED
            else "Name a folder that save_pretrained wrote"
        )
        raise CheckpointError(
            f"Cannot read {CONFIG_FILE} and {WEIGHTS_FILE}: {error}. {advice}."
        ) from error


def push_to_hub(
    hypernetwork: GraphHypernetwork,
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    commit_message: str = "Upload hypernetwork",
) -> str:
    """Upload to the Hub repo "owner/name", made if needed, as one commit; return the commit's URL.

    A model card is added where the repo has none. `token` defaults to the one of `hf auth login`.

    Raises:
        ArgumentError: an argument cannot be meant, or the weights are not finite.
        CheckpointError: the Hub cannot be reached, or refuses.
    """
    if not isinstance(repo_id, str) or not REPO_ID.fullmatch(repo_id):
        raise ArgumentError(
            f"repo_id={repo_id!r} is not 'owner/name'. Write push_to_hub(hypernetwork, 'me/my-ghn')."
        )
    files = _contents(hypernetwork, None)
    with _hub(f"Cannot push to {repo_id!r}", token) as hub:
        from huggingface_hub import CommitOperationAdd

        hub.create_repo(repo_id, private=private, exist_ok=True)
        if not hub.file_exists(repo_id, "README.md"):
            files["README.md"] = _CARD.format(
                repo_id=repo_id, classes=hypernetwork.config.num_classes
            ).encode()
        # Not upload_folder, which may spread the files over several commits.
        additions = [CommitOperationAdd(name, content) for name, content in files.items()]
        return str(hub.create_commit(repo_id, additions, commit_message=commit_message).commit_url)


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
    if source == DEFAULT or os.path.isdir(source):
        if revision is not None:
            raise ArgumentError(
                f"revision={revision!r} is for Hub repos, and {str(source)!r} is local. Leave it out."
            )
        return _EMBEDDED if source == DEFAULT else Path(source)
    if not isinstance(source, str) or not REPO_ID.fullmatch(source) or os.path.exists(source):
        raise CheckpointError(f"{str(source)!r} is not a folder. {expected}")
    if revision is not None and not (
        isinstance(revision, str) and revision and ".." not in revision
    ):
        raise ArgumentError(
            f"revision={revision!r} is not a name. Write a branch, tag or commit, or leave it out."
        )
    with _hub(f"Cannot load {source!r}: no local folder has that name, and from the Hub") as hub:
        if folder := _cached_without_hub(hub, source, revision, cache_dir):
            return folder
        config = Path(
            hub.hf_hub_download(source, CONFIG_FILE, revision=revision, cache_dir=cache_dir)
        )
        # The cache's folders are named by commit: both files come from the same one.
        hub.hf_hub_download(source, WEIGHTS_FILE, revision=config.parent.name, cache_dir=cache_dir)
    return config.parent


def _cached_without_hub(
    hub: Any, source: str, revision: str | None, cache_dir: str | Path | None
) -> Path | None:
    """The cached folder where the Hub cannot be reached, or None where it answers, whatever it says.

    The client tries for half a minute before it says that it cannot connect; asked once, a misspelt path ends at once.
    """
    from huggingface_hub import constants, errors, hf_hub_url, try_to_load_from_cache

    url = hf_hub_url(source, CONFIG_FILE, revision=revision, endpoint=hub.endpoint)
    try:
        hub.get_hf_file_metadata(url=url, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except errors.HfHubHTTPError:
        return None
    except Exception:
        config = try_to_load_from_cache(source, CONFIG_FILE, cache_dir, revision)
        if not isinstance(config, str) or not Path(config).with_name(WEIGHTS_FILE).exists():
            raise
        return Path(config).parent
    return None


@contextmanager
def _hub(doing: str, token: str | None = None) -> Iterator[Any]:
    """A client for the Hub, whose errors become ours."""
    from huggingface_hub import HfApi, errors

    reasons: tuple[tuple[type[Exception], str], ...] = (
        (errors.HFValidationError, "that is not a repo id. Write 'owner/name'."),
        (
            errors.OfflineModeIsEnabled,
            "HF_HUB_OFFLINE is set, and the cache lacks the files. Unset it to go online.",
        ),
        (
            errors.GatedRepoError,
            "the repo is gated. Accept its terms on its page, then run `hf auth login`.",
        ),
        (
            errors.RepositoryNotFoundError,
            "there is no such repo, or it is private. Correct it, or `hf auth login`.",
        ),
        (
            errors.RevisionNotFoundError,
            "there is no such revision. Write a branch, tag or commit, or leave it out.",
        ),
        (
            errors.RemoteEntryNotFoundError,
            f"{CONFIG_FILE} or {WEIGHTS_FILE} is missing. Upload it by push_to_hub.",
        ),
        (
            errors.HfHubHTTPError,
            "the Hub refused. Check the token (`hf auth login`) and its permissions, or retry.",
        ),
        (
            Exception,
            "the Hub cannot be reached. Check the connection, HF_ENDPOINT and the cache folder.",
        ),
    )
    try:
        yield HfApi(token=token, library_name="ghnqat-sdk", library_version=__version__)
    except Exception as error:
        cause = (
            error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) else None
        ) or error
        reason = next(reason for kind, reason in reasons if isinstance(cause, kind))
        raise CheckpointError(f"{doing}: {reason} ({cause!r:.200})") from error


def _read_config(path: Path) -> HypernetworkConfig:
    try:
        if path.stat().st_size > 1_000_000:
            raise ValueError("it is larger than 1 MB")
        config = HypernetworkConfig.model_validate_json(path.read_bytes())
        if missing := [name for name in _ALWAYS if name not in config.model_fields_set]:
            raise ValueError(f"missing: {', '.join(missing)}")
        if "other" not in config.vocabulary or len(set(config.vocabulary)) < len(config.vocabulary):
            raise ValueError(
                "the vocabulary needs 'other' for unknown node types, and each name once"
            )
        return config
    except ValueError as error:
        raise CheckpointError(
            f"{str(path)!r}: {_summary(error)}. Restore the file, or upgrade ghnqat-sdk."
        ) from error


def _summary(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    problems = error.errors(include_url=False)
    if version := [p["input"] for p in problems if p["loc"] == ("format",)]:
        return f"its format is {version[0]!r}, and ghnqat-sdk {__version__} reads format 2"
    lines = [f"{'.'.join(map(str, p['loc'])) or 'JSON'}: {p['msg']}" for p in problems]
    return "; ".join(lines[:3]) + (f"; and {len(lines) - 3} more" if len(lines) > 3 else "")


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
                    f"{wrong[0]!r} is {got}, and {want} by {CONFIG_FILE} ({len(wrong)} tensors differ)"
                )
            tensors = {name: file.get_tensor(name) for name in expected}
            if (file.metadata() or {}).get(
                "sha256", found_digest := digest(tensors)
            ) != found_digest:
                raise ValueError("its contents do not match its checksum")
        hypernetwork.float().to_empty(device="cpu").load_state_dict(tensors)
        if name := _not_finite(hypernetwork.state_dict()):
            raise ValueError(f"{name!r} holds NaN or infinity")
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"{str(path)!r} is damaged, or not the safetensors file of this config: {error}. Restore the file that "
            "save_pretrained wrote; a file from torch.save is never read, since loading one can run code."
        ) from error
    return hypernetwork.eval()


def _not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    return next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), None)
