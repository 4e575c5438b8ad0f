"""Random networks of extreme numbers: what is proven is at least what rational arithmetic attains."""

import pytest

from tests.extremes import check, drawn


@pytest.mark.parametrize(
    ("first", "count"), [(0, 60), *(pytest.param(n, 1000, marks=pytest.mark.slow) for n in range(1000, 5000, 1000))]
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_random_networks_of_extreme_numbers(first, count):
    assert sum(check(drawn(seed)) for seed in range(first, first + count)) > count
