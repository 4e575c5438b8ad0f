"""What multipliers certify, against other precision and other formulas."""

import math

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from mpmath import mp, mpf

from lipray.certify.closed_form import closed_form
from lipray.model.network import ChannelAffine, Conv, Dense, Input, Network, Node, Reshape
from lipray.verify.elimination import _lowering, eliminate, evaluate, prepare
from lipray.verify.sector import Layer, SectorForm, Term, lower
from tests.networks import RELU, networks
from tests.slopes import worst_slopes

quick = settings(max_examples=40, deadline=None, derandomize=True)
DIGITS = 90


def chain(*matrices):
    nodes, weights = [Node("x", Input(), (), (matrices[0].shape[1],))], {}
    for i, matrix in enumerate(matrices):
        if i:
            nodes.append(Node(f"r{i}", RELU, (len(nodes) - 1,), nodes[-1].shape))
        weights[f"w{i}"] = matrix
        nodes.append(Node(f"d{i}", Dense(f"w{i}", None), (len(nodes) - 1,), (len(matrix),)))
    return Network(tuple(nodes), weights)


def random_chain(rng, *widths):
    pairs = zip(widths[1:], widths[:-1], strict=True)
    return [rng.normal(size=pair) * math.sqrt(2.0 / pair[1]) for pair in pairs]


def eclipse_fast(matrices):
    """Xu & Sivaranjani 2024, in their own variables: Q <- T (2T - Q)⁻¹ T with T = λmax(Q) I."""
    shape = np.eye(matrices[0].shape[1])
    for matrix in matrices[:-1]:
        shape = matrix @ shape @ matrix.T
        top = np.linalg.eigvalsh(shape)[-1]
        shape = top * np.linalg.inv(2.0 * top * np.eye(len(shape)) - shape) * top
    return math.sqrt(np.linalg.eigvalsh(matrices[-1] @ shape @ matrices[-1].T)[-1])


def exact_gram(form, multipliers, noise=None):
    """C M⁻¹ Cᵀ of the inequality in 90 digits, or ``None`` where M is not positive definite.

    ``noise(term)`` gives an array added to a term's matrix: the exact map may differ by its error bound.
    """
    sizes = [form.input_size, *form.widths]
    starts = np.cumsum([0, *sizes])
    order = int(starts[-1])

    def rows(terms, height):
        full = [[mpf(0)] * order for _ in range(height)]
        for term in terms:
            matrix = term.matrix.toarray()
            extra = np.zeros_like(matrix) if noise is None or term.error is None else noise(term)
            for i, j in zip(*np.nonzero((matrix != 0) | (extra != 0)), strict=True):
                full[i][starts[term.source] + j] += mpf(float(matrix[i, j])) + mpf(float(extra[i, j]))
        return full

    M = mp.matrix(order, order)
    for i in range(form.input_size):
        M[i, i] = mpf(1)
    for number, (layer, lam) in enumerate(zip(form.layers, multipliers, strict=True), start=1):
        for a, row in enumerate(rows(layer.terms, layer.size)):
            place, weight = int(starts[number]) + a, mpf(float(lam[a]))
            M[place, place] += 2 * weight
            for j, value in enumerate(row):
                if value:
                    M[place, j] -= weight * value
                    M[j, place] -= weight * value
    try:
        factor = mp.cholesky(M)
    except ValueError:
        return None
    C = rows(form.output, form.output_size)
    solved = []
    for row in C:  # forward substitution
        y = []
        for i in range(order):
            y.append((row[i] - mp.fsum(factor[i, k] * y[k] for k in range(i) if factor[i, k])) / factor[i, i])
        solved.append(y)
    return mp.matrix([[mp.fsum(p * q for p, q in zip(a, b, strict=True)) for b in solved] for a in solved])


