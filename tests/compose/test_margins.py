"""Margin constants: above what pairs of outputs attain, and what the shape matrix says, rounded outward."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lipray.certify.certificate import Certificate, Status
from lipray.compose.compose import compose
from lipray.compose.margins import margin_bounds
from lipray.config import EstimateConfig
from lipray.model import activations as act
from lipray.model.network import Node, Softmax
from lipray.model.select import select_pairs
from lipray.partition.planner import plan_network
from lipray.partition.subproblem import Settings
from lipray.partition.worklist import worklist
from lipray.run.driver import estimate_network
from lipray.run.lower_bound import ascend, plan_ascents
from lipray.run.serial import SerialExecutor
from tests.maps import Maps


def small(seed, slopes=None, classes=4):
    maps = Maps(1, 6, 6, seed=seed)
    maps.conv(2, padding=1)
    maps.act() if slopes is None else maps.act(slopes)
    maps.conv(2, padding=1, stride=2)
    maps.act()
    maps.flatten()
    maps.dense(classes)
    return maps


def bound_of(network, **options):
    config = EstimateConfig(**({"lower_starts": 0, "executor": "serial"} | options))
    return estimate_network(network, config, SerialExecutor(1)).bound


def attained(network, pairs):
    """A quotient that f_i - f_j attains, for each pair."""
    found = []
    for pair in pairs:
        selected = select_pairs(network, [pair])
        found.append(max(ascend(task).quotient for task in plan_ascents(selected, starts=3, seed=1, seconds=0.2)))
    return found


@pytest.mark.parametrize(
    ("seed", "options"),
    [
        (0, {"method": "ellipsoid"}),
        (1, {"method": "ellipsoid", "iterations": 0}),
        (2, {"method": "frequency", "iterations": 5}),
        (3, {"method": "hybrid", "iterations": 5}),
        (4, {"method": "ellipsoid", "block_depth": 1}),
        (5, {"method": "frequency", "block_depth": 1, "iterations": 0}),
    ],
)
def test_margins_are_above_what_pairs_attain(seed, options):
    network = small(seed, act.leaky_relu(0.1) if seed % 2 else None).network()
    bound = bound_of(network, **options)
    table = bound.pairwise
    assert table.shape == (4, 4)
    assert (table == table.T).all()
    assert (np.diagonal(table) == 0.0).all()
    pairs = [(0, 1), (1, 3), (2, 0)]
    for (i, j), quotient in zip(pairs, attained(network, pairs), strict=True):
        assert 0.1 * table[i, j] < quotient <= table[i, j]
    assert (table <= math.sqrt(2) * bound.upper * (1 + 1e-12)).all()


def test_a_margin_is_no_looser_than_its_own_estimate_by_much():
    network = small(7).network()
    table = bound_of(network, method="ellipsoid").pairwise
    alone = bound_of(select_pairs(network, [(0, 2)]), method="ellipsoid").upper
    assert alone <= table[0, 2] * (1 + 1e-6)


def test_where_there_is_no_shape_matrix_there_are_no_margins():
    network = small(0).network()
    assert bound_of(network, method="product").pairwise is None
    maps = Maps(1, 6, 6)
    maps.conv(2, padding=1)
    maps.act()
    assert bound_of(maps.network(), method="frequency", iterations=0).pairwise is None


@pytest.mark.parametrize(("log", "there"), [(True, True), (False, False)])
def test_softmax_hides_margins_and_log_softmax_does_not(log, there):
    maps = small(2)
    plain = bound_of(maps.network(), method="ellipsoid").pairwise
    maps.nodes.append(Node("softmax", Softmax(log), (maps.last,), maps.nodes[-1].shape))
    table = bound_of(maps.network(), method="ellipsoid").pairwise
    assert (table is not None) == there
    if there:
        assert np.allclose(table, plain, rtol=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 5),
    st.integers(0, 10**6),
    st.sampled_from([1.0, 0.0, 3.7, 1e-3, 1e8]),
    st.sampled_from([1e-150, 1e-8, 1.0, 1e8]),
)
def test_rounding_is_outward(size, seed, before, scale):
    draw = np.random.default_rng(seed)
    factor = draw.normal(size=(size, size)) * scale
    # Nearly equal rows: the difference of large numbers is where digits are lost.
    factor[1] = factor[0] * (1 + draw.normal() * 1e-9)
    gram = factor @ factor.T
    table = margin_bounds(gram, before, math.inf)
    exact = [[Fraction(float(value)) for value in row] for row in gram]
    for i in range(size):
        for j in range(size):
            if i == j:
                continue
            square = exact[i][i] + exact[j][j] - exact[i][j] - exact[j][i]
            assert Fraction(float(table[i, j])) ** 2 >= square * Fraction(before) ** 2


def test_an_infinite_shape_matrix_gives_no_margins():
    plan = plan_network(small(0).network(), settings=Settings())
    work = worklist(plan)
    keys = {problem.method: key for key, problem in work.by_key.items()}
    certificates = {
        keys["product"]: Certificate(keys["product"], "product", 9.0, Status.CLOSED_FORM),
        keys["ellipsoid"]: Certificate(
            keys["ellipsoid"], "ellipsoid", 5.0, Status.CONVERGED, gram=np.full((4, 4), np.inf)
        ),
    }
    assert compose(plan, certificates).pairwise is None
    certificates[keys["ellipsoid"]] = Certificate(
        keys["ellipsoid"], "ellipsoid", 5.0, Status.CONVERGED, gram=np.diag([1.0, 4.0, 9.0, 16.0])
    )
    table = compose(plan, certificates).pairwise
    assert table[0, 1] == pytest.approx(math.sqrt(5))
    assert table[2, 3] == pytest.approx(5.0)
    assert table[3, 2] >= 5.0
