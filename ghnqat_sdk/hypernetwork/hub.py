"""The Hugging Face Hub: downloads, and errors that say what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ghnqat_sdk.errors import CheckpointError
from ghnqat_sdk.hypernetwork.names import CONFIG_FILE, WEIGHTS_FILE
from ghnqat_sdk.version import __version__


def download(repo_id: str, revision: str | None, cache_dir: str | Path | None) -> Path:
    """The folder of the cache that holds the config and the weights of one commit.

    Raises:
        CheckpointError: no such repo, revision or file, no permission, or no connection.
    """
    with connected(
        f"Cannot load {repo_id!r}: no local folder has that name, and from the Hub"
    ) as hub:
        if folder := _cached_without_hub(hub, repo_id, revision, cache_dir):
            return folder
        config = Path(
            hub.hf_hub_download(repo_id, CONFIG_FILE, revision=revision, cache_dir=cache_dir)
        )
        # The cache's folders are named by commit: both files come from the same one.
        commit = config.parent.name
        hub.hf_hub_download(repo_id, WEIGHTS_FILE, revision=commit, cache_dir=cache_dir)
    return config.parent


def _cached_without_hub(
    hub: Any, repo_id: str, revision: str | None, cache_dir: str | Path | None
) -> Path | None:
    """The cached folder where the Hub cannot be reached, or None where it answers.

    The client tries for half a minute before it says that it cannot connect; asked once, a
    misspelt path ends at once.
    """
    from huggingface_hub import constants, errors, hf_hub_url, try_to_load_from_cache

    url = hf_hub_url(repo_id, CONFIG_FILE, revision=revision, endpoint=hub.endpoint)
    try:
        hub.get_hf_file_metadata(url=url, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except errors.HfHubHTTPError:
        return None
    except Exception:
        config = try_to_load_from_cache(repo_id, CONFIG_FILE, cache_dir, revision)
        if not isinstance(config, str) or not Path(config).with_name(WEIGHTS_FILE).exists():
            raise
        return Path(config).parent
    return None


@contextmanager
def connected(doing: str, token: str | None = None) -> Iterator[Any]:
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