def dominates(form, multipliers, evaluation, noise=None):
    """Γ ⪰ C M⁻¹ Cᵀ and bound² >= λmax, both in 90 digits."""
    exact = exact_gram(form, multipliers, noise)
    assert exact is not None, "multipliers were accepted where the inequality does not hold"
    size = form.output_size
    gram = mp.matrix([[mpf(float(v)) for v in row] for row in evaluation.gram])
    scale = max([exact[i, i] for i in range(size)] + [mpf(10) ** -300])
    assert min(mp.eigsy((gram - exact) / scale, eigvals_only=True)) >= -(mpf(10) ** -60)
    top = max(mp.eigsy(exact / scale, eigvals_only=True)) * scale
    assert mpf(evaluation.bound) ** 2 >= top * mpf(form.factor) ** 2 * (1 - mpf(10) ** -60)
    return exact


@pytest.mark.parametrize("widths", [(3, 4, 2), (5, 8, 6, 4), (2, 9, 1), (4, 4, 4, 4, 4, 4), (3,) * 31])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_closed_form_is_eclipse_fast(widths, seed):
    matrices = random_chain(np.random.default_rng(seed), *widths)
    blocks = prepare(lower(chain(*matrices)))
    bound = evaluate(blocks, closed_form(blocks)).bound
    known = eclipse_fast(matrices)
    assert known * (1.0 - 1e-12) <= bound <= known * (1.0 + 1e-9)


@settings(quick, max_examples=25)
@given(networks(limit=9, layers=3), st.integers(0, 2**16))
def test_the_bound_of_random_multipliers_holds_in_high_precision(network, seed):
    form = lower(network)
    assume(0 < sum(form.widths) <= 24)
    blocks = prepare(form)
    rng = np.random.default_rng(seed)
    base = closed_form(blocks)
    with mp.workdps(DIGITS):
        for spread in (0.0, 0.3, 1.0):
            trial = [lam * np.exp(spread * rng.normal(size=lam.shape)) for lam in base]
            evaluation = evaluate(blocks, trial)
            if evaluation is not None:
                dominates(form, trial, evaluation)
            elif spread == 0.0:
                raise AssertionError("the closed form was not proven")


@settings(quick, max_examples=25)
@given(st.integers(0, 2**16), st.integers(1, 3))
def test_multipliers_on_the_brink_are_either_proven_or_refused(seed, depth):
    """Between feasible and infeasible multipliers, to the last bit: what is accepted holds in exact arithmetic."""
    rng = np.random.default_rng(seed)
    form = lower(chain(*random_chain(rng, 3, *rng.integers(2, 6, depth), 2)))
    blocks = prepare(form)
    base = closed_form(blocks)
    toward = [lam * np.exp(4.0 * rng.random(lam.shape)) for lam in base]

    def between(share):
        return [lam * (other / lam) ** share for lam, other in zip(base, toward, strict=True)]

    low, high = 0.0, 1.0
    while high < 64.0 and evaluate(blocks, between(high)) is not None:
        high *= 2.0
    assume(high < 64.0)
    for _ in range(52):
        middle = (low + high) / 2
        low, high = (middle, high) if evaluate(blocks, between(middle)) is not None else (low, middle)
    with mp.workdps(DIGITS):
        dominates(form, between(low), evaluate(blocks, between(low)))
        # Not refused far too early: a little further the inequality is false.
        assert exact_gram(form, between(high + 1e-6)) is None


@pytest.mark.parametrize("orders", [6, 30])
@pytest.mark.parametrize("depth", [1, 3])
def test_multipliers_over_many_orders_of_magnitude(orders, depth):
    """A neuron scaled by d (its row times d, what reads it divided by d) asks for a multiplier d² smaller."""
    rng = np.random.default_rng(3)
    matrices = random_chain(rng, 3, *(4,) * depth, 2)
    plain = prepare(lower(chain(*matrices)))
    base = closed_form(plain)
    value = evaluate(plain, base).bound
    scaled, multipliers = [matrix.copy() for matrix in matrices], []
    for i, lam in enumerate(base):
        d = 10.0 ** rng.uniform(-orders, orders, size=lam.shape)
        scaled[i] *= d[:, None]
        scaled[i + 1] /= d
        multipliers.append(lam / d**2)
    form = lower(chain(*scaled))
    evaluation = evaluate(prepare(form), multipliers)
    assert evaluation.bound == pytest.approx(value, rel=1e-9)
    with mp.workdps(DIGITS + 4 * orders):
        dominates(form, multipliers, evaluation)


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e10, 1e30])
def test_weights_of_any_size(scale):
    rng = np.random.default_rng(4)
    matrices = random_chain(rng, 3, 4, 4, 2)
    known = eclipse_fast(matrices)
    for which in range(3):
        changed = [matrix * (scale if i == which else 1.0) for i, matrix in enumerate(matrices)]
        form = lower(chain(*changed))
        blocks = prepare(form)
        evaluation = evaluate(blocks, closed_form(blocks))
        assert evaluation.bound == pytest.approx(known * scale, rel=1e-9)
        with mp.workdps(DIGITS):
            dominates(form, closed_form(blocks), evaluation)


