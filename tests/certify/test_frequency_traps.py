"""Every rule of the torus, left out: a network on which what remains gives a bound below an attained quotient.

A family draws a small network from a seed, and says what the naive rule would make of it: the same layout without
its masks or widened activations, with smaller sides, or without the phase of the padding. The naive bound is the
smallest over all multipliers (a semidefinite programme, then checked by lipray's own proof on the naive layout). The
seeds were found by ``first_failure``, within seconds to two minutes each; every rule has failed somewhere.
"""

import warnings
from dataclasses import replace

import cvxpy as cp
import numpy as np
import pytest
import torch

from lipray.model import activations as act
from lipray.model.network import Activation, MaxPool
from lipray.run.lower_bound import ascend, attained, best, plan_ascents
from lipray.verify.torus import levels
from lipray.verify.torus.layout import lay_out
from tests.circular import Circular
from tests.maps import Maps
from tests.slopes import Linearised, worst_slopes
from tests.tori import OnTorus


def taps(rng, *shape):
    return rng.integers(-2, 3, size=(1, 1, *shape)).astype(float)


def unmasked(maps):
    network = maps.network()
    torus = lay_out(network)
    assert torus.masked
    return network, replace(torus, masked=frozenset())


def beside(maps, branch, shortcut):
    maps.sum(branch, shortcut)
    return unmasked(maps)


# -- sides


def side_of_the_extent(rng):
    """The side is the map's extent, without room for the padding."""
    maps = Maps(1, 3)
    maps.conv(taps(rng, 3), padding=1)
    return maps.network(), replace(lay_out(maps.network()), sides=((3,),))


def side_of_the_smaller_padding(rng):
    """The side has room for the smaller of two paddings only."""
    maps = Maps(1, 4)
    maps.conv(taps(rng, 3), padding=[(1, 2)])
    return maps.network(), replace(lay_out(maps.network()), sides=((5,),))


def side_of_the_finest_level(rng):
    """The side is chosen on the finest level, where a coarser one needs more."""
    maps = Maps(1, 6)
    maps.conv(taps(rng, 1), stride=2)
    maps.conv(taps(rng, 5), padding=2)
    return maps.network(), replace(lay_out(maps.network()), sides=((6,), (3,)))


# -- spilled maps and slopes


def spilled_convolution(rng):
    maps = Maps(1, 4)
    maps.conv(taps(rng, 3), padding=1)
    maps.conv(taps(rng, 3), padding=1)
    return unmasked(maps)


def spilled_average(rng):
    maps = Maps(1, 5)
    maps.average(kernel=2, stride=1)
    maps.conv(taps(rng, 3), padding=1)
    return unmasked(maps)


def spilled_overlapping_average(rng):
    maps = Maps(1, 6)
    maps.average(kernel=3, stride=2, padding=1)
    maps.conv(taps(rng, 3), padding=1)
    return unmasked(maps)


def without_slope_zero(slope):
    def family(rng):
        """A leaky activation between a spilled map and a padded layer, its slopes not widened."""
        maps = Maps(1, 4)
        maps.conv(taps(rng, 3), padding=1)
        maps.act(act.leaky_relu(slope))
        maps.conv(taps(rng, 3), padding=1)
        torus = lay_out(maps.network())
        assert torus.widened
        return maps.network(), replace(torus, widened=frozenset())

    family.__name__ = f"without_slope_zero_{slope}"
    return family


# -- crops and strides


def crop_then_pad(rng):
    """What a crop leaves outside is read by the next padded layer."""
    maps = Maps(1, 4)
    maps.pad([(0, -1)])
    branch = maps.conv(taps(rng, 3), padding=[(1, 2)])
    return beside(maps, branch, 0)


def stride_with_positions_to_spare(rng):
    """A strided convolution of one tap whose next position is cropped, not outside the map."""
    maps = Maps(1, 5)
    maps.conv(taps(rng, 1), stride=2, padding=[(0, -1)])
    branch = maps.conv(taps(rng, 3), padding=1)
    return beside(maps, branch, maps.conv(taps(rng, 3), 0, stride=2))


# -- max-pools


def pool_of_one_tap(rng):
    maps = Maps(1, 6)
    maps.conv(taps(rng, 3), padding=1)
    maps.maximum(kernel=1, stride=2)
    maps.conv(taps(rng, 3), padding=1)
    return unmasked(maps)


def overlapping_pool_of_a_spilled_map(rng):
    maps = Maps(1, 4)
    maps.conv(taps(rng, 3), padding=1)
    maps.maximum(kernel=2, stride=1)
    maps.conv(taps(rng, 3), padding=1)
    return unmasked(maps)


def pool_of_a_widely_spilled_map(rng):
    """Two spilled entries fill one window beyond the border."""
    maps = Maps(1, 4)
    maps.conv(taps(rng, 5), padding=2)
    maps.maximum(kernel=2, stride=2)
    maps.conv(taps(rng, 3), padding=1)
    return unmasked(maps)


def pool_that_wraps(rng):
    """On the smallest torus the window beyond the last one ends on the first entry, and finds no zero."""
    maps = Maps(1, 4)
    maps.maximum(kernel=2, stride=1)
    branch = maps.conv(taps(rng, 3), padding=1)
    return beside(maps, branch, maps.conv(taps(rng, 2), 0))


def pool_that_begins_late(rng):
    maps = Maps(1, 5)
    maps.maximum(kernel=2, stride=1, padding=[(-1, 0)])
    branch = maps.conv(taps(rng, 3), padding=1)
    return beside(maps, branch, maps.conv(taps(rng, 3), 0))


