"""Numbers as text a reader can trust: upper bounds rounded up, lower bounds down, at the digits shown."""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal


def upper_text(value: float | None, digits: int = 6) -> str:
    """An upper bound to ``digits`` significant digits, never below the value; ``None`` is infinity."""
    return "∞" if value is None or math.isinf(value) else _text(value, digits, ROUND_CEILING)


def lower_text(value: float, digits: int = 6) -> str:
    """A lower bound to ``digits`` significant digits, never above the value."""
    return _text(value, digits, ROUND_FLOOR)


def _text(value: float, digits: int, rounding: str) -> str:
    if value == 0.0:
        return "0"
    # Decimal(value) is exact, so the text is on the right side of the number itself, not of a rounded copy.
    rounded = Context(prec=digits, rounding=rounding).plus(Decimal(value))
    if -4 <= rounded.adjusted() < 9:
        return f"{rounded.normalize():f}"
    return f"{rounded.normalize():E}".replace("E", "e")


def bytes_text(count: float) -> str:
    """A number of bytes in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def seconds_text(seconds: float) -> str:
    """A duration in the unit that suits it."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 100:
        return f"{seconds:.1f} s"
    if seconds < 6000:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def shape_text(shape: tuple[int, ...]) -> str:
    """A shape as factors."""
    return "×".join(map(str, shape)) if shape else "scalar"
