"""Texts of numbers stay on the right side of them."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipray.report.numbers import bytes_text, lower_text, seconds_text, shape_text, upper_text

POSITIVE = st.floats(min_value=0, allow_nan=False, allow_infinity=False)


@given(POSITIVE, st.integers(1, 17))
def test_upper_is_never_below_and_lower_never_above(value, digits):
    assert Fraction(upper_text(value, digits)) >= Fraction(value) >= Fraction(lower_text(value, digits))


@given(st.floats(min_value=1e-100, max_value=1e100), st.integers(2, 12))
def test_texts_are_close(value, digits):
    for text in (upper_text(value, digits), lower_text(value, digits)):
        assert float(text) == pytest.approx(value, rel=1.01 * 10.0 ** (1 - digits))


def test_examples():
    assert upper_text(1.00000001) == "1.00001"
    assert lower_text(1.99999999) == "1.99999"
    assert upper_text(0.0) == lower_text(0.0) == "0"
    assert upper_text(2.5) == "2.5"
    assert upper_text(1.234567891e14) == "1.23457e+14"
    assert upper_text(None) == upper_text(math.inf) == "∞"
    assert upper_text(1200.0) == "1200"


def test_units():
    assert bytes_text(100) == "100 B"
    assert bytes_text(3 * 2**29) == "1.5 GiB"
    assert seconds_text(0.0123) == "12 ms"
    assert seconds_text(90) == "90.0 s"
    assert seconds_text(864) == "14.4 min"
    assert shape_text((3, 32, 32)) == "3×32×32"