@settings(quick, max_examples=20)
@given(st.integers(0, 2**16), st.sampled_from((1e-14, 1e-6, 1e-3)), st.booleans())
def test_inexact_maps_are_covered_whatever_their_error_is(seed, size, skip):
    """Every map within its entrywise error bound, the extreme ones included, has the certified bound."""
    rng = np.random.default_rng(seed)

    def term(source, rows, columns, *, exact=False):
        matrix = rng.normal(size=(rows, columns)) / math.sqrt(columns)
        error = None if exact else sp.csr_array(np.abs(rng.normal(size=(rows, columns))) * size)
        return Term(source, sp.csr_array(matrix), error)

    first = Layer("a", 4, (term(0, 4, 3, exact=True),))
    second = Layer("b", 3, (term(1, 3, 4), *((term(0, 3, 3, exact=True),) if skip else ())))
    output = (term(2, 2, 3), *((term(1, 2, 4),) if skip else ()))
    form = SectorForm(3, (first, second), output, 2)
    blocks = prepare(form)
    multipliers = [lam * 0.8 for lam in closed_form(blocks)]
    evaluation = evaluate(blocks, multipliers)
    assert evaluation is not None
    with mp.workdps(DIGITS):
        exact = exact_gram(form, multipliers)
        for kind in range(6):

            def noise(term, kind=kind):
                signs = rng.choice([-1.0, 1.0], size=term.matrix.shape)
                if kind < 2:  # all of one sign, or in the direction of the matrix itself
                    signs = np.ones_like(signs) if kind else np.sign(term.matrix.toarray())
                return signs * term.error.toarray()

            dominates(form, multipliers, evaluation, noise)
        # The allowance is of the error's own size.
        top = float(max(mp.eigsy(exact, eigvals_only=True)))
        assert evaluation.bound**2 <= top * (1.0 + 500.0 * size + 1e-10)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("late", [0.02, 1.0, 50.0])
def test_an_inexact_map_between_layers_is_covered_on_both_sides(late, sign):
    """The error of B_21 alone, with an output that depends far more on one of the two layers."""
    rng = np.random.default_rng(1)
    size = 1e-3
    first = Layer("a", 4, (Term(0, sp.csr_array(rng.normal(size=(4, 3))), None),))
    middle = rng.normal(size=(3, 4))
    second = Layer("b", 3, (Term(1, sp.csr_array(middle), sp.csr_array(np.abs(middle) * size)),))
    output = (
        Term(1, sp.csr_array(rng.normal(size=(1, 4))), None),
        Term(2, sp.csr_array(late * rng.normal(size=(1, 3))), None),
    )
    form = SectorForm(3, (first, second), output, 1)
    blocks = prepare(form)
    multipliers = closed_form(blocks)
    with mp.workdps(DIGITS):
        for pattern in (np.sign(middle), np.ones((3, 4)), np.array([[1.0, -1.0, 1.0, -1.0]] * 3)):
            noise = sign * pattern * np.abs(middle) * size
            dominates(form, multipliers, evaluate(blocks, multipliers), lambda _, noise=noise: noise)


