"""Metrics on a block's input: the transposed form, and what the sum over tiles proves."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lipray.certify.closed_form import closed_form
from lipray.verify.composition import overlap_bound
from lipray.verify.elimination import evaluate, prepare
from lipray.verify.metric import metric_bound, places
from lipray.verify.sector import lower
from lipray.verify.tiles import tile_block
from lipray.verify.transpose import transpose
from tests.maps import Maps
from tests.networks import networks
from tests.slopes import Linearised, worst_slopes
from tests.verify.test_composition import convolution, matrix

quick = settings(max_examples=40, deadline=None, derandomize=True)


def metric_of(network, multipliers=None):
    """P of a network from multipliers of the transposed form, by default its closed form's."""
    blocks = prepare(transpose(lower(network)))
    proven = evaluate(blocks, closed_form(blocks) if multipliers is None else multipliers)
    return proven.gram * blocks.factor**2


@quick
@given(networks(), st.integers(0, 2**16))
def test_the_metric_is_above_every_choice_of_slopes(network, seed):
    rng = np.random.default_rng(seed)
    metric = metric_of(network)
    linear = Linearised(network)
    factor = getattr(linear, "factor", 1.0)
    for _ in range(6):
        jacobian = factor * linear.jacobian(linear.random(rng)).numpy()
        gap = metric - jacobian.T @ jacobian
        assert np.linalg.eigvalsh(gap)[0] >= -1e-9 * max(1e-300, np.abs(metric).max())


@quick
@given(networks())
def test_twice_transposed_is_the_form_itself(network):
    form = lower(network)
    back = transpose(transpose(form))
    assert (back.neurons, back.input_size, back.output_size) == (form.neurons, form.input_size, form.output_size)
    rows = [*(layer.terms for layer in form.layers), form.output]
    again = [*(layer.terms for layer in back.layers), back.output]
    for one, other in zip(rows, again, strict=True):
        assert [term.source for term in one] == [term.source for term in other]
        assert all((a.matrix != b.matrix).nnz == 0 for a, b in zip(one, other, strict=True))
        assert [a.error is None for a in one] == [b.error is None for b in other]


@quick
@given(networks(softmax=False), st.integers(0, 2**16))
def test_both_ways_give_the_bound_of_the_same_multipliers(network, seed):
    """λ of the one are 1/λ of the other: both optima are LipSDP's, so at the same λ and the same scale both hold."""
    form = lower(network)
    blocks, mirrored = prepare(form), prepare(transpose(form))
    rng = np.random.default_rng(seed)
    base = closed_form(blocks)
    there = evaluate(blocks, [lam * rng.uniform(1.0, 1.5, lam.shape) for lam in base])
    if there is None or there.bound == 0.0:
        return
    # With L² M ⪰ CᵀC in place of M ⪰ CᵀC / L² the inequality is the same: λ / (L² λ) = 1 / L².
    back = evaluate(mirrored, [1.0 / (there.bound**2 * lam) for lam in reversed(there.multipliers)])
    if back is not None:
        assert back.bound == pytest.approx(there.bound, rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 2**16),
    st.tuples(st.integers(1, 2), st.integers(4, 7), st.integers(0, 1), st.integers(1, 2)),
    st.integers(2, 4),
)
def test_exact_on_linear_blocks_whatever_the_tiling(seed, geometry, factor):
    block = convolution(np.random.default_rng(seed), *geometry)
    tiles = tile_block(block, min(factor, max(block.output_shape[1:])))
    fields = [field for _, field, _ in tiles]
    metrics = [torch.from_numpy(metric_of(tile)) for _, _, tile in tiles]
    true = np.linalg.norm(matrix(block), 2)
    bound = metric_bound(metrics, fields, block.input_shape)
    assert true <= bound <= true * (1 + 1e-9)


def two_layers(seed, channels=2, size=9):
    maps = Maps(channels, size, size, seed=seed)
    maps.conv(3)
    maps.act()
    maps.conv(2)
    return maps.network()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("factor", [2, 3])
def test_never_above_overlap_and_never_below_what_slopes_allow(seed, factor):
    block = two_layers(seed)
    tiles = tile_block(block, factor)
    fields = [field for _, field, _ in tiles]
    metrics = [torch.from_numpy(metric_of(tile)) for _, _, tile in tiles]
    norms = [math.sqrt(float(torch.linalg.eigvalsh(metric)[-1])) for metric in metrics]
    bound = metric_bound(metrics, fields, block.input_shape)
    assert bound <= overlap_bound(norms, fields) * (1 + 1e-9)
    assert worst_slopes(block, seed, starts=2, sweeps=6) <= bound


def test_the_largest_metric_alone_is_no_bound():
    maps = Maps(1, 6, 6)
    maps.conv(np.ones((1, 1, 3, 3)))
    block = maps.network()
    tiles = tile_block(block, 4)
    metrics = [torch.from_numpy(metric_of(tile)) for _, _, tile in tiles]
    true = np.linalg.norm(matrix(block), 2)
    assert max(math.sqrt(float(torch.linalg.eigvalsh(metric)[-1])) for metric in metrics) < 0.8 * true
    assert metric_bound(metrics, [field for _, field, _ in tiles], block.input_shape) >= true


def test_zero_huge_and_infinite_metrics():
    fields, shape = (((0, 2),), ((1, 3),)), (1, 3)
    zero, huge = torch.zeros(2, 2, dtype=torch.float64), 1e300 * torch.eye(2, dtype=torch.float64)
    assert metric_bound([zero, zero], fields, shape) == 0.0
    assert math.sqrt(2e300) <= metric_bound([huge, huge], fields, shape) <= math.sqrt(2e300) * (1 + 1e-9)
    assert metric_bound([huge, huge * math.inf], fields, shape) == math.inf


def test_sums_of_many_roundings_are_from_above():
    """Every tile adds less than half a unit in the last place of the first: floating point alone would lose them."""
    one, small = torch.ones(1, 1, dtype=torch.float64), torch.full((1, 1), 2.0**-54, dtype=torch.float64)
    metrics, fields = [one, *[small] * 1000], [((0, 1),)] * 1001
    exact = math.sqrt(1.0 + 1000 * 2.0**-54)
    assert metric_bound(metrics, fields, (1, 1)) >= exact


def test_places_are_all_channels_of_a_window():
    assert places(((1, 3),), (2, 4)).tolist() == [1, 2, 5, 6]
    assert places((), (2, 2)).tolist() == [0, 1, 2, 3]
