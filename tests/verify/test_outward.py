import math
import sys
from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lipray.verify.outward import add_up, mul_up, product_up, sqrt_up, sum_up

TINY = 5e-324
bounds = st.floats(min_value=0.0, allow_nan=False, allow_infinity=True)
finite = st.floats(min_value=0.0, allow_nan=False, allow_infinity=False)


def above(result, exact):
    """Whether a double is at least an exact number; infinity is."""
    return result == math.inf or Fraction(result) >= exact


def close(result, exact):
    """Whether it is at most two doubles above: an upper bound that is always infinite would prove nothing."""
    if exact > Fraction(sys.float_info.max) / 2:
        return True
    return Fraction(math.nextafter(math.nextafter(result, 0.0), 0.0)) <= exact


@settings(max_examples=300)
@given(finite, finite)
def test_products_and_sums_are_from_above_and_close(a, b):
    for operation, exact in ((mul_up, Fraction(a) * Fraction(b)), (add_up, Fraction(a) + Fraction(b))):
        result = operation(a, b)
        assert above(result, exact)
        assert close(result, exact)
        assert operation(b, a) == result


@settings(max_examples=300)
@given(finite)
def test_roots_are_from_above_and_close(a):
    result = sqrt_up(a)
    assert Fraction(result) ** 2 >= Fraction(a)
    below = math.nextafter(math.nextafter(result, 0.0), 0.0)
    assert Fraction(below) ** 2 <= Fraction(a)


@settings(max_examples=200)
@given(st.lists(finite, max_size=8), st.randoms())
def test_sums_are_from_above_close_and_the_same_in_any_order(values, shuffler):
    exact = sum((Fraction(value) for value in values), Fraction())
    result = sum_up(values)
    assert above(result, exact)
    assert close(result, exact)
    shuffler.shuffle(values)
    assert sum_up(values) == result


@settings(max_examples=200)
@given(st.lists(finite, max_size=8))
def test_products_of_many_are_from_above(values):
    assert above(product_up(values), math.prod(map(Fraction, values)))


@settings(max_examples=200)
@given(st.lists(bounds, max_size=6))
def test_infinity_never_becomes_nan(values):
    assert not math.isnan(sum_up(values))
    assert not math.isnan(product_up(values))
    assert product_up([*values, 0.0]) == product_up([0.0, *values]) == 0.0
    if math.inf in values:
        assert sum_up(values) == math.inf


def test_edges():
    assert mul_up(1e-200, 1e-200) == TINY  # underflow to 0 would be below
    assert mul_up(1e200, 1e200) == math.inf
    assert add_up(sys.float_info.max, sys.float_info.max) == math.inf
    assert sum_up([sys.float_info.max] * 3) == math.inf
    assert mul_up(0.0, math.inf) == 0.0
    assert sqrt_up(0.0) == 0.0
    assert sqrt_up(math.inf) == math.inf
    assert (product_up([]), sum_up([])) == (1.0, 0.0)
    assert product_up([1.0, 3.5, 1.0]) == 3.5
    assert sum_up([0.0, 3.5]) == 3.5


def test_rounding_to_nearest_alone_would_be_unsound():
    pairs = np.random.default_rng(0).uniform(0.5, 2.0, size=(200, 2)).tolist()
    below = [(a, b) for a, b in pairs if Fraction(a * b) < Fraction(a) * Fraction(b)]
    assert len(below) > 50
    assert all(Fraction(mul_up(a, b)) > Fraction(a) * Fraction(b) for a, b in below)