def dilated_pool(rng):
    """A dilated window beyond the border has both taps on the map."""
    maps = Maps(1, 5)
    maps.maximum(kernel=2, stride=1, dilation=3)
    branch = maps.conv(taps(rng, 3), padding=1)
    return beside(maps, branch, maps.conv(taps(rng, 4), 0))


SEEDS = [
    (side_of_the_extent, 12),
    (side_of_the_smaller_padding, 14),
    (side_of_the_finest_level, 2),
    (spilled_convolution, 173),
    (spilled_average, 44),
    (spilled_overlapping_average, 53),
    (without_slope_zero(0.9), 173),
    (without_slope_zero(0.5), 222),
    (without_slope_zero(0.1), 131),
    (crop_then_pad, 48),
    (stride_with_positions_to_spare, 12),
    (pool_of_one_tap, 100),
    (overlapping_pool_of_a_spilled_map, 263),
    (pool_of_a_widely_spilled_map, 0),
    (pool_that_wraps, 286),
    (pool_that_begins_late, 83),
    (dilated_pool, 289),
]


def smallest_bound(network, torus):
    """The bound on a layout, proven by lipray, at the multipliers that a semidefinite programme finds."""
    case = OnTorus(network, torus)
    if not case.problem.sizes:
        return case.bound(())
    dense, base = Circular(network, torus), case.closed()
    names = case.by_name(base)
    nothing = {name: torch.zeros_like(lam) for name, lam in names.items()}
    E, C = dense.inequality(nothing)
    terms = []
    for name, lam in names.items():
        for channel in range(len(lam)):
            one = torch.zeros_like(lam)
            one[channel] = lam[channel]
            terms.append(dense.inequality(nothing | {name: one})[0] - E)
    scale = case.bound(base)
    factors, rho = cp.Variable(len(terms), nonneg=True), cp.Variable()
    gap = rho * E + sum(factors[i] * term for i, term in enumerate(terms)) - C.T @ C / scale**2
    problem = cp.Problem(cp.Minimize(rho), [(gap + gap.T) / 2 >> 0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an inaccurate answer is as good: the proof decides
        problem.solve(solver=cp.CLARABEL)
    sizes = np.cumsum([len(lam) for lam in base])[:-1]
    found = [torch.from_numpy(part) for part in np.split(factors.value / rho.value, sizes)]
    found = [part.clamp(min=1e-9) * lam for part, lam in zip(found, base, strict=True)]
    for share in (0.0, 1e-8, 1e-6, 1e-4, 1e-3, 1e-2):
        mixed = [(1.0 - share) * a + share * b for a, b in zip(found, base, strict=True)]
        bound = case.bound(mixed)
        if bound is not None:
            return min(bound, scale)
    return scale


def attained_quotient(network, seed=0):
    """‖f(x) - f(y)‖ / ‖x - y‖ of a pair of inputs."""
    if any(isinstance(node.op, Activation | MaxPool) for node in network.nodes):
        tasks = plan_ascents(network, starts=4, seed=seed)
        return best({task.label: ascend(replace(task, steps=60)) for task in tasks}).quotient
    _, _, right = torch.linalg.svd(Linearised(network).jacobian({}))
    x = right[0].reshape(network.input_shape).numpy()
    return attained(network, x, np.zeros_like(x))


def first_failure(family, seeds):
    """The first seed on which the naive bound is below a quotient that is attained."""
    for seed in seeds:
        network, torus = family(np.random.default_rng(seed))
        could_attain = worst_slopes(network, 0)
        if could_attain > 1e-9 and smallest_bound(network, torus) < could_attain * (1.0 - 1e-5):
            attains = attained_quotient(network)
            # What lipray makes of it, in the same breath.
            assert attains <= smallest_bound(network, lay_out(network))
            if smallest_bound(network, torus) < attains * (1.0 - 1e-5):
                return seed
    return None


@pytest.mark.parametrize(("family", "seed"), [pytest.param(f, s, id=f.__name__) for f, s in SEEDS])
def test_without_the_rule_the_bound_is_too_small(family, seed):
    network, torus = family(np.random.default_rng(seed))
    attains = attained_quotient(network)
    assert smallest_bound(network, torus) < attains * (1.0 - 1e-5)
    assert attains <= smallest_bound(network, lay_out(network))
    assert worst_slopes(network, 0) * (1.0 - 1e-12) <= smallest_bound(network, lay_out(network))


@pytest.mark.slow
@pytest.mark.parametrize("family", [f for f, _ in SEEDS], ids=lambda family: family.__name__)
def test_the_rule_is_needed_by_other_networks_too(family):
    assert first_failure(family, range(1000, 4000)) is not None


def strided_join(rng):
    maps = Maps(1, 5)
    branch = maps.conv(taps(rng, 3), stride=2, padding=1)
    maps.sum(branch, maps.conv(taps(rng, 1), 0, stride=2))
    return maps.network()


def test_without_the_phase_of_the_padding_a_strided_join_is_bounded_too_low(monkeypatch):
    """The branch reads x[2i - 1 .. 2i + 1] and the shortcut x[2i]: without the phase they meet one entry apart."""
    network = strided_join(np.random.default_rng(154))
    attains = attained_quotient(network)
    assert attains <= OnTorus(network).bound(())
    plain = levels.sy.convolution

    def at_the_origin(op, *arguments):
        return plain(replace(op, padding=tuple((0, 0) for _ in op.padding)), *arguments)

    monkeypatch.setattr(levels.sy, "convolution", at_the_origin)
    assert OnTorus(network).bound(()) < attains * 0.1
