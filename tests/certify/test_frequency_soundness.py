"""The frequency method against dense matrices, attained norms, other formulas and higher precision."""

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from mpmath import mp, mpf

from lipray.certify.frequency.bundle import in_place
from lipray.certify.frequency.objective import Working, measure
from lipray.certify.frequency.start import closed_start
from lipray.errors import PlanError
from lipray.model.network import AvgPool, Concat, Reshape
from lipray.verify.spectral import largest_eigenvalues_bound
from lipray.verify.torus.elimination import eliminate_level
from lipray.verify.torus.groups import frequencies_of
from lipray.verify.torus.layout import lay_out
from lipray.verify.torus.levels import lower_level
from lipray.verify.torus.proof import Means, set_up
from tests.circular import Circular
from tests.map_networks import map_networks
from tests.maps import Maps
from tests.slopes import Linearised, worst_slopes
from tests.tori import OnTorus

quick = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
DIGITS = 60


def on_torus(network, **options):
    try:
        torus = lay_out(network)
    except PlanError:
        assume(False)
    # Strides of three on every axis of every layer make tori that take minutes.
    assume(math.prod(torus.sides[0]) <= 3000)
    return OnTorus(network, torus, **options)


def exact_norm(network):
    """Norm of a network without activations on its zero-padded window."""
    return float(torch.linalg.matrix_norm(Linearised(network).jacobian({}), 2))


# -- the same as dense matrices on the torus


def check_against_dense(network, seed):
    torus = on_torus(network, window=True)
    assume(math.prod(torus.torus.sides[0]) <= 64)
    dense = Circular(network, torus.torus)
    assume(dense.order <= 800)
    lam = torus.scattered(np.random.default_rng(seed), 0.7)
    gram = dense.gram(torus.by_name(lam))
    size = max(np.abs(gram).max(), 1e-30)
    window = dense.window()
    np.testing.assert_allclose(
        torus.share(lam, proof=False).gram.numpy(), gram[np.ix_(window, window)], atol=1e-9 * size, rtol=0.0
    )
    if torus.end == len(network.nodes) - 1:
        top = OnTorus(network).share(lam, proof=False).top
        assert top == pytest.approx(np.linalg.eigvalsh(gram)[-1], abs=1e-9 * size)


@settings(quick, max_examples=45)
@given(map_networks(limit=20, layers=5, side=5), st.integers(0, 2**16))
def test_the_frequencies_are_the_dense_inequality_on_the_torus(network, seed):
    check_against_dense(network, seed)


@pytest.mark.slow
@settings(quick, max_examples=1000, derandomize=False)
@given(map_networks(limit=30, layers=7, side=6), st.integers(0, 2**16))
def test_the_frequencies_are_the_dense_inequality_on_other_networks_every_time(network, seed):
    check_against_dense(network, seed)


# -- never below what is attained, nor below the window


def check_soundness(network, seed):
    """Closed-form and other multipliers: strong lower bound <= dense <= torus, and the proof above the estimate."""
    torus = on_torus(network)
    low = worst_slopes(torus.network, seed) * (1.0 - 1e-12) - 1e-14
    # Multipliers drawn at random may lie close to infeasible, where rounding costs more.
    for lam, excess in ((torus.closed(), 1e-7), (torus.scattered(np.random.default_rng(seed), 1.0), 1e-4)):
        assert len(lam) == len(torus.problem.sizes)
        bound = torus.bound(lam)
        assert bound is not None
        assert low <= bound
        estimate = torus.bound(lam, proof=False)
        assert estimate * (1.0 - 1e-15) <= bound <= estimate * (1.0 + excess) + 1e-140
        dense = torus.on_the_window(lam)
        assert dense is None or dense <= bound * (1.0 + 1e-9) + 1e-140


@settings(quick, max_examples=25)
@given(map_networks(limit=30, layers=5), st.integers(0, 2**16))
def test_the_bound_is_above_what_is_attained_and_above_the_window(network, seed):
    check_soundness(network, seed)


@pytest.mark.slow
@settings(quick, max_examples=300, derandomize=False)
@given(map_networks(limit=60, layers=8), st.integers(0, 2**16))
def test_other_networks_every_time(network, seed):
    check_soundness(network, seed)


