"""Deep levels split into pieces: the same layers, the same shape matrices, and a proof."""

from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from lipray.errors import PlanError
from lipray.model import activations as act
from lipray.verify.torus import layout
from lipray.verify.torus.layout import lay_out
from lipray.verify.torus.levels import crossings
from tests.map_networks import map_networks
from tests.maps import Maps
from tests.tori import OnTorus


def lay_out_in_pieces(network):
    with patch.multiple(layout, UNSPLIT_CHANNELS=0, DEEP=1, PIECE=1):
        return lay_out(network)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(map_networks(limit=30, layers=8, side=6), st.integers(0, 2**16))
def test_pieces_give_what_whole_levels_give(network, seed):
    try:
        whole, pieces = lay_out(network), lay_out_in_pieces(network)
    except PlanError:
        assume(False)
    assume(len(pieces.sides) > len(whole.sides))
    assume(np.prod(whole.sides[0]) <= 400)
    assert pieces.tori == whole.tori
    first, second = OnTorus(network, whole), OnTorus(network, pieces)
    assert [n for level in first.problem.names for n in level] == [n for level in second.problem.names for n in level]
    lam = first.scattered(np.random.default_rng(seed), 0.5)
    one, other = first.share(lam, proof=False), second.share(lam, proof=False)
    if one.gram is None:
        assert other.top == pytest.approx(one.top, rel=1e-7)
    else:
        size = max(float(one.gram.abs().max()), 1e-30)
        torch.testing.assert_close(other.gram, one.gram, atol=1e-7 * size, rtol=0.0)
    proven, value = second.bound(lam), first.bound(lam, proof=False)
    assert proven is None or proven >= value * (1.0 - 1e-9)


def test_a_deep_chain_is_split_where_one_map_is_handed_on():
    maps = Maps(8, 6, 6)
    for _ in range(160):
        maps.conv(8, kernel=3, padding=1)
        maps.act()
    maps.conv(2, kernel=1)
    network = maps.network()
    torus = lay_out(network)
    assert len(torus.tori) == 1
    assert len(torus.sides) == 160 // layout.PIECE
    assert torus.level == tuple(sorted(torus.level))
    for index, node in enumerate(network.nodes[1:], start=1):
        (source,) = node.inputs
        if torus.level[source] < torus.level[index]:
            assert node.name.startswith("activation")
    counts = [torus.level.count(level) for level in range(len(torus.sides))]
    assert max(counts) <= 2 * layout.PIECE + 2


def test_a_residual_block_is_never_cut_in_two():
    maps = Maps(16, 6, 6)
    maps.act(act.leaky_relu(0.1))
    for _ in range(60):
        start = maps.last
        maps.conv(16, kernel=3, padding=1)
        maps.act(act.leaky_relu(0.1))
        maps.conv(16, kernel=3, padding=1)
        maps.sum(start, maps.last)
        maps.act(act.leaky_relu(0.1))
    network = maps.network()
    torus = lay_out(network)
    assert len(torus.sides) > 1
    handed = crossings(network, torus)
    assert all(len(crossing) == 1 for crossing in handed)
    assert all(network.nodes[crossing[0].node].name.startswith("activation") for crossing in handed)


def test_what_the_interior_point_method_takes_stays_whole():
    maps = Maps(8, 6, 6)
    for _ in range(150):
        maps.conv(8, kernel=3, padding=1)
        maps.act()
    assert len(lay_out(maps.network()).sides) == 1
