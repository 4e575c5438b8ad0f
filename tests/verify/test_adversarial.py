"""Networks and multipliers that rounding is hard on: every verified bound against ball arithmetic or a closed form."""

import numpy as np
import pytest
from flint import arb

from lipray.model import activations as act
from tests.ball import DenseCase, ProductCase, TorusCase, decided, measured
from tests.maps import Maps

KINDS = {
    "product": ProductCase,
    "dense": DenseCase,
    "torus": TorusCase,
    "window": lambda network: TorusCase(network, window=True),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def excess(network, kind):
    """Of the closed form's multipliers; found at all, the bound is above."""
    case = KINDS[kind](network)
    return case.excess(case.base())


# -- scales


def spread(rng, rows, columns, orders):
    """A matrix whose singular values go down by ``orders`` orders of magnitude."""
    count = min(rows, columns)
    left, right = (np.linalg.qr(rng.normal(size=(n, n)))[0][:, :count] for n in (rows, columns))
    return left * np.logspace(0.0, -orders, count) @ right.T


@every_kind
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ill_conditioned_layers(kind, seed):
    """Channels are mixed by matrices of condition 1e12, three times in a row."""
    rng = np.random.default_rng(seed)
    maps = Maps(4, 5, seed=seed)
    for taps in (1, 3, 1):
        kernel = np.stack([spread(rng, 4, 4, 12.0) for _ in range(taps)], axis=2)
        maps.conv(kernel, padding=taps // 2)
        maps.act()
    maps.flatten()
    maps.dense(spread(rng, 6, 20, 12.0))
    assert excess(maps.network(), kind) <= 1e-8


def scaled(rng, factors):
    """A network of three layers with the given factors on their weights."""
    maps = Maps(1, 4, seed=int(rng.integers(2**16)))
    maps.conv(factors[0] * rng.normal(size=(2, 1, 3)), padding=1)
    maps.act()
    maps.conv(factors[1] * rng.normal(size=(2, 2, 3)), padding=1)
    maps.act(act.leaky_relu(-0.2))
    maps.flatten()
    maps.dense(factors[2] * rng.normal(size=(2, 8)))
    return maps.network()


@every_kind
@pytest.mark.parametrize("constant", [1e-30, 1e30])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_constants_of_any_size(kind, constant, place):
    factors = [constant if i == place else 1.0 for i in range(3)]
    assert excess(scaled(np.random.default_rng(place), factors), kind) <= 1e-8


@every_kind
@pytest.mark.parametrize("factors", [(1e-120, 1e100, 1e20), (1e120, 1e-100, 1e-20), (1e60, 1e-120, 1e60)])
def test_scales_that_cancel(kind, factors):
    assert excess(scaled(np.random.default_rng(3), factors), kind) <= 1e-8


@every_kind
@pytest.mark.parametrize("tiny", [5e-324, 1e-316, 1e-308])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_channel_of_denormal_weights(kind, place, tiny):
    """Few bits are left of them, and of their squares none: beside others they count for nothing, but do no harm."""
    factors = [1.0, 1.0, 1.0]
    factors[place] = np.array([tiny, 1.0]).reshape(2, *[1] * (2 if place < 2 else 1))
    network = scaled(np.random.default_rng(4), factors)
    assert any(0.0 < abs(value) < 2.0**-1022 for weight in network.weights.values() for value in weight.ravel())
    found = excess(network, kind)
    assert 0.0 < found <= 1e-8


@every_kind
@pytest.mark.parametrize("tiny", [5e-324, 1e-316, 1e-308])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_layers_of_denormal_weights(kind, place, tiny):
    """Their squares are zero: whatever is proven is above all the same."""
    case = KINDS[kind](scaled(np.random.default_rng(4), [tiny if i == place else 1.0 for i in range(3)]))
    given = [tuple(np.full(width, size) for width in case.posed.widths) for size in (1e-280, 1e-100, 1e100, 1e280)]
    found = [case.excess(multipliers) for multipliers in (case.base(), *given)]
    assert all(value is None or value > 0.0 for value in found)
    assert kind == "product" or any(value is not None for value in found)


# -- the edge of feasibility


def residual():
    maps = Maps(2, 4, seed=1)
    start = maps.conv(2, padding=1)
    maps.act(act.leaky_relu(0.1))
    maps.sum(start, maps.conv(2, padding=1))
    maps.act(act.gelu())
    maps.conv(1, kernel=2)
    return maps.network()


def strided():
    maps = Maps(1, 6, seed=2)
    maps.conv(2, padding=1)
    start = maps.act()
    branch = maps.conv(2, stride=2, padding=1)
    maps.sum(branch, maps.average(start, kernel=2, stride=2))
    maps.act()
    maps.conv(2, kernel=2)
    return maps.network()


def pooled():
    maps = Maps(1, 3, 3, seed=3)
    maps.conv(1, kernel=2, padding=[(0, 1), (0, 0)])
    maps.maximum(kernel=2, stride=1)
    maps.act(act.leaky_relu(-0.5))
    maps.flatten()
    maps.dense(4)
    maps.act()
    maps.dense(2)
    return maps.network()


@pytest.mark.parametrize("make", [residual, strided, pooled])
@pytest.mark.parametrize("kind", ["dense", "torus", "window"])
def test_multipliers_scaled_to_the_edge(kind, make):
    """One layer's multipliers grow until they are refused: what is accepted holds, and hardly further M is not ≻ 0."""
    case = KINDS[kind](make())
    base = case.base()
    for layer in range(len(base)):

        def at(share, layer=layer):
            return tuple(lam * (share if i == layer else 1.0) for i, lam in enumerate(base))

        low, high = 1.0, 2.0
        while case.figure(at(high)) is not None:
            low, high = high, 2.0 * high
        accepted = []
        for _ in range(45):
            middle = (low + high) / 2.0
            if case.figure(at(middle)) is None:
                high = middle
            else:
                low = middle
                accepted.append(low)
        for share in (*accepted[::15], low):
            assert case.excess(at(share)) > 0.0
        beyond = at(high * (1.0 + 1e-6))
        assert decided(lambda beyond=beyond: case.shape(beyond)) is None


# -- channels that never move, and depth


def dead(*, kernel, scale, row):
    """A channel of zero taps, one that a batch norm multiplies by zero, and a row of zeros: each of them, or none."""
    rng = np.random.default_rng(6)
    maps = Maps(2, 5, seed=6)
    first, last = rng.normal(size=(3, 2, 3)), rng.normal(size=(4, 15))
    first[1] *= not kernel
    last[2] *= not row
    maps.conv(first, padding=1)
    maps.affine([0.0 if scale else 1.0, 2.0, -0.5])
    maps.act()
    maps.flatten()
    maps.dense(last)
    maps.act()
    maps.dense(2)
    return maps.network()


@every_kind
@pytest.mark.parametrize("which", ["kernel", "scale", "row", "all"])
def test_channels_that_never_move(kind, which):
    network = dead(**{name: which in {name, "all"} for name in ("kernel", "scale", "row")})
    for _, found in measured(KINDS[kind](network), 7):
        assert found <= 1e-8


@every_kind
def test_a_hundred_layers(kind):
    rng = np.random.default_rng(8)
    maps = Maps(1, 4, seed=8)
    for _ in range(100):
        maps.conv(rng.normal(size=(1, 1, 2)), padding=[(0, 1)])
        maps.act()
    maps.flatten()
    maps.dense(2)
    assert excess(maps.network(), kind) <= 1e-7


# -- whole numbers, where the norm is known


LAPLACE = np.outer([-1.0, 2.0, -1.0], [-1.0, 2.0, -1.0])[None, None]
"""On 3 x 3 with padding 1: a Kronecker square of the second difference, whose norm is 2 + √2."""


def laplace(layers):
    maps = Maps(1, 3, 3)
    for layer in range(layers):
        if layer:
            maps.act()
        maps.conv(LAPLACE, padding=1)
    return maps.network()


@every_kind
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_whole_numbers_have_the_norm_that_is_known(kind, layers):
    """With T = λmax(Q) I the dense bound is the product; a slope of one everywhere attains it."""
    case = KINDS[kind](laplace(layers))
    bound = case.figure(case.base()).bound
    known = (2 + arb(2).sqrt()) ** (2 * layers)
    assert arb(bound) > known
    if kind in {"product", "dense"}:
        assert arb(bound) < known * (1.0 + 1e-9)
    else:
        # On a torus of side 4 the kernel's transform is 16 at ω = (π, π).
        assert bound <= 16.0**layers * (1.0 + 1e-8)


# -- not met yet


def in_a_row(*factors):
    """Convolutions of one tap each, nothing between them."""
    maps = Maps(1, 4)
    for factor in factors:
        maps.conv(np.full((1, 1, 1), factor))
    return maps.network()


@every_kind
def test_products_of_maps_whose_bits_underflow(kind):
    """1e-160 · 1.2342e-160 keeps four digits, the last of them too small; the constant is about 1.2342e-10."""
    found = excess(in_a_row(1e-160, 1.2342e-160, 1e160, 1e150), kind)
    assert found is None or found > 0.0  # refused, or above


@pytest.mark.parametrize("kind", ["product", "dense"])
def test_products_of_maps_that_underflow_are_not_zero(kind):
    assert excess(in_a_row(1e-170, 1e-170, 1e170), kind) > 0.0


def test_what_overflows_is_refused():
    assert DenseCase(in_a_row(1e160, 1.1e140)).figure(()) is None


@pytest.mark.parametrize("window", [False, True])
@pytest.mark.parametrize("divisor", [0.25, 2.0])
def test_an_average_pool_may_be_the_last_map_on_its_tori(divisor, window):
    maps = Maps(1, 4)
    pool = maps.average(kernel=2, stride=2, divisor=[divisor, divisor])
    case = TorusCase(maps.network(), cut=pool, window=window)
    assert 0.0 < case.excess(()) <= 1e-8
