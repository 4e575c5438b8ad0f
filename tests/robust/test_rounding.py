"""Directed rounding, against exact rational arithmetic."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lipray.errors import UsageError
from lipray.robust.radius import parse_radius, radius_text
from lipray.robust.rounding import at_least, at_most, distances_up, margins_down, product_up, quotients_down

DOUBLES = st.floats(allow_nan=False, allow_infinity=False, width=64)
MODERATE = st.floats(min_value=-1e60, max_value=1e60, allow_nan=False)


def exact(value):
    return Fraction(float(value))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(MODERATE, MODERATE), min_size=1, max_size=6))
def test_distances_are_above_the_exact_ones(pairs):
    first, second = (np.array([column], dtype=np.float64) for column in zip(*pairs, strict=True))
    (distance,) = distances_up(first, second)
    square = sum((exact(a) - exact(b)) ** 2 for a, b in pairs)
    assert exact(distance) ** 2 >= square
    assert (distance == 0.0) == (square == 0)
    if square > Fraction(1, 10**200):
        assert exact(distance) ** 2 <= square * (1 + Fraction(1, 10**12))


def test_distances_hold_where_squares_underflow():
    small = np.array([[1e-170, 3e-200, 5e-324]])
    (distance,) = distances_up(small, np.zeros((1, 3)))
    assert exact(distance) ** 2 >= sum(exact(value) ** 2 for value in small[0])


@settings(max_examples=50, deadline=None)
@given(DOUBLES, DOUBLES, st.floats(min_value=0, max_value=1e300))
def test_margins_are_strictly_below_the_exact_ones(above, below, doubt):
    (margin,) = margins_down(*(np.array([value]) for value in (above, below, doubt)))
    if math.isfinite(margin):
        assert exact(margin) < exact(above) - exact(below) - exact(doubt)


@settings(max_examples=50, deadline=None)
@given(st.floats(min_value=0, max_value=1e300), st.floats(min_value=0, max_value=1e300))
def test_a_radius_times_its_constant_is_below_the_margin(margin, constant):
    (radius,) = quotients_down(np.array([margin]), np.array([constant]))
    if margin == 0.0:
        assert radius == 0.0
    elif constant == 0.0:
        assert radius == math.inf
    else:
        assert math.isfinite(radius)
        assert exact(radius) * exact(constant) <= exact(margin)


def test_edges_of_radii():
    margins = np.array([-1.0, 0.0, -math.inf, 1.0, 1.0, 1e300])
    constants = np.array([0.0, 0.0, 1.0, math.inf, 0.0, 1e-300])
    found = quotients_down(margins, constants).tolist()
    assert found[:5] == [0.0, 0.0, 0.0, 0.0, math.inf]
    assert found[5] == np.finfo(float).max


def test_what_is_not_finite_has_no_margin():
    inf, nan = math.inf, math.nan
    found = margins_down(np.array([inf, nan, 1.0, 1.0]), np.array([0.0, 0.0, inf, 0.0]), np.array([0.0, 0.0, 0.0, inf]))
    assert (found == -inf).all()


def test_products_with_zero_are_zero_also_beside_infinity():
    assert product_up(0.0, np.array([math.inf, 1.0])).tolist() == [0.0, 0.0]
    assert product_up(math.inf, np.array([0.0, 1.0])).tolist() == [0.0, math.inf]
    assert product_up(3.0, np.array([0.1]))[0] > 3.0 * 0.1 - 1e-17
    assert exact(product_up(3.0, np.array([0.1]))[0]) >= 3 * exact(0.1)


@settings(max_examples=50, deadline=None)
@given(st.fractions(min_value=Fraction(1, 10**9), max_value=10**9))
def test_doubles_reach_a_fraction_where_they_reach_the_least_above(value):
    assert exact(at_least(value)) >= value > exact(math.nextafter(at_least(value), 0.0))
    assert exact(at_most(value)) <= value < exact(math.nextafter(at_most(value), math.inf))


def test_radii_are_exact_fractions():
    assert parse_radius("36/255") == Fraction(36, 255)
    assert parse_radius("0.1") == Fraction(1, 10) != parse_radius(0.1) == Fraction(0.1)
    for text in ("36/255", "0.1", "1/7", "2", "108/255"):
        assert radius_text(parse_radius(text)) == text


@pytest.mark.parametrize("text", ["0", "-1", "-36/255", "0/255", "1/0", "abc", "", "inf", "nan", "1e999"])
def test_what_is_no_radius_is_refused(text):
    with pytest.raises(UsageError, match="--radius"):
        parse_radius(text)