@settings(quick, max_examples=10)
@given(map_networks(limit=24, layers=4, tail=False), st.integers(0, 2**16))
def test_the_window_is_a_restriction_of_its_torus(network, seed):
    whole, window = on_torus(network), on_torus(network, window=True)
    lam = whole.scattered(np.random.default_rng(seed), 0.5)
    bound = whole.bound(lam)
    if whole.head is None:
        assert window.bound(lam) <= bound * (1.0 + 1e-9) + 1e-140
    low = worst_slopes(window.network, seed) * (1.0 - 1e-12) - 1e-14
    assert low <= window.bound(lam)


# -- linear networks: nothing is relaxed


def linear_cases():
    chain = Maps(2, 6, 5, seed=1)
    chain.conv(3, padding=1)
    yield "padded convolution", chain
    strided = Maps(1, 7, 7, seed=2)
    strided.conv(2, kernel=3, stride=2, padding=1)
    yield "strided convolution", strided
    residual = Maps(2, 8, 8, seed=3)
    body = residual.conv(3, kernel=3, stride=2, padding=1)
    residual.sum(body, residual.conv(3, 0, kernel=1, stride=2))
    yield "strided residual join", residual
    joined = Maps(2, 9, seed=4)
    body = joined.conv(2, kernel=5, stride=3, padding=2)
    skip = joined.average(0, kernel=3, stride=3)
    joined.concat(body, skip)
    joined.conv(2, kernel=1)
    yield "strided concatenation", joined
    late = Maps(1, 12, seed=5)
    body = late.conv(2, kernel=3, stride=2, padding=1)
    body = late.conv(2, body, kernel=2, stride=2)
    late.sum(body, late.conv(2, 0, kernel=4, stride=4), coefficients=(1.0, -2.0))
    yield "a shortcut over two strides", late
    grouped = Maps(4, 6, 6, seed=6)
    grouped.conv(6, kernel=3, padding=2, dilation=2, groups=2)
    grouped.affine([1.0, -2.0, 0.5, 3.0, 1.0, 0.0])
    yield "dilated and grouped", grouped


@pytest.mark.parametrize(("name", "maps"), [pytest.param(n, m, id=n) for n, m in linear_cases()])
def test_linear_networks_have_the_norm_of_their_torus(name, maps):
    del name
    network = maps.network()
    torus = OnTorus(network)
    assert torus.problem.sizes == ()
    bound = torus.bound(())
    around = np.linalg.norm(Circular(network, torus.torus).output[0], 2)
    assert around * (1.0 - 1e-14) <= bound <= around * (1.0 + 1e-8)
    exact = exact_norm(network)
    assert exact <= bound <= 1.4 * exact
    window = OnTorus(network, window=True).bound(())
    assert exact <= window <= bound * (1.0 + 1e-12)


# -- formulas


def one_level(network, lam):
    torus = OnTorus(network)
    (frequencies,) = frequencies_of([group for group, _ in torus.groups], torus.torus.sides)
    level = lower_level(network, torus.torus, torus.problem.handed, 0, frequencies)
    gram = eliminate_level(level, None, lam, proof=False).gram
    radians = [
        2.0 * math.pi * index.numpy() / side for index, side in zip(frequencies, torus.torus.coarse, strict=True)
    ]
    return gram.numpy(), np.stack(radians, axis=1)


def symbol(weight, omega, padding):
    """K(ω) = Σ_a K[a] e^{iω·(a - p)}, term by term."""
    total = np.zeros(weight.shape[:2], dtype=complex)
    for tap in np.ndindex(weight.shape[2:]):
        total += weight[(slice(None), slice(None), *tap)] * np.exp(1j * np.dot(omega, np.array(tap) - padding))
    return total


