"""Tiles optimised together: the gradient, and that the bound lies between the whole block's and what the tiles gave."""

import math

import numpy as np
import pytest
import torch

from lipray.certify import metric
from lipray.certify.closed_form import closed_form
from lipray.certify.solve import solve
from lipray.partition.subproblem import Settings, Subproblem
from lipray.verify.composition import overlap_bound
from lipray.verify.elimination import evaluate, prepare
from lipray.verify.metric import metric_bound, places
from lipray.verify.sector import lower
from lipray.verify.tiles import tile_block
from lipray.verify.transpose import transpose
from tests.maps import Maps


def block(seed, *, padding=0):
    maps = Maps(1, 8, 8, seed=seed)
    maps.conv(2, padding=padding)
    maps.act()
    maps.conv(2, padding=padding)
    maps.act()
    return maps.network()


def tiling(network, factor, *, shared=True):
    """The tiles, which of them are the same, and the tiling; each its own where nothing is ``shared``."""
    tiles = tile_block(network, factor)
    copies = {}
    for number, (_, _, tile) in enumerate(tiles):
        copies.setdefault(tile.content_hash() if shared else number, []).append(number)
    shape = network.input_shape
    at = [torch.from_numpy(places(field, shape)) for _, field, _ in tiles]
    blocks = tuple(prepare(transpose(lower(tiles[own[0]][2]))) for own in copies.values())
    where = tuple(torch.stack([at[number] for number in own]) for own in copies.values())
    return tiles, list(copies.values()), metric.Tiling(blocks, where, math.prod(shape))


def proven(network, tiles, copies, tiled, multipliers):
    metrics = [None] * len(tiles)
    for own, blocks, lams in zip(copies, tiled.blocks, multipliers, strict=True):
        for number in own:
            metrics[number] = torch.from_numpy(evaluate(blocks, lams).gram)
    return metric_bound(metrics, [field for _, field, _ in tiles], network.input_shape)


@pytest.mark.parametrize("padding", [0, 1])
def test_the_gradient_is_that_of_the_value(padding):
    _, _, tiled = tiling(block(0, padding=padding), 2)
    rng = np.random.default_rng(0)
    start = [[lam * rng.uniform(1.0, 1.3, lam.shape) for lam in closed_form(blocks)] for blocks in tiled.blocks]
    theta = torch.log(torch.from_numpy(np.concatenate([lam for tile in start for lam in tile])))
    point = metric._measure(tiled, theta, 16.0)
    for _ in range(4):
        direction = torch.from_numpy(rng.normal(size=len(theta)))
        direction /= torch.linalg.vector_norm(direction)
        step = 1e-5
        ahead, behind = (metric._measure(tiled, theta + sign * step * direction, 16.0).value for sign in (1, -1))
        assert float(point.gradient @ direction) == pytest.approx((ahead - behind) / (2 * step), rel=1e-4, abs=1e-7)


@pytest.mark.parametrize(("seed", "padding", "factor"), [(0, 0, 2), (1, 0, 3), (2, 1, 2)])
def test_between_the_whole_block_and_the_tiles_alone(seed, padding, factor):
    network = block(seed, padding=padding)
    tiles, copies, tiled = tiling(network, factor)
    start = [closed_form(blocks) for blocks in tiled.blocks]
    multipliers, found = metric.minimise(tiled, start, iterations=120)
    bound = proven(network, tiles, copies, tiled, multipliers)
    assert bound == pytest.approx(math.sqrt(found.value), rel=1e-7)
    whole = solve(Subproblem("whole", network, "ellipsoid", Settings())).bound
    assert whole * (1.0 - 1e-5) <= bound
    apart = [solve(Subproblem("tile", tile, "ellipsoid", Settings())).bound for _, _, tile in tiles]
    assert bound < 0.95 * overlap_bound(apart, [field for _, field, _ in tiles])
    assert bound < proven(network, tiles, copies, tiled, start)


def test_the_same_tiles_cost_one_factorisation_and_next_to_no_tightness():
    network = block(3)
    bounds = {}
    for shared in (True, False):
        tiles, copies, tiled = tiling(network, 2, shared=shared)
        assert len(copies) == (1 if shared else 4)
        multipliers, _ = metric.minimise(tiled, [closed_form(blocks) for blocks in tiled.blocks], iterations=150)
        bounds[shared] = proven(network, tiles, copies, tiled, multipliers)
    assert bounds[False] * (1.0 - 1e-4) <= bounds[True] <= 1.05 * bounds[False]


def test_what_is_not_feasible_has_no_measure():
    _, _, tiled = tiling(block(0), 2)
    theta = torch.log(torch.from_numpy(np.concatenate([lam for b in tiled.blocks for lam in closed_form(b)])))
    assert metric._measure(tiled, theta + 20.0, 16.0) is None or metric._measure(tiled, theta - 20.0, 16.0) is None
    assert metric._measure(tiled, theta * math.nan, 16.0) is None