@pytest.mark.parametrize("seed", range(4))
def test_the_allowance_for_rounding_is_at_least_the_textbooks(seed):
    """Higham 2002, theorem 10.3, summed over a row of the scaled matrix, for the factor as it filled in."""
    rng = np.random.default_rng(seed)
    widths = (4, 6, 5, 3)
    sources = [(0,), (1,), (1, 2), (0, 1, 3), (3,), (2, 4)][: 4 + seed % 3]
    layers = []
    for j, reads in enumerate(sources):
        rows = widths[j % 4]
        parts = (rng.normal(size=(rows, 4 if k == 0 else layers[k - 1].size)) / 2.0 for k in reads)
        terms = tuple(Term(k, sp.csr_array(part), None) for k, part in zip(reads, parts, strict=True))
        layers.append(Layer(f"l{j}", rows, terms))
    form = SectorForm(
        4, tuple(layers), (Term(len(layers), sp.csr_array(rng.normal(size=(2, layers[-1].size))), None),), 2
    )
    blocks = prepare(form)
    multipliers = [torch.from_numpy(lam) for lam in closed_form(blocks)]
    factor = eliminate(blocks, multipliers, proof=True)
    _, allowed = _lowering(blocks, multipliers, factor.scales)
    columns = [set(row) | ({0} if blocks.grams[j] else set()) for j, row in enumerate(factor.blocks)]
    diagonal = [2.0 * lam / scale**2 for lam, scale in zip(multipliers, factor.scales[1:], strict=True)]
    for j in range(1, len(layers) + 1):
        terms = sum(blocks.sizes[k] for k in columns[j] if k) + (blocks.taps if 0 in columns[j] else 0) + 1
        gamma = terms * 2.0**-53 / (1.0 - terms * 2.0**-53)
        touching = [k for k in range(1, len(layers) + 1) if columns[j] & columns[k]]
        row = sum(float(diagonal[k - 1].sqrt().sum()) for k in touching) * diagonal[j - 1].sqrt()
        assert 1.0 <= float(diagonal[j - 1].min()) <= float(diagonal[j - 1].max()) <= 4.0
        assert bool((allowed[j] >= gamma / (1.0 - gamma) * row).all())


def test_inexact_input_maps_are_covered():
    """A batch norm folded into the layer that reads the input: exact over every scale within its ulps."""
    rng = np.random.default_rng(5)
    nodes = (
        Node("x", Input(), (), (2, 3)),
        Node("c", Conv("w", None, (1,), ((1, 1),), (1,)), (0,), (2, 3)),
        Node("bn", ChannelAffine("s", "t"), (1,), (2, 3)),
        Node("r", RELU, (2,), (2, 3)),
        Node("f", Reshape(), (3,), (6,)),
        Node("d", Dense("v", None), (4,), (2,)),
    )
    weights = {"w": rng.normal(size=(2, 2, 3)), "s": rng.normal(size=2), "t": np.zeros(2), "v": rng.normal(size=(2, 6))}
    form = lower(Network(nodes, weights))
    assert form.layers[0].terms[0].error is not None
    blocks = prepare(form)
    multipliers = closed_form(blocks)
    with mp.workdps(DIGITS):
        dominates(
            form,
            multipliers,
            evaluate(blocks, multipliers),
            lambda term: np.sign(term.matrix.toarray()) * term.error.toarray(),
        )


KNOWN = np.kron(2.0 * np.eye(3) - np.eye(3, k=1) - np.eye(3, k=-1), 2.0 * np.eye(3) - np.eye(3, k=1) - np.eye(3, k=-1))
HADAMARD = np.array([[1.0, 1.0], [1.0, -1.0]])


@pytest.mark.parametrize(
    ("matrix", "norm"),
    [
        (KNOWN, (2.0 + math.sqrt(2.0)) ** 2),
        (np.kron(HADAMARD, np.kron(HADAMARD, HADAMARD)), math.sqrt(8.0)),
        (np.diag([3.0, -7.0, 2.0]), 7.0),
        (np.ones((4, 9)), 6.0),
        (np.array([[0.0, 5.0], [0.0, 0.0]]), 5.0),
    ],
)
def test_linear_networks_have_their_norm(matrix, norm):
    network = Network(
        (Node("x", Input(), (), matrix.shape[1:]), Node("d", Dense("w", None), (0,), matrix.shape[:1])), {"w": matrix}
    )
    blocks = prepare(lower(network))
    assert blocks.depth == 0
    bound = evaluate(blocks, ()).bound
    assert norm * (1.0 - 1e-15) <= bound <= norm * (1.0 + 1e-9)