@pytest.mark.parametrize("shape", [(7,), (5, 6)])
@pytest.mark.parametrize("linear_shortcut", [False, True])
def test_a_residual_block_is_the_formula_for_its_output(shape, linear_shortcut):
    """Q_y = S Q S* + (S Q W1* + W2 T) R⁻¹ (W1 Q S* + T W2*), R = 2T - W1 Q W1*, for y = S x + W2 φ(W1 x)."""
    maps = Maps(2, *shape, seed=7)
    start = maps.conv(3, kernel=1)
    maps.conv(4, start, padding=1)
    maps.act()
    branch = maps.conv(3, padding=1)
    skip = maps.conv(3, start, kernel=1) if linear_shortcut else start
    maps.sum(skip, branch)
    torus = OnTorus(maps.network())
    (lam,) = torus.scattered(np.random.default_rng(8), 0.5)
    grams, radians = one_level(maps.network(), (lam,))
    weights = list(maps.weights.values())
    T = np.diag(1.0 / lam.numpy())
    for gram, omega in zip(grams, radians, strict=True):
        A = symbol(weights[0], omega, 0)
        W1, W2 = symbol(weights[1], omega, 1), symbol(weights[2], omega, 1)
        S = symbol(weights[3], omega, 0) if linear_shortcut else np.eye(3)
        Q = A @ A.conj().T
        R = 2.0 * T - W1 @ Q @ W1.conj().T
        mixed = S @ Q @ W1.conj().T + W2 @ T
        expected = S @ Q @ S.conj().T + mixed @ np.linalg.solve(R, mixed.conj().T)
        np.testing.assert_allclose(gram, expected, atol=1e-11 * np.abs(expected).max(), rtol=0.0)


def test_a_chain_is_the_recursion_on_every_frequency():
    """Q <- T (2T - Q)⁻¹ T between convolutions."""
    maps = Maps(2, 6, 5, seed=9)
    for channels in (3, 4):
        maps.conv(channels, padding=1)
        maps.act()
    maps.conv(2, padding=1)
    torus = OnTorus(maps.network())
    lam = torus.scattered(np.random.default_rng(10), 0.5)
    grams, radians = one_level(maps.network(), lam)
    weights = list(maps.weights.values())
    for gram, omega in zip(grams, radians, strict=True):
        Q = np.eye(2)
        for weight, multipliers in zip(weights, [*lam, None], strict=True):
            K = symbol(weight, omega, 1)
            Q = K @ Q @ K.conj().T
            if multipliers is not None:
                T = np.diag(1.0 / multipliers.numpy())
                Q = T @ np.linalg.solve(2.0 * T - Q, T)
        np.testing.assert_allclose(gram, Q, atol=1e-11 * np.abs(Q).max(), rtol=0.0)


# -- proof, in higher precision


