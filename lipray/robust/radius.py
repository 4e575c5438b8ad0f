"""Radii as a user writes them: exact fractions."""

from __future__ import annotations

from fractions import Fraction

from lipray.errors import UsageError
from lipray.robust.rounding import at_least

_FORM = "Write a positive number such as 36/255, 0.5 or 1e-2, in the units of the data (pixels in [0, 1])."


def parse_radius(text: str | float | Fraction, option: str = "--radius") -> Fraction:
    """An exact radius from text such as ``"36/255"`` or ``"0.1"`` (one tenth), or the exact value of a float.

    Raises:
        UsageError: it is no number, not positive, or beyond double precision.
    """
    try:
        radius = Fraction(text)
        if radius > 0 and at_least(radius) > 0.0:
            return radius
    except (ValueError, ZeroDivisionError, OverflowError, TypeError):
        raise UsageError(option, f"{text!r} is no radius", hint=_FORM) from None
    raise UsageError(option, f"{text!r} is not positive", hint=_FORM)


def radius_text(radius: Fraction) -> str:
    """A radius as it would be written: decimals where they are short, 36/255 rather than 12/85."""
    decimal = f"{float(radius):.6g}"
    if Fraction(decimal) == radius:
        return decimal
    if 255 % radius.denominator == 0:
        return f"{radius.numerator * (255 // radius.denominator)}/255"
    return str(radius)
