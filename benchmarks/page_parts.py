"""The parts of docs/results.md that scripts write: what stands between two comments with a name."""

from __future__ import annotations

from pathlib import Path

from ghnqat_sdk.files import write_atomically

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results.md"


def read_part(name: str, page: Path = PAGE) -> str:
    """What stands in a page under a name.

    Raises:
        ValueError: the page has no such part.
    """
    return _split(name, page)[1]


def write_part(name: str, text: str, page: Path = PAGE) -> None:
    """Put `text` in its place.

    Raises:
        ValueError: the page has no such part.
    """
    before, _, after = _split(name, page)
    write_atomically(page, f"{before}{text}{after}".encode())


def _split(name: str, page: Path) -> tuple[str, str, str]:
    """Before, in and after the part, the comments outside of it."""
    start, end = f"<!-- {name}: written by a script -->\n\n", f"\n<!-- end of {name} -->"
    before, found, rest = page.read_text(encoding="utf-8").partition(start)
    text, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"{page} has no part {name!r}: write {start.strip()} and {end.strip()}")
    return before + start, text, end + after