def exact_gram(dense, by_name):
    """C M⁻¹ Cᵀ in 60 digits, or ``None`` where M is not positive definite; the matrices' entries are exact."""
    M, C = dense.inequality(by_name)
    starts = np.cumsum([0, dense.input, *(size for _, size, _, _ in dense.layers)])
    exact = mp.matrix(len(M), len(M))
    for i in range(len(M)):
        exact[i, i] = mpf(float(M[i, i]))
    for number, (name, _, _, value) in enumerate(dense.layers, start=1):
        for lam in (by_name[name].numpy(),):
            for signal, matrix in value.items():
                per_channel = len(matrix) // len(lam)
                for a, b in zip(*np.nonzero(matrix), strict=True):
                    entry = -mpf(float(lam[a // per_channel])) * mpf(float(matrix[a, b]))
                    i, j = int(starts[number] + a), int(starts[signal] + b)
                    exact[i, j] = exact[j, i] = entry
    try:
        factor = mp.cholesky(exact)
    except ValueError:
        return None
    order = len(M)
    solved = []
    for row in C:
        y = []
        for i in range(order):
            y.append((mpf(float(row[i])) - mp.fsum(factor[i, k] * y[k] for k in range(i))) / factor[i, i])
        solved.append(y)
    return mp.matrix([[mp.fsum(p * q for p, q in zip(a, b, strict=True)) for b in solved] for a in solved])


def small_chain(seed, *, strided):
    """Products of weights are never formed, so that every entry of the dense matrices is exact."""
    maps = Maps(1, 4, seed=seed)
    maps.conv(2, kernel=2, padding=[(0, 0)], stride=2 if strided else 1)
    maps.act()
    if not strided:
        maps.conv(1, kernel=2)
        maps.act()
    maps.conv(1, kernel=2, padding=[(1, 0)])
    return maps.network()


def dominates(network, lam):
    """The proven top, and the proven shape matrix of the window, are above the exact ones."""
    whole, window = OnTorus(network), OnTorus(network, window=True)
    dense = Circular(network, whole.torus)
    with mp.workdps(DIGITS):
        exact = exact_gram(dense, whole.by_name(lam))
        assert exact is not None, "multipliers were accepted where the inequality does not hold"
        top = max(mp.eigsy(exact, eigvals_only=True))
        assert mpf(whole.share(lam).top) >= top
        share = window.share(lam)
        index = [int(i) for i in dense.window()]
        excess = mp.matrix(len(index), len(index))
        for i, a in enumerate(index):
            for j, b in enumerate(index):
                excess[i, j] = mpf(float(share.gram[i, j])) - exact[a, b] + (mpf(share.error) if i == j else 0)
        assert min(mp.eigsy(excess, eigvals_only=True)) >= -top * mpf(10) ** -50
    return top


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_what_is_proven_holds_in_exact_arithmetic(strided, seed):
    network = small_chain(seed, strided=strided)
    torus = OnTorus(network)
    rng = np.random.default_rng(seed)
    for spread in (0.0, 1.0):
        lam = torus.scattered(rng, spread)
        top = dominates(network, lam)
        assert torus.share(lam).top <= float(top) * (1.0 + 1e-9)


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("seed", [3, 4])
def test_multipliers_on_the_brink_are_either_proven_or_refused(strided, seed):
    """Between feasible and infeasible multipliers, to the last bit."""
    network = small_chain(seed, strided=strided)
    torus = OnTorus(network)
    rng = np.random.default_rng(seed)
    base = torus.closed()
    toward = [lam * torch.from_numpy(np.exp(3.0 * rng.random(lam.shape))) for lam in base]

    def between(share):
        return tuple(a * (b / a) ** share for a, b in zip(base, toward, strict=True))

    low, high = 0.0, 1.0
    while torus.share(between(high)) is not None:
        high *= 2.0
    for _ in range(52):
        middle = (low + high) / 2
        low, high = (middle, high) if torus.share(between(middle)) is not None else (low, middle)
    dominates(network, between(low))
    with mp.workdps(DIGITS):
        # Not refused far too early: a little further the inequality is false.
        assert exact_gram(Circular(network, torus.torus), torus.by_name(between(high + 1e-6))) is None


def test_rows_over_the_window_are_proven_in_exact_arithmetic():
    """A pool and a dense layer behind the torus: Q and its error bound against W C M⁻¹ Cᵀ Wᵀ in 60 digits."""
    maps = Maps(1, 6, seed=13)
    maps.conv(2, kernel=2)
    relu = maps.act()
    maps.average(kernel=2, stride=3)
    maps.flatten()
    maps.dense(3)
    network = maps.network()
    torus = OnTorus(network)
    assert (torus.torus.cut, torus.end, torus.head.rows) == (relu, len(network.nodes) - 1, 3)
    lam = torus.closed()
    dense = Circular(network, torus.torus)
    # Halves of the dense layer's weights, exact: each pool reads two of the window's five entries.
    rows = np.zeros((3, 2, 5))
    weight = maps.weights[network.nodes[-1].op.weight].reshape(3, 2, 2)
    for place, start in enumerate((0, 3)):
        rows[:, :, start : start + 2] = weight[:, :, place, None] / 2.0
    rows = rows.reshape(3, -1)
    index = [int(i) for i in dense.window()]
    with mp.workdps(DIGITS):
        exact = exact_gram(dense, torus.by_name(lam))
        part = mp.matrix([[exact[a, b] for b in index] for a in index])
        W = mp.matrix([[mpf(float(v)) for v in row] for row in rows])
        expected = W * part * W.T
        share = torus.share(lam)
        excess = mp.matrix(share.gram.tolist()) - expected + mp.eye(3) * mpf(share.error)
        top = max(mp.eigsy(expected, eigvals_only=True))
        assert min(mp.eigsy(excess, eigvals_only=True)) >= 0
        assert share.error <= 1e-9 * top


@pytest.mark.parametrize("power", [-400, -60, 60, 400])
def test_weights_of_any_size_scale_the_bound(power):
    """Powers of two are exact: the first convolution scaled by 2^k, its multipliers by 4^-k, scale the bound by 2^k."""
    bounds = []
    for factor in (1.0, 2.0**power):
        maps = Maps(1, 6, 6, seed=11)
        start = maps.conv(factor * np.random.default_rng(12).normal(size=(2, 1, 3, 3)), padding=1)
        maps.act()
        maps.sum(start, maps.conv(2, padding=1))
        maps.act()
        maps.conv(2, stride=2, padding=1)
        torus = OnTorus(maps.network())
        bounds.append(torus.bound(torus.closed()))
    assert bounds[1] == pytest.approx(bounds[0] * 2.0**power, rel=1e-9)


# -- cases met


def test_nan_never_passes_for_a_small_eigenvalue():
    for size in (1, 3):
        assert largest_eigenvalues_bound(torch.full((2, size, size), math.nan, dtype=torch.complex128)) == math.inf


def test_numbers_beyond_the_range_of_floats_never_give_a_small_bound():
    """1e-200 and 1e200: squares under- and overflow, and the constant is 1."""
    maps = Maps(1, 6)
    maps.conv(np.array([[[1e-200]]]))
    maps.act()
    maps.conv(np.array([[[1e200]]]))
    torus = OnTorus(maps.network())
    lam = torus.closed()
    bound = torus.bound(lam) if lam else None
    assert bound is None or bound >= 1.0


def two_readers():
    """Global average and flattened map side by side; two dense layers on one vector; a skip around the first."""
    maps = Maps(1, 6)
    maps.conv(2)
    last = maps.act()
    pooled = maps.flatten(maps.average(kernel=4, stride=4))
    flat = maps.flatten(last)
    maps.add(Concat(0), (pooled, flat), (10,))
    yield maps, last
    maps = Maps(1, 6)
    maps.conv(2)
    maps.act()
    flat = maps.flatten()
    maps.sum(maps.dense(3, flat), maps.dense(3, flat))
    yield maps, flat
    maps = Maps(1, 6)
    maps.conv(2)
    maps.act()
    flat = maps.flatten()
    maps.dense(5)
    maps.act()
    maps.sum(flat, maps.dense(8))
    yield maps, flat


@pytest.mark.parametrize(("maps", "end"), list(two_readers()))
def test_a_head_ends_before_a_second_branch_reads_it(maps, end):
    torus = OnTorus(maps.network())
    assert torus.end == end
    lam = torus.closed()
    assert worst_slopes(torus.network, 0) <= torus.bound(lam)


@pytest.mark.parametrize("channels", [2, 4])
def test_a_pool_after_a_reshape_is_in_the_head_only_if_channels_stay(channels):
    maps = Maps(2, 6, 4)
    maps.act()
    reshaped = maps.add(Reshape(), (maps.last,), (channels, 48 // channels))
    pool = maps.add(AvgPool((3,), (3,), ((0, 0),)), (reshaped,), (channels, 16 // channels))
    maps.act()
    torus = OnTorus(maps.network())
    assert torus.end == (pool if channels == 2 else reshaped)
    assert worst_slopes(torus.network, 0) <= torus.bound(torus.closed())


@pytest.mark.parametrize(
    "divisor", [[2.0] * 5, [1.0, 2.0, 2.0, 2.0, 1.0], [0.01, 0.02] * 2 + [0.03], [-1.0, 2.0] * 2 + [1.0]]
)
def test_average_pools_with_any_divisors(divisor):
    maps = Maps(1, 6, seed=3)
    maps.conv(1, kernel=1)
    maps.average(kernel=2, stride=1, divisor=np.array(divisor))
    maps.conv(1, kernel=2)
    torus = OnTorus(maps.network())
    assert len(torus.problem.sizes) == (len(set(divisor)) > 1)
    low = worst_slopes(maps.network(), 0)
    assert low <= torus.bound(torus.closed())


def test_a_network_without_one_torus_is_refused_by_the_layout_alone():
    maps = Maps(4)
    maps.dense(2)
    with pytest.raises(PlanError):
        lay_out(maps.network())


def test_a_constant_network_on_several_tori_is_no_error():
    """Its objective may underflow to zero, whose logarithm nobody may take."""
    maps = Maps(1, 6)
    maps.conv(np.ones((1, 1, 3)), padding=1)
    maps.act()
    maps.conv(np.zeros((1, 1, 3)), padding=1, stride=2)
    maps.act()
    maps.conv(np.ones((1, 1, 3)), padding=1, stride=2)
    setup = set_up(maps.network())
    means = Means(in_place)
    known = closed_start(setup, means)
    # The layer that never moves takes any multiplier, and the bound falls with it.
    theta = torch.log(torch.from_numpy(np.concatenate(known.multipliers))) + torch.tensor([0.0, 20.0])
    assert measure(Working(setup, None, kept=False), theta, 256.0, means, 1.0) is None
