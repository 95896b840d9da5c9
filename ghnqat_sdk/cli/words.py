"""Advice of the library, which speaks Python, in the words of a command line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from ghnqat_sdk.bits import FOR_ALL_OTHERS, FOR_EXAMPLE
from ghnqat_sdk.errors import GhnqatError

OF_BITS = {
    FOR_EXAMPLE: "Write, for example, --bits 'stem*=8,8;*=4,4'",
    FOR_ALL_OTHERS: "Add one for all others, as the last: '*=4,4'",
}


def said(text: str, words: Mapping[str, str]) -> str:
    """`text` with what `words` have for an advice in Python."""
    for advice, instead in words.items():
        text = text.replace(advice, instead)
    return text


@contextmanager
def advising(words: Mapping[str, str]) -> Iterator[None]:
    """Errors from inside are said in `words`."""
    try:
        yield
    except GhnqatError as error:
        text = said(str(error), words)
        if text == str(error):
            raise
        raise type(error)(text) from error
