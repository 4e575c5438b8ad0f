"""Scalar operations on non-negative bounds, rounded upward.

IEEE 754 rounds +, *, / and sqrt to the nearest representable number: between the exact result and the
returned one lies no other double. The next double above the returned one is therefore at least the
exact result, whichever way the rounding went. Overflow gives infinity and underflow at least the smallest
denormal, both valid from above. All arguments are upper bounds: non-negative, infinity allowed, no NaN.
"""

from __future__ import annotations

import math
from collections.abc import Iterable


def up(value: float) -> float:
    """The next double above ``value``: at least the exact result that was rounded to ``value``."""
    return math.nextafter(value, math.inf)


def mul_up(a: float, b: float) -> float:
    """At least a * b. The rounded product is within one double of the exact one; step to the next.

    A factor 0 gives 0, even beside infinity: a map whose certified constant is exactly 0 is constant, so
    the composition is constant whatever is known of the other map. A factor 1 is exact.
    """
    if a == 0.0 or b == 0.0:
        return 0.0
    if a == 1.0 or b == 1.0:
        return b if a == 1.0 else a
    return up(a * b)


def add_up(a: float, b: float) -> float:
    """At least a + b. The rounded sum is within one double of the exact one; adding 0 is exact."""
    if a == 0.0 or b == 0.0:
        return a + b
    return up(a + b)


def sqrt_up(a: float) -> float:
    """At least sqrt(a). The square root is correctly rounded; step to the next double. 0 and 1 are exact."""
    if a in {0.0, 1.0}:
        return a
    return up(math.sqrt(a))


def sum_up(values: Iterable[float]) -> float:
    """At least the exact sum, and the same for every order of the terms.

    ``math.fsum`` adds exactly and rounds once, so the next double is at least the exact sum; where its
    exact partial sums overflow the answer is infinity.
    """
    terms = [value for value in values if value != 0.0]
    if len(terms) <= 1:
        return terms[0] if terms else 0.0
    try:
        return up(math.fsum(terms))
    except OverflowError:
        return math.inf


def product_up(values: Iterable[float]) -> float:
    """At least the exact product: ``mul_up`` from left to right, each step from above; 1 where empty.

    ``mul_up`` is monotone in both arguments, so an upper bound of a partial product stays one.
    """
    result = 1.0
    for value in values:
        result = mul_up(result, value)
    return result
