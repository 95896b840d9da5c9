"""The file that a ranking goes on from: a line of JSON for each network that is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.files import is_nameable
from ghnqat_sdk.search.measuring import Line

_BEGINS = '{"study": '
_NEEDED = {"name", "network", "accuracy", "loss", "kept", "values"}


def results_file(path: Any) -> Path:
    """Where lines can be appended.

    Raises:
        ArgumentError: no path, or one in a folder that is not there.
    """
    named = isinstance(path, (str, Path)) and is_nameable(path)
    if not named or not Path(path).parent.is_dir():
        raise ArgumentError(
            f"results={str(path)!r} is no file in a folder that is there. Write the name of one, "
            "which may be a new file, such as 'ranking.jsonl'."
        )
    return Path(path)


def known_lines(path: Path, study: str) -> dict[str, dict[str, Line]]:
    """Lines of the same study by the name and the digest of the network, but for networks that
    failed; one cut off when its process was killed is passed over.

    Raises:
        ArgumentError: the file cannot be read, or is one of something else, to which nothing must
            be appended.
    """
    lines: dict[str, dict[str, Line]] = {}
    for text in _texts(path):
        if not (_BEGINS.startswith(text) or text.startswith(_BEGINS)):
            raise ArgumentError(
                f"results={str(path)!r} holds lines that are no results of rank_architectures. "
                "Write the name of another file, which may be a new one."
            )
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if line.pop("study") == study and line.keys() >= _NEEDED:
            lines.setdefault(line["name"], {})[line["network"]] = line
    return lines


def append_line(path: Path, study: str, line: Line) -> None:
    """Append what is known of one network."""
    with path.open("a+b") as file:
        if file.tell() and not path.read_bytes().endswith(b"\n"):
            file.write(b"\n")
        file.write(json.dumps({"study": study, **line}).encode() + b"\n")


def _texts(path: Path) -> list[str]:
    if not path.exists():
        return []
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError as error:
        raise ArgumentError(
            f"results={str(path)!r} cannot be read: {error.strerror}. Write another file's name."
        ) from error
