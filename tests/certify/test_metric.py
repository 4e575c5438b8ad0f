"""Tiles optimised together: the gradient, and that the bound lies between the whole block's and what the tiles gave."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from lipray.certify import metric
from lipray.certify.closed_form import closed_form
from lipray.certify.metric_solve import solve_metric
from lipray.certify.solve import solve
from lipray.certify.tile_step import in_place
from lipray.errors import VerificationError
from lipray.partition.subproblem import Settings, Subproblem
from lipray.verify.composition import diagonal_bound, overlap_bound
from lipray.verify.metric import places
from lipray.verify.prove import Problem, Proof, prove
from lipray.verify.tile_bundle import mirrored
from lipray.verify.tiles import cut_tiles, distinct_tiles, tile_block, tile_windows
from lipray.verify.torus.proof import LostBundleError, Means
from lipray.verify.weights import tile_weights, weighted_tiles
from tests.maps import Maps
from tests.slopes import worst_slopes
from tests.verify.test_composition import convolution, matrix


def block(seed, *, padding=0):
    maps = Maps(1, 8, 8, seed=seed)
    maps.conv(2, padding=padding)
    maps.act()
    maps.conv(2, padding=padding)
    maps.act()
    return maps.network()


def tiling(network, factor, *, shared=True):
    """The tiles of a block; every copy on its own where nothing is ``shared``."""
    tiles = cut_tiles(network, tile_windows(network.output_shape, factor))
    kinds = [kind.tiles for kind in distinct_tiles(tiles)] if shared else [(number,) for number in range(len(tiles))]
    at = [torch.from_numpy(places(tile.field, network.input_shape)) for tile in tiles]
    networks = tuple(tiles[own[0]].network for own in kinds)
    widths = tuple(mirrored(tile).widths for tile in networks)
    where = tuple(torch.stack([at[number] for number in own]) for own in kinds)
    return metric.Tiling(networks, widths, where, math.prod(network.input_shape))


def closed(tiled):
    return tuple(closed_form(mirrored(network)) for network in tiled.networks)


def task(network, factor, **options):
    return Subproblem("block", network, "metric", Settings(tiles=factor, **options))


@pytest.mark.parametrize("padding", [0, 1])
def test_the_gradient_is_that_of_the_value(padding):
    tiled = tiling(block(0, padding=padding), 2)
    rng = np.random.default_rng(0)
    start = [lam * rng.uniform(1.0, 1.3, lam.shape) for tile in closed(tiled) for lam in tile]
    theta = torch.log(torch.from_numpy(np.concatenate(start)))
    point = metric.measure(tiled, in_place, theta, 16.0)
    for _ in range(4):
        direction = torch.from_numpy(rng.normal(size=len(theta)))
        direction /= torch.linalg.vector_norm(direction)
        step = 1e-5
        sides = [metric.measure(tiled, in_place, theta + sign * step * direction, 16.0).value for sign in (1, -1)]
        slope = (sides[0] - sides[1]) / (2 * step)
        assert float(point.gradient @ direction) == pytest.approx(slope, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize(("seed", "padding", "factor"), [(0, 0, 2), (1, 0, 3), (2, 1, 2)])
def test_between_the_whole_block_and_the_tiles_alone(seed, padding, factor):
    network = block(seed, padding=padding)
    told = []
    found = solve_metric(task(network, factor), report=lambda certificate, way: told.append((way, certificate.bound)))
    assert [way for way, _ in told] == ["closed form", "optimised"]
    assert found.bound == told[-1][1] < told[0][1] == found.figures["closed_form"]
    assert found.bound == pytest.approx(found.figures["solver"], rel=1e-7)
    whole = solve(Subproblem("whole", network, "ellipsoid", Settings())).bound
    assert whole * (1.0 - 1e-5) <= found.bound
    tiles = tile_block(network, factor)
    apart = [solve(Subproblem("tile", tile, "ellipsoid", Settings())).bound for _, _, tile in tiles]
    fields = [field for _, field, _ in tiles]
    overlap = overlap_bound(apart, fields)
    assert found.bound < 0.95 * overlap
    cut = cut_tiles(network, tile_windows(network.output_shape, factor))
    weights = tile_weights([tile.output for tile in cut], fields, network.input_shape)
    heavy = weighted_tiles(cut, weights)
    each = [solve(Subproblem("tile", tile.network, "ellipsoid", Settings())).bound for tile in heavy]
    diagonal = diagonal_bound(each, fields, weights, network.input_shape)
    assert found.bound < diagonal < overlap
    assert worst_slopes(network, seed, starts=2, sweeps=6) <= found.bound


def test_the_bound_is_recomputed_from_its_proof():
    network = block(4)
    found = solve(task(network, 2))
    assert prove(Problem("block", network, found.proof, found.bound)).bound == found.bound
    windows = found.proof.windows
    for wrong, says in (
        (windows[:-1], "leave positions"),
        ((*windows, windows[0]), "overlap"),
        ((((0, 9), (0, 4)), *windows[1:]), "no window"),
        (windows[::-1][:1] * 4, "overlap"),
    ):
        with pytest.raises(VerificationError, match=says):
            prove(Problem("block", network, replace(found.proof, windows=wrong), found.bound))
    short = replace(found.proof, multipliers=found.proof.multipliers[:-1])
    with pytest.raises(VerificationError, match="multipliers of"):
        prove(Problem("block", network, short, found.bound))
    large = replace(found.proof, multipliers=tuple(1e9 * lam for lam in found.proof.multipliers))
    with pytest.raises(VerificationError, match="not feasible"):
        prove(Problem("block", network, large, found.bound))
    flat = Maps(1, 4, 4)
    flat.flatten()
    flat.dense(3)
    with pytest.raises(VerificationError, match="no map that acts locally"):
        prove(Problem("flat", flat.network(), Proof("metric", windows=windows), 1.0))


def test_the_order_of_tiles_does_not_matter_to_the_bound():
    network = block(5)
    found = solve(task(network, 2))
    turned = replace(found.proof, windows=found.proof.windows[::-1])
    assert prove(Problem("block", network, turned, 0.0)).bound == pytest.approx(found.bound, rel=1e-12)


@pytest.mark.parametrize("factor", [2, 3, 5])
def test_exact_on_a_linear_block(factor):
    network = convolution(np.random.default_rng(0), 2, 7, 1, 1)
    true = np.linalg.norm(matrix(network), 2)
    found = solve(task(network, factor))
    assert true <= found.bound <= true * (1.0 + 1e-9)


def test_the_same_tiles_cost_one_factorisation_and_next_to_no_tightness():
    network = block(3)
    values = {}
    for shared in (True, False):
        tiled = tiling(network, 2, shared=shared)
        assert len(tiled.networks) == (1 if shared else 4)
        values[shared] = metric.minimise(tiled, closed(tiled), in_place, iterations=150).value ** 0.5
    assert values[False] * (1.0 - 1e-4) <= values[True] <= 1.05 * values[False]


def test_what_is_not_feasible_has_no_measure():
    tiled = tiling(block(0), 2)
    theta = torch.log(torch.from_numpy(np.concatenate([lam for tile in closed(tiled) for lam in tile])))
    assert metric.measure(tiled, in_place, theta + 20.0, 16.0) is None
    assert metric.measure(tiled, in_place, theta * math.nan, 16.0) is None


def test_lost_bundles_leave_what_was_proven():
    network, rounds = block(6), []

    def losing(bundles):
        rounds.append(len(bundles))
        return [None] * len(bundles) if len(rounds) > 8 else in_place(bundles)

    found = solve_metric(task(network, 2), spread=losing)
    assert found.bound <= found.figures["closed_form"]
    assert prove(Problem("block", network, found.proof, 0.0)).bound == found.bound
    with pytest.raises(LostBundleError):
        solve_metric(task(network, 2), spread=lambda bundles: [None] * len(bundles))
    with pytest.raises(LostBundleError):
        prove(Problem("block", network, found.proof, 0.0), Means(lambda bundles: [None] * len(bundles)))


def test_a_time_limit_and_no_iterations_give_the_closed_form():
    network = block(7)
    closed_bound = solve(task(network, 2, iterations=0)).bound
    assert solve(task(network, 2, time_limit=0.0)).bound == closed_bound
    assert solve(task(network, 2)).bound < closed_bound
