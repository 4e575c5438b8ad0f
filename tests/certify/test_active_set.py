"""Working on few slices finds the optimum over all of them, and never returns what some slice refuses."""

import itertools
import math
import time

import numpy as np
import pytest
import torch

from lipray.certify.active_set import minimise_over_slices
from lipray.certify.inequality import Inequality
from lipray.certify.interior import minimise
from lipray.certify.slice_values import SliceValues
from lipray.model.network import Conv

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


def opened(form, slack=1.05):
    """The closed form on all slices: T = slack · λmax(Q_vv) per layer; λ = 1 / T and the value (bound squared)."""
    d, values = form.inputs, []
    B, C = form.B.numpy(), form.C.numpy()
    Q = np.zeros((len(B), form.order, form.order), complex)
    Q[:, :d, :d] = np.eye(d)
    for rows, _ in form.places:
        end, width = d + rows.start, rows.stop - rows.start
        cross = B[:, rows, :end] @ Q[:, :end, :end]
        inner = cross @ B[:, rows, :end].conj().swapaxes(1, 2)
        t = slack * np.linalg.eigvalsh(inner)[:, -1].max()
        joint = np.concatenate([cross, np.broadcast_to(t * np.eye(width), (len(B), width, width))], axis=-1)
        Q[:, : end + width, : end + width] += joint.conj().swapaxes(1, 2) @ np.linalg.solve(
            2.0 * t * np.eye(width) - inner, joint
        )
        values += [t] * width
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
    problem.solve(solver=cvxpy.CLARABEL)
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
    start = time.monotonic()
    soon = minimise_over_slices(form, lam, value, deadline=start + 0.3, memory=MEMORY)
    assert time.monotonic() - start < 0.6
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
