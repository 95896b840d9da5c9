"""A hypernetwork's config.json, read and checked."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from pydantic import ValidationError

from ghnqat_sdk.errors import CheckpointError, problems
from ghnqat_sdk.hypernetwork.decoder import DecoderConfig
from ghnqat_sdk.hypernetwork.ghn import HypernetworkConfig
from ghnqat_sdk.version import __version__

# What every file of format 2 holds: the package's defaults may change, the meaning of a file may
# not.
_ALWAYS = ("format", "encoder", "decoder", "num_classes", "images", "s_max", "ranges", "vocabulary")


def read_config(path: Path) -> HypernetworkConfig:
    """The config in a file.

    Raises:
        CheckpointError: it is none of this format; the message says what to do.
    """
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
        return _as_it_was(config)
    except ValueError as error:
        raise CheckpointError(f"{str(path)!r}: {_summary(error)}") from error


def _as_it_was(config: HypernetworkConfig) -> HypernetworkConfig:
    """With what is said nowhere in files that are older than it."""
    decoder = config.decoder
    if not isinstance(decoder, DecoderConfig) or "follows" in decoder.model_fields_set:
        return config
    return config.model_copy(update={"decoder": decoder.model_copy(update={"follows": False})})


def _summary(error: ValueError) -> str:
    """What is wrong with a config, and what to do about it."""
    advice = "Restore the file, or upgrade ghnqat-sdk."
    if not isinstance(error, ValidationError):
        return f"{error}. {advice}"
    if formats := [one["input"] for one in error.errors() if one["loc"] == ("format",)]:
        return _format_advice(formats[0])
    return f"{problems(error, most=3)}. {advice}"


def _format_advice(found: object) -> str:
    """What to do about a config of another format, newer or older than the one that this version
    reads."""
    (own,) = get_args(HypernetworkConfig.model_fields["format"].annotation)
    fact = f"its format is {found!r:.20}, and ghnqat-sdk {__version__} reads format {own}"
    if not isinstance(found, int):
        return f"{fact}. Restore the file."
    if found > own:
        return f"{fact}. It is newer than your package: pip install --upgrade ghnqat-sdk."
    return (
        f"{fact}. It is too old: download it again (newest revision), or train it with this "
        f"version."
    )
