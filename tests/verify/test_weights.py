"""Diagonal metrics: the weights of tiles, and what they prove of the block."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lipray.model.evaluate import evaluate
from lipray.model.network import Conv, Input, Network, Node
from lipray.verify.composition import diagonal_bound, overlap_bound
from lipray.verify.tiles import cut_tiles, tile_windows
from lipray.verify.weights import tile_weights, weighted, weighted_tiles
from tests.verify.test_composition import convolution, matrix

quick = settings(max_examples=40, deadline=None, derandomize=True)
geometries = st.tuples(st.integers(1, 2), st.integers(4, 7), st.integers(0, 1), st.integers(1, 2))


def cut(block, factor):
    tiles = cut_tiles(block, tile_windows(block.output_shape, factor))
    weights = tile_weights([tile.output for tile in tiles], [tile.field for tile in tiles], block.input_shape)
    return tiles, weights


def per_channel(weights, channels):
    return np.broadcast_to(weights, (channels, *weights.shape)).reshape(-1)


@quick
@given(st.integers(0, 2**16), geometries, st.integers(2, 4))
def test_a_linear_blocks_norm_is_never_above_the_bound(seed, geometry, factor):
    block = convolution(np.random.default_rng(seed), *geometry)
    tiles, weights = cut(block, factor)
    fields = [tile.field for tile in tiles]
    norms = [np.linalg.norm(matrix(t.network) / per_channel(d, 2), 2) for t, d in zip(tiles, weights, strict=True)]
    true = np.linalg.norm(matrix(block), 2)
    bound = diagonal_bound(norms, fields, weights, block.input_shape)
    assert true <= bound * (1 + 1e-12)
    assert bound <= max(norms) * (1 + 1e-12)
    # With weights of one it is the overlap-aware bound.
    plain = [np.linalg.norm(matrix(tile.network), 2) for tile in tiles]
    ones = diagonal_bound(plain, fields, [None] * len(tiles), block.input_shape)
    assert ones == pytest.approx(overlap_bound(plain, fields), rel=1e-12)


@quick
@given(st.integers(0, 2**16), geometries, st.integers(2, 4))
def test_the_squares_of_a_positions_weights_add_up_to_one(seed, geometry, factor):
    block = convolution(np.random.default_rng(seed), *geometry)
    tiles, weights = cut(block, factor)
    total = np.zeros(block.input_shape[1:])
    for tile, own in zip(tiles, weights, strict=True):
        assert own.shape == tuple(high - low for low, high in tile.field)
        assert (own > 0.0).all()
        assert (own <= 1.0).all()
        total[tuple(slice(*span) for span in tile.field)] += own**2
    read = total > 0.0
    np.testing.assert_allclose(total[read], 1.0, rtol=1e-12)


def test_unweighted_tiles_are_no_bound_by_the_weights():
    """A constant kernel: a tile's own constant beside its weights is below the block's."""
    block = Network(
        (
            Node("x", Input(), (), (1, 8, 8)),
            Node("c", Conv("w", None, (1, 1), ((0, 0), (0, 0)), (1, 1)), (0,), (1, 6, 6)),
        ),
        {"w": np.ones((1, 1, 3, 3))},
    )
    tiles, weights = cut(block, 3)
    fields = [tile.field for tile in tiles]
    true = np.linalg.norm(matrix(block), 2)
    plain = [np.linalg.norm(matrix(tile.network), 2) for tile in tiles]
    assert diagonal_bound(plain, fields, weights, block.input_shape) < true
    norms = [
        np.linalg.norm(matrix(tile.network) / per_channel(own, 1), 2) for tile, own in zip(tiles, weights, strict=True)
    ]
    assert true <= diagonal_bound(norms, fields, weights, block.input_shape)


def test_the_block_stands_for_a_tile_without_its_weights():
    block = convolution(np.random.default_rng(1), 2, 7, 1, 1)
    tiles, weights = cut(block, 2)
    fields = [tile.field for tile in tiles]
    true = np.linalg.norm(matrix(block), 2)
    norms = [
        np.linalg.norm(matrix(tile.network) / per_channel(own, 2), 2) for tile, own in zip(tiles, weights, strict=True)
    ]
    whole = diagonal_bound([true, *norms[1:]], fields, [None, *weights[1:]], block.input_shape)
    assert whole >= true
    covered = math.sqrt(true**2 + max(norms) ** 2)
    assert whole <= covered * (1 + 1e-12)


def test_a_weighted_tile_is_the_tile_of_the_divided_input():
    rng = np.random.default_rng(2)
    block = convolution(rng, 2, 7, 1, 1)
    tiles, weights = cut(block, 3)
    for plain, heavy, own in zip(tiles, weighted_tiles(tiles, weights), weights, strict=True):
        assert (plain.output, plain.field) == (heavy.output, heavy.field)
        x = rng.normal(size=plain.network.input_shape)
        images = [
            evaluate(network, torch.from_numpy(points[None])).numpy()
            for network, points in ((heavy.network, x), (plain.network, x / own))
        ]
        np.testing.assert_allclose(*images, rtol=1e-12, atol=1e-12)
        assert heavy.network.content_hash() == weighted(plain.network, own).content_hash()


def test_translates_stay_translates():
    block = convolution(np.random.default_rng(3), 2, 20, 0, 1)
    tiles, weights = cut(block, 6)
    heavy = weighted_tiles(tiles, weights)
    inner = [tile.network for tile in heavy if all(low > 0 and high < 20 for low, high in tile.field)]
    assert len(inner) == 16
    assert len({id(network) for network in inner}) == 1
    assert len({id(tile.network) for tile in heavy}) == 9


def test_nothing_is_lost_by_zeros_and_infinities():
    fields = [((0, 2),), ((1, 3),)]
    weights = [np.array([1.0, 0.5]), np.array([0.75, 1.0])]
    assert diagonal_bound([0.0, 0.0], fields, weights, (1, 3)) == 0.0
    assert diagonal_bound([math.inf, 0.0], fields, weights, (1, 3)) == math.inf
    assert diagonal_bound([2.0, 0.0], fields, weights, (1, 3)) == pytest.approx(2.0, rel=1e-12)
    assert diagonal_bound([2.0, 0.0], fields, weights, (1, 3)) > 2.0
