"""Activations that exporters spell out: GELU, SiLU, hard swish and Mish as products of signals.

Exporters store sqrt(1/2), sqrt(2/pi), 0.044715 and 1/6 in float32, so these are matched to a relative
1e-6. The slopes stay proven for the numbers as stored: those of x Φ(kx) are the same for every k > 0
(substitute y = kx), those of x clip(ax + 1/2, 0, 1) for every a > 0, and for the tanh form, where a
change of both numbers by 1e-6 moves a slope by less than 2e-6, the interval is widened. Outer factors
(1/2 and 1) have no rounding and must be exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from lipray.model import activations
from lipray.model.network import Activation
from lipray.model.onnx_values import MAX_READINGS, Apply, Leaf, Poly, Reading

TANH_WIDENING = 4e-6
"""Added to both ends of the slopes of a spelt-out tanh form of GELU."""

_DEGREE = 3
_NESTING = 2


def apply_function(function: str, readings: Iterable[Reading]) -> tuple[Reading, ...]:
    """Readings of a known function of a signal."""
    found: list[Reading] = [
        (Poly(Apply(function, reading[0]), (0.0, 1.0)),)
        for reading in readings
        if len(reading) == 1 and _nesting(reading[0].term) < _NESTING
    ]
    return _distinct(found)


def scaled(readings: Iterable[Reading], scale: float, shift: float) -> tuple[Reading, ...]:
    """Readings of scale x + shift."""
    found: list[Reading] = []
    for first, *rest in readings:
        coefficients = tuple(scale * value for value in first.coefficients)
        if rest and shift != 0.0:
            continue
        found.append((Poly(first.term, (coefficients[0] + shift, *coefficients[1:])), *rest))
    return _distinct(found)


def summed(left: Iterable[Reading], right: Iterable[Reading], sign: float) -> tuple[Reading, ...]:
    """Readings of x + sign y, where both are polynomials in the same term."""
    found: list[Reading] = []
    for a in left:
        for b in right:
            if len(a) == len(b) == 1 and a[0].term == b[0].term:
                size = max(len(a[0].coefficients), len(b[0].coefficients))
                p, q = (c + (0.0,) * (size - len(c)) for c in (a[0].coefficients, b[0].coefficients))
                found.append((Poly(a[0].term, tuple(x + sign * y for x, y in zip(p, q, strict=True))),))
    return _distinct(found)


def multiplied(left: Iterable[Reading], right: Iterable[Reading]) -> tuple[Reading, ...]:
    """Readings of the product of two signals."""
    found: list[Reading] = []
    for a in left:
        for b in right:
            product: dict[Leaf | Apply, tuple[float, ...]] = {}
            for poly in (*a, *b):
                before = product.get(poly.term)
                product[poly.term] = poly.coefficients if before is None else _convolve(before, poly.coefficients)
            if len(product) <= 2 and all(len(c) <= _DEGREE + 1 for c in product.values()):
                found.append(tuple(Poly(term, c) for term, c in product.items()))
    return _distinct(found)


def recognise(readings: Iterable[Reading]) -> tuple[int, Activation] | None:
    """The node and the activation of it that one of the readings spells, if any does."""
    for reading in readings:
        if len(reading) == 2:
            for base, other in (reading, reversed(reading)):
                found = _recognise(base, other)
                if found is not None:
                    return found
    return None


def _recognise(base: Poly, other: Poly) -> tuple[int, Activation] | None:
    """(c x) (a + b g(p(x))) for the x that is the value of a node."""
    if not isinstance(base.term, Leaf) or not isinstance(other.term, Apply) or len(other.coefficients) != 2:
        return None
    if len(base.coefficients) != 2 or base.coefficients[0] != 0.0:
        return None
    c = base.coefficients[1]
    a, b = (c * value for value in other.coefficients)
    function, argument = other.term.function, other.term.argument
    direct = argument == Poly(base.term, (0.0, 1.0))
    gate = (a, b) == (0.0, 1.0)
    half = (a, b) == (0.5, 0.5)
    activation: Activation | None = None
    if function == "sigmoid" and gate and direct:
        activation = activations.silu()
    elif function == "hardsigmoid" and gate and direct:
        activation = activations.hardswish()
    elif function == "erf" and half and argument.term == base.term:
        activation = activations.gelu() if _near(argument.coefficients, (0.0, math.sqrt(0.5))) else None
    elif function == "tanh" and half and argument.term == base.term:
        k = math.sqrt(2 / math.pi)
        if _near(argument.coefficients, (0.0, k, 0.0, k * 0.044715)):
            ideal = activations.gelu("tanh")
            lower, upper = ideal.lower[0] - TANH_WIDENING, ideal.upper[0] + TANH_WIDENING
            activation = replace(ideal, lower=(lower,), upper=(upper,))
    elif function == "tanh" and gate and argument == _softplus_of(base.term):
        activation = activations.mish()
    return None if activation is None else (base.term.index, activation)


def _softplus_of(term: Leaf) -> Poly:
    return Poly(Apply("softplus", Poly(term, (0.0, 1.0))), (0.0, 1.0))


def _near(found: tuple[float, ...], ideal: tuple[float, ...]) -> bool:
    return len(found) == len(ideal) and all(
        x == y if y == 0.0 else abs(x - y) <= 1e-6 * abs(y) for x, y in zip(found, ideal, strict=True)
    )


def _convolve(p: tuple[float, ...], q: tuple[float, ...]) -> tuple[float, ...]:
    out = [0.0] * (len(p) + len(q) - 1)
    for i, x in enumerate(p):
        for j, y in enumerate(q):
            out[i + j] += x * y
    return tuple(out)


def _nesting(term: Leaf | Apply) -> int:
    return 0 if isinstance(term, Leaf) else 1 + _nesting(term.argument.term)


def _distinct(readings: list[Reading]) -> tuple[Reading, ...]:
    return tuple(dict.fromkeys(readings))[:MAX_READINGS]
