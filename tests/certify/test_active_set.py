"""Working on few slices finds the optimum over all of them, and never returns what some slice refuses."""

import itertools
import math
import time

import numpy as np
import pytest
import torch

from lipray.certify.active_set import MATRICES, minimise_over_slices
from lipray.certify.frequency.slices import slices, slices_bytes, slices_order
from lipray.certify.inequality import Inequality
from lipray.certify.interior import minimise
from lipray.certify.narrowing import narrowed
from lipray.certify.slice_values import SliceValues
from lipray.model.network import Conv
from lipray.verify.torus.proof import set_up
from tests.maps import Maps

MEMORY = 2**30


def spectra(weight, torus, pad):
    """K(ω) of a kernel (out, in, k, k) on the half plane of a torus."""
    reach = np.arange(weight.shape[-1]) - pad
    phase = [np.exp(2j * np.pi * np.outer(np.arange(n), reach) / torus) for n in (torus, torus // 2 + 1)]
    transformed = np.einsum("ocab,xa,yb->xyoc", weight.astype(complex), *phase)
    return torch.from_numpy(transformed.reshape(-1, *weight.shape[:2]))


def chain(weights):
    """The inequality of W_l relu(... relu(W_1 x)) from the layers' slices (F, out, in)."""
    count, _, d = weights[0].shape
    n = sum(w.shape[1] for w in weights[:-1])
    B = torch.zeros(count, n, d + n, dtype=weights[0].dtype)
    C = torch.zeros(count, weights[-1].shape[1], d + n, dtype=weights[0].dtype)
    places, row, column = [], 0, 0
    for w in weights[:-1]:
        place = (slice(row, row + w.shape[1]), slice(column, column + w.shape[2]))
        B[:, place[0], place[1]] = w
        places.append(place)
        row, column = place[0].stop, place[1].stop
    C[:, :, column:] = weights[-1]
    return Inequality(B, C, d, tuple(places))


def with_skips(seed, count=5, d=3, widths=(4, 3, 4)):
    """Random complex slices in which every layer and the output read everything before them, the input too."""
    rng = np.random.default_rng(seed)
    n = sum(widths)

    def normal(*shape):
        return torch.from_numpy(rng.normal(size=shape) + 1j * rng.normal(size=shape))

    B = torch.zeros(count, n, d + n, dtype=torch.complex128)
    places, row = [], 0
    for width in widths:
        place = (slice(row, row + width), slice(0, d + row))
        B[:, place[0], place[1]] = normal(count, width, d + row) / math.sqrt(8.0 * (d + row))
        places.append(place)
        row += width
    return Inequality(B, normal(count, 3, d + n) / 4.0, d, tuple(places))


def random_chain(seed, channels=(2, 4, 3, 4, 3), torus=8):
    rng = np.random.default_rng(seed)
    shapes = [(out, into, 3, 3) for into, out in itertools.pairwise(channels)]
    return chain([spectra(rng.normal(size=shape) / math.sqrt(4.0 * shape[1]), torus, 1) for shape in shapes])


def opened(form, multipliers=None, slack=1.05):
    """The recursion of shape matrices on all slices: multipliers λ = 1 / T and their value (bound squared).

    Without multipliers the closed form, T = slack · λmax(Q_vv) per layer.
    """
    d, values = form.inputs, []
    B, C = form.B.numpy(), form.C.numpy()
    Q = np.zeros((len(B), form.order, form.order), complex)
    Q[:, :d, :d] = np.eye(d)
    for rows, _ in form.places:
        end, width = d + rows.start, rows.stop - rows.start
        cross = B[:, rows, :end] @ Q[:, :end, :end]
        inner = cross @ B[:, rows, :end].conj().swapaxes(1, 2)
        if multipliers is None:
            t = np.full(width, slack * np.linalg.eigvalsh(inner)[:, -1].max())
        else:
            t = 1.0 / multipliers.numpy()[rows]
        R = 2.0 * np.diag(t) - inner
        assert np.linalg.eigvalsh(R).min() > 0.0
        joint = np.concatenate([cross, np.broadcast_to(np.diag(t), (len(B), width, width))], axis=-1)
        Q[:, : end + width, : end + width] += joint.conj().swapaxes(1, 2) @ np.linalg.solve(R, joint)
        values += t.tolist()
    top = np.linalg.eigvalsh(C @ Q @ C.conj().swapaxes(1, 2))[:, -1].max()
    return 1.0 / torch.tensor(values, dtype=torch.float64), float(top)


def matrix(form, lam, rho, value=1.0):
    """M(λ, ρ) with the output scaled by 1 / sqrt(value), assembled entry by entry from its definition."""
    B, C, d = form.B.numpy(), form.C.numpy(), form.inputs
    select = np.eye(form.order)[d:]
    half = np.einsum("a,ai,faj->fij", lam.numpy(), select, select - B)
    M = half + half.conj().swapaxes(1, 2) - C.conj().swapaxes(1, 2) @ C / value
    M[:, np.arange(d), np.arange(d)] += rho
    return M


def lowest(form, lam, rho, value=1.0):
    return np.linalg.eigvalsh(matrix(form, lam, rho, value))[:, 0]


FORMS = {
    "chain": random_chain,
    "wide input": lambda seed: random_chain(seed, (6, 3, 4, 2)),
    "one layer": lambda seed: random_chain(seed, (3, 4, 2)),
    "skips": with_skips,
}


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("memory", [1, MEMORY])
def test_slice_values_are_the_smallest_feasible(kind, memory):
    form = FORMS[kind](0)
    lam, scale = opened(form)
    values = SliceValues(form, memory)(lam, scale)
    assert float(values.max()) <= 1.0 + 1e-12
    assert torch.isfinite(values).all()
    for index, rho in enumerate(values.tolist()):
        assert lowest(form, lam, rho * (1.0 + 1e-7), scale)[index] > 0.0
        assert lowest(form, lam, rho * (1.0 - 1e-7), scale)[index] < 0.0
    hopeless = SliceValues(form, memory)(1e9 * lam, scale)
    assert bool((hopeless > 1e3).all())
    assert bool(torch.isinf(SliceValues(form, memory)(1e-9 * lam, scale)).any())


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("seed", [0, 1])
def test_few_slices_give_the_optimum_of_all(kind, seed):
    form = FORMS[kind](seed)
    lam, value = opened(form)
    everything = minimise(form, lam, value, tolerance=1e-8)
    few = minimise_over_slices(form, lam, value, tolerance=1e-8, memory=MEMORY)
    assert few.converged
    assert few.value == pytest.approx(everything.value, rel=1e-6)
    assert few.slices <= form.B.shape[0]
    assert few.value < 0.99 * math.sqrt(value)
    assert lowest(form, few.multipliers, 1.0 + 1e-9, few.value**2).min() > -1e-12


@pytest.mark.parametrize("kind", FORMS)
def test_the_recursion_from_the_input_agrees(kind):
    """The value is found from the output; what certifies it starts at the input, and must not meet a singular edge."""
    for seed in range(4):
        form = FORMS[kind](seed)
        result = minimise_over_slices(form, *opened(form), tolerance=1e-8, memory=MEMORY)
        _, value = opened(form, result.multipliers)
        assert math.sqrt(value) == pytest.approx(result.value, rel=1e-8)


def test_a_deep_chain_keeps_off_the_singular_edge():
    """On the edge itself the recursion gave a value 1e-4 too large for one such chain."""
    form = random_chain(0, (4,) * 15, 8)
    lam, value = opened(form)
    result = minimise_over_slices(form, lam, value, memory=MEMORY)
    assert result.converged
    assert result.value < 0.2 * math.sqrt(value)
    assert math.sqrt(opened(form, result.multipliers)[1]) == pytest.approx(result.value, rel=1e-7)


@pytest.mark.parametrize("share", [0.0, 1e-6])
def test_channels_that_are_all_but_dead_cost_no_more_iterations(share):
    rng = np.random.default_rng(10)
    weights = [spectra(rng.normal(size=(4, 4, 3, 3)) / 4.0, 8, 1) for _ in range(4)]
    form = chain(weights)
    alive = minimise_over_slices(form, *opened(form), memory=MEMORY)
    for layer, channel in ((0, 1), (1, 0), (1, 2), (2, 3)):
        weights[layer][:, channel] *= share
    weights[3][:, :, 0] *= share
    form = chain(weights)
    faint = minimise_over_slices(form, *opened(form), memory=MEMORY)
    assert faint.converged
    assert faint.iterations <= alive.iterations + 4
    assert faint.value < alive.value
    # Without the channels that receive nothing the optimum is the same.
    keep = [[0, 2, 3], [1, 3], [0, 1, 2]]
    rows = [*keep, [0, 1, 2, 3]]
    columns = [[0, 1, 2, 3], *keep]
    smaller = chain([w[:, r][:, :, c] for w, r, c in zip(weights, rows, columns, strict=True)])
    assert faint.value == pytest.approx(
        minimise_over_slices(smaller, *opened(smaller), memory=MEMORY).value, rel=1e-5 if share else 2e-6
    )


def test_one_slice_is_the_dense_problem():
    whole = random_chain(11, (3, 6, 6, 2))
    for form in (
        Inequality(whole.B[5:6], whole.C[5:6], whole.inputs, whole.places),
        Inequality(whole.B[:1].real.contiguous(), whole.C[:1].real.contiguous(), whole.inputs, whole.places),
    ):
        lam, value = opened(form)
        result = minimise_over_slices(form, lam, value, tolerance=1e-8, memory=MEMORY)
        assert result.value == pytest.approx(minimise(form, lam, value, tolerance=1e-8).value, rel=1e-7)
        assert result.slices == 1


def test_the_number_of_threads_is_left_as_it_was():
    known = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        form = random_chain(15, (2, 3, 2), 4)
        minimise_over_slices(form, *opened(form), memory=MEMORY)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(known)


@pytest.mark.parametrize("room", [0, 1, 3, 8])
def test_little_memory_means_fewer_slices_at_once(room):
    form = random_chain(12, (4, 6, 6, 6, 4), 12)
    lam, value = opened(form)
    best = minimise_over_slices(form, lam, value, memory=MEMORY)
    assert best.slices > 3
    memory = room * MATRICES * 16 * form.order**2
    few = minimise_over_slices(form, lam, value, memory=memory, iterations=80 if room else 10)
    assert few.slices <= max(1, room)
    assert best.value * (1.0 - 1e-6) <= few.value <= math.sqrt(value)
    assert lowest(form, few.multipliers, 1.0 + 1e-9, few.value**2).min() > -1e-12
    if room == 8:
        assert few.value == pytest.approx(best.value, rel=1e-6)


@pytest.mark.parametrize("kind", ["chain", "skips"])
def test_a_wide_input_is_replaced_by_a_square_factor(kind):
    form = random_chain(14, (9, 3, 4, 2)) if kind == "chain" else with_skips(14, d=16, widths=(3, 2, 4))
    narrow = narrowed(form)
    assert narrow.inputs == (3 if kind == "chain" else 12)
    lam, value = opened(form)
    assert opened(narrow, lam)[1] == pytest.approx(value, rel=1e-10)
    few = minimise_over_slices(form, lam, value, tolerance=1e-8, memory=MEMORY)
    assert few.value == pytest.approx(minimise(form, lam, value, tolerance=1e-8).value, rel=1e-6)
    assert lowest(form, few.multipliers, 1.0 + 1e-9, few.value**2).min() > -1e-12


@pytest.mark.parametrize("factor", [1e-8, 1e8])
def test_scales_of_layers_do_not_matter(factor):
    rng = np.random.default_rng(13)
    weights = [spectra(rng.normal(size=(3, 3, 3, 3)) / 4.0, 8, 1) for _ in range(3)]
    plain = chain(weights)
    form = chain([factor * weights[0], weights[1] / math.sqrt(factor), weights[2]])
    known = minimise_over_slices(plain, *opened(plain), tolerance=1e-8, memory=MEMORY)
    scaled = minimise_over_slices(form, *opened(form), tolerance=1e-8, memory=MEMORY)
    assert scaled.converged
    assert scaled.value == pytest.approx(known.value * math.sqrt(factor), rel=1e-7)


@pytest.mark.parametrize("kind", ["chain", "skips"])
def test_the_optimum_is_clarabels(kind):
    import cvxpy

    form = random_chain(3, (2, 3, 2), 4) if kind == "chain" else with_skips(3, count=3, d=2, widths=(2, 2))
    lam, value = opened(form)
    ours = minimise_over_slices(form, lam, value, tolerance=1e-9, memory=MEMORY)
    n = form.B.shape[1]
    basis = [matrix(form, unit, 0.0, math.inf) for unit in torch.eye(n, dtype=torch.float64)]
    none = torch.zeros(n, dtype=torch.float64)
    E, constant = matrix(form, none, 1.0, math.inf), matrix(form, none, 0.0, value)

    def real(H):
        return np.block([[H.real, -H.imag], [H.imag, H.real]])

    y, rho = cvxpy.Variable(n, nonneg=True), cvxpy.Variable()
    limits = [
        sum(y[a] * real(basis[a][f]) for a in range(n)) + rho * real(E[f]) + real(constant[f]) >> 0
        for f in range(form.B.shape[0])
    ]
    problem = cvxpy.Problem(cvxpy.Minimize(rho), limits)
    problem.solve(solver=cvxpy.CLARABEL, tol_gap_abs=1e-7, tol_gap_rel=1e-7, tol_feas=1e-7)
    assert problem.status == "optimal"
    assert ours.value == pytest.approx(math.sqrt(problem.value * value), rel=1e-6)


def test_more_slices_never_lower_the_optimum():
    form = random_chain(4)
    lam, value = opened(form)
    found = []
    for step in (8, 4, 2, 1):
        part = Inequality(form.B[::step], form.C[::step], form.inputs, form.places)
        found.append(minimise_over_slices(part, lam, value, tolerance=1e-8, memory=MEMORY).value)
    assert all(a <= b * (1.0 + 1e-8) for a, b in itertools.pairwise(found))
    assert found[0] < found[-1] * (1.0 - 1e-4)


def test_conjugate_slices_change_nothing_and_are_not_worked_on_twice():
    form = random_chain(5)
    lam, value = opened(form)
    once = minimise_over_slices(form, lam, value, memory=MEMORY)
    both = Inequality(torch.cat([form.B, form.B.conj()]), torch.cat([form.C, form.C.conj()]), form.inputs, form.places)
    twice = minimise_over_slices(both, lam, value, memory=MEMORY)
    assert twice.value == pytest.approx(once.value, rel=1e-6)
    assert twice.slices <= once.slices + 4


@pytest.mark.parametrize("iterations", [0, 1, 4, 8, 12])
@pytest.mark.parametrize("kind", FORMS)
def test_whenever_it_stops_every_slice_agrees(kind, iterations):
    form = FORMS[kind](6)
    lam, value = opened(form)
    result = minimise_over_slices(form, lam, value, iterations=iterations, memory=MEMORY)
    assert result.iterations <= iterations
    assert result.value <= math.sqrt(value)
    assert lowest(form, result.multipliers, 1.0 + 1e-9, result.value**2).min() > -1e-12


def test_more_iterations_are_never_worse():
    form = random_chain(7)
    lam, value = opened(form)
    found = [
        minimise_over_slices(form, lam, value, iterations=count, memory=MEMORY).value for count in (0, 8, 12, 16, 40)
    ]
    assert found[-1] < found[0]
    assert found[-1] == min(found)


def test_the_deadline_is_kept():
    form = random_chain(8, (8, 12, 12, 12, 12, 12, 8), 16)
    lam, value = opened(form)
    past = minimise_over_slices(form, lam, value, deadline=time.monotonic() - 1.0, memory=MEMORY)
    assert past.iterations == 0
    assert not past.converged
    assert torch.equal(past.multipliers, lam)
    # One look at the slices takes its time too; the rest must fit, whatever else the machine does.
    start = time.monotonic()
    minimise_over_slices(form, lam, value, iterations=1, memory=MEMORY)
    once = time.monotonic() - start
    start = time.monotonic()
    soon = minimise_over_slices(form, lam, value, deadline=start + 4.0 * once, memory=MEMORY)
    assert time.monotonic() - start < 12.0 * once
    assert soon.iterations < minimise_over_slices(form, lam, value, memory=MEMORY).iterations
    assert not soon.converged
    assert soon.value <= math.sqrt(value)
    assert lowest(form, soon.multipliers, 1.0 + 1e-9, soon.value**2).min() > -1e-12


def test_a_factor_of_the_input_or_the_output_is_part_of_the_maps():
    """Q = F F* on the input and P = R* R on the output: scaling both by 4 scales the bound by 4."""
    rng = np.random.default_rng(9)
    weights = [spectra(rng.normal(size=(3, 3, 3, 3)) / 4.0, 8, 1) for _ in range(3)]
    plain = chain(weights)
    scaled = chain([2.0 * weights[0], weights[1], 2.0 * weights[2]])
    lam, value = opened(plain)
    by_hand = minimise_over_slices(plain, lam, value, tolerance=1e-8, memory=MEMORY).value
    lam, value = opened(scaled)
    assert minimise_over_slices(scaled, lam, value, tolerance=1e-8, memory=MEMORY).value == pytest.approx(
        4.0 * by_hand, rel=1e-6
    )


OPTIMA = {"chain_C3_CH8": 7.64875728, "chain_C5_CH8": 27.517324, "chain_C9_CH8": 79.334563, "chain_C5_CH16": 35.878747}


@pytest.mark.parametrize("name", OPTIMA)
def test_published_chains(name, published):
    network = published(name)
    kernels = [
        np.asarray(network.weights[node.op.weight], float) for node in network.nodes if isinstance(node.op, Conv)
    ]
    form = chain([spectra(kernel, 16, 1) for kernel in kernels])
    lam, value = opened(form)
    begin = time.process_time()
    result = minimise_over_slices(form, lam, value, memory=MEMORY)
    assert time.process_time() - begin < 10.0
    assert result.converged
    assert result.value == pytest.approx(OPTIMA[name], rel=1e-6)
    assert result.slices < 40
    assert lowest(form, result.multipliers, 1.0 + 1e-9, result.value**2).min() > -1e-12


def test_the_memory_of_slices_is_known_before_they_are_made():
    maps = Maps(2, 6, 6)
    for channels in (3, 4, 5):
        maps.conv(channels, padding=1)
        maps.act()
    maps.conv(2, kernel=1)
    setup = set_up(maps.network())
    form = slices(setup)
    assert form.order == slices_order(setup)
    assert slices_bytes(setup) == 16 * (form.B.numel() + form.C.numel())
