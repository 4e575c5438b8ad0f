"""Directed rounding on arrays: distances from above, margins and quotients from below.

IEEE 754 rounds +, -, *, / and sqrt to the nearest double, so that the exact result lies strictly between the two
neighbours of the rounded one, or is it: stepping to the neighbour gives a bound that is not attained.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

UNIT = 2.0**-53


def up(values: np.ndarray) -> np.ndarray:
    """The next doubles above; zeros, which come of exact zeros only where this is used, stay."""
    raised: np.ndarray = np.where(values == 0.0, 0.0, np.nextafter(values, math.inf))
    return raised


def distances_up(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Upper bounds of ‖a - b‖₂ for the rows of two arrays (N, n), or arrays that broadcast to it; 0 for equal rows.

    A difference of doubles is 0 only where they are equal (underflow is gradual), and otherwise its next double is
    above it; so are the next doubles of the squares, also where those underflow. A sum of n numbers that are not
    negative is at least 1 - γ_{n-1} times the exact one, in any order (Higham 2002, section 4.2), and
    1 / (1 - γ_{n-1}) <= 1 + 4 (n + 2) u wherever n u <= 1/4. The root is correctly rounded.
    """
    apart = up(np.abs(first.astype(np.float64) - second.astype(np.float64)))
    squares = np.where(apart == 0.0, 0.0, np.nextafter(apart * apart, math.inf))
    total = squares.sum(axis=-1)
    raised = up(total * (1.0 + 4.0 * (squares.shape[-1] + 2) * UNIT))
    return up(np.sqrt(raised))


def product_up(factor: float, values: np.ndarray) -> np.ndarray:
    """Upper bounds of products of upper bounds: 0 where either is 0, also beside infinity, as in ``mul_up``."""
    if factor == 0.0:
        return np.zeros_like(values)
    with np.errstate(invalid="ignore", over="ignore"):
        product = np.nextafter(factor * values, math.inf)
    raised: np.ndarray = np.where(values == 0.0, 0.0, values if factor == 1.0 else product)
    return raised


def margins_down(above: np.ndarray, below: np.ndarray, doubt: np.ndarray) -> np.ndarray:
    """Numbers below a - b, where a and b are known up to errors whose sum is at most ``doubt`` before it is rounded.

    What is not finite is below everything: nothing is known of it.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        gap = np.nextafter(above - below, -math.inf)
        margin = np.nextafter(gap - np.nextafter(doubt, math.inf), -math.inf)
    known = np.isfinite(above) & np.isfinite(below) & np.isfinite(doubt)
    lowered: np.ndarray = np.where(known, margin, -math.inf)
    return lowered


def quotients_down(margins: np.ndarray, constants: np.ndarray) -> np.ndarray:
    """Numbers below m / K: 0 where m is not positive, infinity where it is and K is 0."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        quotient = np.maximum(np.nextafter(margins / constants, -math.inf), 0.0)
    lowered: np.ndarray = np.where(margins > 0.0, np.where(constants == 0.0, math.inf, quotient), 0.0)
    return lowered


def at_least(value: Fraction) -> float:
    """The least double that is not below an exact number, so that a double reaches one where it reaches the other.

    Raises:
        OverflowError: there is none but infinity.
    """
    nearest = float(value)
    found = nearest if Fraction(nearest) >= value else math.nextafter(nearest, math.inf)
    if math.isinf(found):
        raise OverflowError(str(value))
    return found


def at_most(value: Fraction) -> float:
    """The largest double that is not above an exact number.

    Raises:
        OverflowError: it is beyond all doubles.
    """
    reached = at_least(value)
    return reached if Fraction(reached) == value else math.nextafter(reached, -math.inf)
