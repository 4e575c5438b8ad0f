"""Gradients on tori: against differences of values, and the same whether factors are kept or worked out again."""

import math
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from lipray.certify.frequency import bundle as bundles
from lipray.certify.frequency.bundle import GradientBundle, in_place, perform_bundle
from lipray.certify.frequency.objective import Working, measure
from lipray.certify.frequency.start import closed_start
from lipray.errors import PlanError
from lipray.verify.torus import sweep
from lipray.verify.torus.layout import lay_out
from lipray.verify.torus.proof import Means, set_up
from tests.map_networks import map_networks
from tests.tori import OnTorus

MEANS = Means(in_place, 2**30, 1, "cpu")
some = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def small(network):
    try:
        torus = lay_out(network)
    except PlanError:
        assume(False)
    assume(math.prod(torus.sides[0]) <= 400)
    return torus


@some
@given(map_networks(limit=30, layers=7, side=6), st.integers(0, 2**16))
def test_factors_worked_out_again_give_the_same_gradient(network, seed):
    torus = small(network)
    on = OnTorus(network, torus)
    rng = np.random.default_rng(seed)
    lam = tuple(part.numpy() for part in on.scattered(rng, 0.5))
    directions = None if on.head is None else rng.normal(size=(on.head.rows, 2))
    kept = GradientBundle(network, torus.cut, False, on.groups, lam, directions, power=3.0)
    first = perform_bundle(kept)
    assume(first.feasible)
    with patch.object(sweep, "PIECE_ENTRIES", 1), patch.object(bundles, "KEPT_SLICES", 0.0):
        second = perform_bundle(replace(kept, keep=False))
    assert second.feasible
    assert second.top == pytest.approx(first.top, rel=1e-9)
    assert second.total == pytest.approx(first.total, rel=1e-9)
    size = max(float(np.abs(first.gradient).max(initial=0.0)), 1e-30)
    np.testing.assert_allclose(second.gradient, first.gradient, atol=1e-7 * size, rtol=0.0)


@some
@given(map_networks(limit=30, layers=7, side=6), st.integers(0, 2**16))
def test_the_gradient_is_that_of_the_value(network, seed):
    torus = small(network)
    setup = set_up(network, torus.cut)
    closed = closed_start(setup, MEANS)
    assume(closed is not None and closed.bound > 0.0 and setup.sizes)
    working = Working(setup, None, kept=False)
    rng = np.random.default_rng(seed)
    theta = torch.log(torch.from_numpy(np.concatenate(closed.multipliers)))
    theta = theta + 0.05 * torch.from_numpy(rng.normal(size=theta.shape))
    reference = closed.bound**2
    point = measure(working, theta, 4.0, MEANS, reference)
    assume(point is not None)
    way = torch.from_numpy(rng.normal(size=theta.shape))
    step = 1e-5
    ends = [measure(working, theta + sign * step * way, 4.0, MEANS, reference) for sign in (1.0, -1.0)]
    assume(all(end is not None for end in ends))
    slope = (ends[0].value - ends[1].value) / (2.0 * step)
    assert float(point.gradient @ way) == pytest.approx(slope, rel=1e-4, abs=1e-5)