def test_dead_neurons_and_zero_weights():
    rng = np.random.default_rng(6)
    first, second = rng.normal(size=(4, 3)), rng.normal(size=(2, 4))
    first[1] = 0.0
    dead = prepare(lower(chain(first, second)))
    assert dead.widths == (3,)
    without = prepare(lower(chain(np.delete(first, 1, 0), np.delete(second, 1, 1))))
    assert evaluate(dead, closed_form(dead)).bound == evaluate(without, closed_form(without)).bound
    for matrices in ((np.zeros((4, 3)), second), (first, np.zeros((2, 4))), (np.zeros((1, 1)), np.zeros((1, 1)))):
        blocks = prepare(lower(chain(*matrices)))
        assert evaluate(blocks, closed_form(blocks)).bound == 0.0


def test_unread_neurons_do_no_harm():
    rng = np.random.default_rng(7)
    first, second = rng.normal(size=(4, 3)), rng.normal(size=(2, 4))
    second[:, 2] = 0.0
    blocks = prepare(lower(chain(first, second)))
    evaluation = evaluate(blocks, closed_form(blocks))
    assert evaluation.bound >= worst_slopes(chain(first, second), 0)


def test_infeasible_multipliers_are_refused():
    rng = np.random.default_rng(8)
    form = lower(chain(*random_chain(rng, 3, 5, 4, 2)))
    blocks = prepare(form)
    base = closed_form(blocks)
    with mp.workdps(DIGITS):
        for layer in range(2):
            raised = [lam * (1e3 if i == layer else 1.0) for i, lam in enumerate(base)]
            assert exact_gram(form, raised) is None
            assert evaluate(blocks, raised) is None


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0, 0.0, -0.0, 1e-320, 1e300])
def test_unusable_multipliers_are_refused(layer, value):
    blocks = prepare(lower(chain(*random_chain(np.random.default_rng(9), 3, 5, 4, 2))))
    changed = [lam.copy() for lam in closed_form(blocks)]
    changed[layer][2] = value
    assert evaluate(blocks, changed) is None


def test_misshaped_multipliers_are_refused():
    blocks = prepare(lower(chain(*random_chain(np.random.default_rng(10), 3, 5, 4, 2))))
    first, second = closed_form(blocks)
    for wrong in (
        (),
        (first,),
        (first, second, second),
        (second, first),
        (first[:4], second),
        (first[:, None], second),
    ):
        assert evaluate(blocks, wrong) is None


def test_small_multipliers_are_the_trivial_limit_and_large_ones_are_refused():
    """λ -> 0 leaves the activation unconstrained: the bound grows without end; never below the closed form's truth."""
    matrices = random_chain(np.random.default_rng(11), 3, 5, 2)
    blocks = prepare(lower(chain(*matrices)))
    (base,) = closed_form(blocks)
    least = worst_slopes(chain(*matrices), 0)
    bounds = [evaluate(blocks, (base * share,)).bound for share in (1.0, 1e-3, 1e-6, 1e-9)]
    assert bounds == sorted(bounds)
    assert bounds[0] >= least


@quick
@given(st.integers(0, 2**16))
def test_pairwise_margins_from_the_gram_matrix(seed):
    rng = np.random.default_rng(seed)
    matrices = random_chain(rng, 3, 6, 4)
    blocks = prepare(lower(chain(*matrices)))
    gram = evaluate(blocks, closed_form(blocks)).gram
    for i, j in ((0, 1), (1, 3), (2, 0)):
        direction = np.eye(4)[i] - np.eye(4)[j]
        margin = chain(matrices[0], (direction @ matrices[1])[None])
        alone = math.sqrt(direction @ gram @ direction)
        assert worst_slopes(margin, seed) <= alone * (1.0 + 1e-12)


def test_deep_chains_do_not_lose_their_proof():
    rng = np.random.default_rng(12)
    matrices = random_chain(rng, *(6,) * 31)
    network = chain(*matrices)
    blocks = prepare(lower(network))
    evaluation = evaluate(blocks, closed_form(blocks))
    assert blocks.depth == 29
    assert worst_slopes(network, 0, starts=1, sweeps=2) <= evaluation.bound
    assert evaluation.bound <= math.prod(np.linalg.norm(matrix, 2) for matrix in matrices) * (1.0 + 1e-9)
