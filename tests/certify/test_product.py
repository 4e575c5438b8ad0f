"""Closed forms reproduce published and measured figures, from above."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lipray.certify import product
from lipray.certify.certificate import Status
from lipray.certify.closed_form import closed_form
from lipray.certify.product import liplt, solve_product
from lipray.model import activations as act
from lipray.model.network import ChannelAffine, Concat, Conv, Dense, Input, Network, Node, Sum
from lipray.partition.subproblem import Settings, Subproblem
from lipray.verify import layer_norms
from lipray.verify import product as verified_product
from lipray.verify.elimination import evaluate, prepare
from lipray.verify.product import graph_product, sector_product
from lipray.verify.sector import lower
from tests.networks import RELU, networks

SMALL = [
    *(f"{kind}_s{i}" for kind in ("fnn2", "fnn3", "cnn2") for i in range(5)),
    "lipsdp_random",
    "lipsdp_mnist50",
    "eclipse_mnist_n100",
    *(f"tiny_{name}" for name in ("d9a07800", "665ba8f6", "35bc00fe", "2cf065c3")),
    "FC-R18",
]
LARGE = ["cnn3_s0", "2C2F", "2C2F_wd", "LeNet5_wd", "chain_C3_CH8", "chain_C5_CH8", "chain_C9_CH8", "chain_C3_CH16"]
NAMES = {"norm product": "product", "LipLT": "liplt", "ECLipsE-Fast": "eclipse_fast"}


def certificate_sizes(name, published):
    form = lower(published(name, None))
    return (form.input_size, *form.widths, sum(form.widths))


def known_figures(name, published, anchors):
    row = 7 if name.startswith(("fnn", "cnn")) else None
    certificate = solve_product(Subproblem(name, published(name, row), "product", Settings()))
    compared = 0
    for anchor, figure in NAMES.items():
        try:
            value = anchors(name, anchor)
        except KeyError:
            continue
        if figure not in certificate.figures:  # left out where it costs as much as the methods themselves
            assert max(certificate_sizes(name, published)) > product.CLOSED_FORMS_BELOW
            continue
        # Anchors are known to 6 digits at least, and ours are above the exact value.
        assert certificate.figures[figure] == pytest.approx(value, rel=1e-6), anchor
        assert certificate.figures[figure] >= value * (1.0 - 2e-7), anchor
        compared += 1
    assert compared > 0
    assert certificate.bound == certificate.figures["product"]
    assert certificate.status is Status.CLOSED_FORM


@pytest.mark.parametrize("name", SMALL)
def test_published_figures(name, published, anchors):
    known_figures(name, published, anchors)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_published_figures_of_larger_networks(name, published, anchors, monkeypatch):
    monkeypatch.setattr(product, "CLOSED_FORMS_BELOW", 10**6)
    known_figures(name, published, anchors)


def chain(*matrices):
    nodes, weights = [Node("x", Input(), (), (matrices[0].shape[1],))], {}
    for i, matrix in enumerate(matrices):
        if i:
            nodes.append(Node(f"r{i}", RELU, (len(nodes) - 1,), nodes[-1].shape))
        weights[f"w{i}"] = matrix
        nodes.append(Node(f"d{i}", Dense(f"w{i}", None), (len(nodes) - 1,), (len(matrix),)))
    return Network(tuple(nodes), weights)


def liplt_of_a_chain(matrices):
    """Fazlyab, Entesari, Roy & Chellappa 2023, for v_1 = W_1 x, v_j = W_j relu(v_{j-1})."""
    constants = []
    for j in range(len(matrices)):
        term = 2.0**-j * np.linalg.norm(np.linalg.multi_dot(matrices[j::-1]) if j else matrices[0], 2)
        for i in range(j):
            joined = matrices[i + 1] if j == i + 1 else np.linalg.multi_dot(matrices[j:i:-1])
            term += 2.0 ** -(j - i) * np.linalg.norm(joined, 2) * constants[i]
        constants.append(term)
    return constants[-1]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 2**16), st.lists(st.integers(1, 7), min_size=3, max_size=7))
def test_figures_of_chains_against_their_formulas(seed, widths):
    rng = np.random.default_rng(seed)
    matrices = [rng.normal(size=pair) for pair in zip(widths[1:], widths[:-1], strict=True)]
    figures = solve_product(Subproblem("chain", chain(*matrices), "product", Settings())).figures
    norms = math.prod(np.linalg.norm(matrix, 2) for matrix in matrices)
    assert norms * (1.0 - 1e-13) <= figures["product"] <= norms * (1.0 + 1e-8)
    known = liplt_of_a_chain(matrices)
    assert known * (1.0 - 1e-13) <= figures["liplt"] <= known * (1.0 + 1e-8)
    assert figures["eclipse_fast"] <= figures["product"] * (1.0 + 1e-9)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(networks())
def test_walking_the_graph_and_the_sector_form_are_two_bounds_of_one_map(network):
    form = lower(network)
    blocks = prepare(form)
    closed = evaluate(blocks, closed_form(blocks)).bound
    certificate = solve_product(Subproblem("test", network, "product", Settings()))
    graph, sector = graph_product(network), sector_product(form)
    assert certificate.bound == min(graph, sector)
    # Both hold for every map of the sector form's slopes, so none can be below what a linear choice attains.
    linear = sum((term.matrix.toarray() for term in form.output if term.source == 0), np.zeros((1, 1)))
    least = np.linalg.norm(linear, 2) * form.factor * (1.0 - 1e-12)
    for value in (graph, sector, liplt(form), closed):
        assert least <= value


def two_inputs(op, size):
    weights = {"a": np.diag([3.0, 1.0]), "b": np.diag([1.0, 4.0])}
    nodes = (
        Node("x", Input(), (), (2,)),
        Node("a", Dense("a", None), (0,), (2,)),
        Node("b", Dense("b", None), (0,), (2,)),
        Node("j", op, (1, 2), (size,)),
    )
    return Network(nodes, weights)


@pytest.mark.parametrize(
    ("op", "size", "value"),
    [
        (Sum((1.0, 1.0)), 2, 7.0),
        (Sum((1.0, -1.0)), 2, 7.0),
        (Sum((0.5, -2.0)), 2, 9.5),
        (Concat(0), 4, 5.0),
    ],
)
def test_sums_add_and_concatenations_take_the_root_of_squares(op, size, value):
    assert value <= graph_product(two_inputs(op, size)) <= value * (1.0 + 1e-12)


def test_slopes_beyond_one_enter_the_product():
    nodes = (
        Node("x", Input(), (), (2,)),
        Node("a", act.prelu((0.5, -2.0)), (0,), (2,)),
        Node("b", act.sigmoid(), (1,), (2,)),
    )
    network = Network(nodes, {})
    assert 0.5 <= graph_product(network) <= 0.5 * (1.0 + 1e-12)


def test_networks_too_large_for_the_sector_form_keep_their_product(monkeypatch):
    rng = np.random.default_rng(0)
    network = chain(rng.normal(size=(5, 3)), rng.normal(size=(2, 5)))
    known = solve_product(Subproblem("t", network, "product", Settings()))
    monkeypatch.setattr(product, "CLOSED_FORMS_BELOW", 4)
    assert set(solve_product(Subproblem("t", network, "product", Settings())).figures) == {"product"}
    monkeypatch.setattr(verified_product, "SECTOR_BELOW", 4)
    bare = solve_product(Subproblem("t", network, "product", Settings()))
    assert bare.bound == pytest.approx(known.bound, rel=1e-12)


@pytest.mark.parametrize(("groups", "stride", "side"), [(1, 1, 9), (2, 2, 9), (1, 2, 8)])
@pytest.mark.parametrize("matrix_below", [1, 10**6])
def test_a_batch_norm_joins_its_convolution(groups, stride, side, matrix_below, monkeypatch):
    """The norm of the two together, through the matrix and through the torus, and no bound of each alone."""
    monkeypatch.setattr(layer_norms, "MATRIX_BELOW", matrix_below)
    draw = np.random.default_rng(groups + 10 * stride)
    out = (side + 2 - 3) // stride + 1
    conv = Conv("weight", None, (stride,) * 2, ((1, 1),) * 2, (1, 1), groups)
    nodes = (
        Node("x", Input(), (), (4, side, side)),
        Node("conv", conv, (0,), (6, out, out)),
        Node("norm", ChannelAffine("scale", "shift"), (1,), (6, out, out)),
    )
    weights = {
        "weight": draw.standard_normal((6, 4 // groups, 3, 3)),
        "scale": np.array([2.0, -1.0, 0.1, 0.0, 0.5, 1e-3]),
        "shift": np.zeros(6),
    }
    network = Network(nodes, weights)
    exact = np.linalg.norm(lower(network).output[0].matrix.toarray(), 2)
    bound = graph_product(network)
    assert exact <= bound <= 1.1 * exact
    apart = graph_product(Network(nodes[:2], weights)) * 2.0
    assert bound < apart
