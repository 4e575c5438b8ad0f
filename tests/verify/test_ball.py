"""Verified bounds against ball arithmetic: above the exact value, and hardly so."""

import numpy as np
import pytest
from flint import arb
from hypothesis import settings

from lipray.model import activations as act
from lipray.model.network import AdaptiveAvgPool, Concat, Dense, Softmax
from tests.ball import (
    FAMILIES,
    DenseCase,
    ProductCase,
    TorusCase,
    above,
    balls,
    chain,
    decided,
    examine,
    largest,
    measured,
)
from tests.maps import Maps

quick = settings(max_examples=80, deadline=None, derandomize=True)
ROUNDING = {
    "dense, closed form": 1e-9,
    "dense, random multipliers": 1e-7,
    "torus, closed form": 3e-8,
    "torus, random multipliers": 1e-5,
    "tail, closed form": 1e-8,
    "tail, random multipliers": 1e-5,
    "product, closed form": 1e-10,
}
"""What the allowances for rounding may cost, relatively; near infeasible multipliers they are magnified."""


def within(kind, excess):
    assert excess <= ROUNDING[kind]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_bound_is_above_its_exact_value_and_close(family):
    examine(family, quick, within)()


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_bound_of_other_networks_every_time(family):
    examine(family, settings(max_examples=1500, deadline=None), within)()


def rows_of_a_map():
    maps = Maps(3, 4, seed=1)
    maps.act(act.leaky_relu(0.1))
    maps.add(Dense(maps.array(maps.rng.normal(size=(5, 4))), None), (maps.last,), (3, 5))
    maps.act(act.gelu())
    return maps


def halves_of_a_map():
    maps = Maps(1, 4, 3, seed=2)
    left = maps.act(source=maps.pad([(0, -2), (0, 0)], 0))
    right = maps.conv(1, maps.pad([(-2, 0), (0, 0)], 0), padding=1)
    maps.add(Concat(1), (right, left), (1, 4, 3))
    maps.conv(2, kernel=2)
    maps.act()
    maps.flatten()
    maps.dense(2)
    return maps


def uneven_windows():
    maps = Maps(2, 5, 7, seed=3)
    maps.maximum(kernel=(2, 3), stride=(1, 2), dilation=(2, 1), padding=((1, 0), (0, 1)))
    maps.add(AdaptiveAvgPool(), (maps.last,), (2, 3, 2))
    maps.flatten()
    maps.dense(4)
    maps.add(Softmax(log=True), (maps.last,), (4,))
    return maps


@pytest.mark.parametrize("maps", [rows_of_a_map, halves_of_a_map, uneven_windows])
def test_layers_that_are_seldom_drawn(maps):
    for kind, excess in measured(DenseCase(maps().network()), 4):
        within(f"dense, {kind}", excess)


# -- the reference itself


def test_the_largest_eigenvalue_is_enclosed_and_the_ball_is_small():
    matrix = balls(2 * np.eye(3) - np.eye(3, k=1) - np.eye(3, k=-1))
    found = decided(lambda: largest(matrix))
    assert found.overlaps(2 + arb(2).sqrt())
    assert found.rad() < 1e-20


def strided_block():
    maps = Maps(1, 6, seed=5)
    start = maps.conv(2, padding=1)
    maps.act(act.leaky_relu(0.1))
    branch = maps.conv(2, stride=2, padding=1)
    maps.sum(branch, maps.conv(2, start, kernel=1, stride=2))
    maps.act()
    return maps


def with_a_tail():
    maps = strided_block()
    maps.flatten()
    maps.dense(4)
    maps.act()
    maps.dense(2)
    return maps


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(lambda: DenseCase(with_a_tail().network()), id="dense"),
        pytest.param(lambda: TorusCase(strided_block().network()), id="map"),
        pytest.param(lambda: TorusCase(strided_block().network(), window=True), id="window"),
        pytest.param(lambda: TorusCase(with_a_tail().network()), id="tail"),
        pytest.param(lambda: ProductCase(chain(3)), id="product"),
    ],
)
def test_the_reference_tells_a_bound_that_is_a_little_too_small(case):
    case = case()
    base = case.base()
    bound, shape = case.figure(base).bound, decided(lambda: case.shape(base))
    assert decided(lambda: above(bound, shape) or None)
    assert decided(lambda: above(bound * (1.0 - 1e-8), shape) or None) is None
    if base:
        assert decided(lambda: case.shape([1e3 * lam for lam in base])) is None
