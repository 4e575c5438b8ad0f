"""What a way of bounding returns, and the words for what kind of bound that is."""

from __future__ import annotations

from dataclasses import dataclass

PROVEN = "certified"
"""An upper bound recomputed by lipray's verifier, rounding included."""
VALUE = "solver's value"
"""What a solver reports as its optimum: as good as its tolerances, no certificate."""
FLOATING = "floating point"
"""A formula that is an upper bound in exact arithmetic; its rounding is not looked at."""
PUBLISHED = "published"
"""Somebody's figure, quoted."""
BOX = "box-restricted"
"""An upper bound for inputs of a box only."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A bound, and what there is to say of it.

    ``proven`` is what lipray's verifier proves from the same multipliers, ``None`` where there are none. ``ended`` is
    how the work ended in the words of who did it, ``note`` what a reader must know.
    """

    bound: float | None
    kind: str
    proven: float | None = None
    ended: str = ""
    note: str = ""


class NotHereError(Exception):
    """A way that cannot be gone on this network, or on this machine; the text says why."""
