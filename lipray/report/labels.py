"""Names from files of unknown origin as labels: without control characters, and no longer than there is room for."""

from __future__ import annotations

import unicodedata


def plain(text: str) -> str:
    """The text with a mark in the place of what cannot be written: control characters, halves of characters."""
    return "".join("\ufffd" if unicodedata.category(sign) in ("Cc", "Cs", "Cn") else sign for sign in text)


def short(text: str, most: int = 28) -> str:
    """The text as a label of at most so many characters; what is left out is in the middle."""
    text = plain(text)
    if len(text) <= most:
        return text
    tail = (most - 1) // 3
    return f"{text[: most - 1 - tail]}…{text[len(text) - tail :]}"
