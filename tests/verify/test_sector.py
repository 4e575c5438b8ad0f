"""Lowering to sector form is exact, and its error matrices cover the rounding."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lipray.model import activations as act
from lipray.model.evaluate import evaluate
from lipray.model.network import (
    Activation,
    AvgPool,
    ChannelAffine,
    Concat,
    Dense,
    Input,
    MaxPool,
    Network,
    Node,
    Softmax,
    Sum,
    array_keys,
)
from lipray.verify import linear_maps as lm
from lipray.verify.sector import lower
from tests.networks import PIECEWISE, RELU, Builder, networks
from tests.slopes import Linearised, without_biases

quick = settings(max_examples=60, deadline=None, derandomize=True)


def run(form, x, function):
    """The lowered network on one input; ``function(layer, v)`` gives the outputs of a layer."""
    signals = [x]
    for layer in form.layers:
        v = sum(term.matrix @ signals[term.source] for term in layer.terms)
        assert v.shape == (layer.size,)
        assert all(term.source < len(signals) for term in layer.terms)
        signals.append(function(layer, v))
    return sum((term.matrix @ signals[term.source] for term in form.output), np.zeros(form.output_size))


@quick
@given(networks(activations=PIECEWISE, softmax=False, limit=60), st.integers(0, 2**16))
def test_the_lowered_network_computes_the_network(network, seed):
    """z = a v + (b - a) relu(v) is every leaky ReLU; a max-pool's tree is made of ReLUs."""
    network = Network(network.nodes, without_biases(network))
    form = lower(network)
    x = np.random.default_rng(seed).normal(size=(4, *network.input_shape))
    x[0] = np.round(x[0])  # ties
    image = evaluate(network, torch.from_numpy(x)).numpy().reshape(4, -1)
    for point, wanted in zip(x, image, strict=True):
        found = run(form, point.ravel(), lambda _, v: upward(network, v, _))
        np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-10)


def upward(network, v, layer):
    """u of functions whose larger slope is to the right of zero or, for negative slopes above 1, to its left."""
    node = next(node for node in network.nodes if node.name == layer.name.split(".max")[0])
    if isinstance(node.op, Activation) and node.op.function == "leaky_relu" and max(node.op.parameters) > 1.0:
        slopes = np.asarray(node.op.parameters)
        size = node.size // len(slopes)
        full = np.repeat(slopes, size) if len(slopes) > 1 else np.full(node.size, slopes[0])
        steep = full[moving(network, node, layer, full)] > 1.0
        return np.where(steep, np.minimum(v, 0.0), np.maximum(v, 0.0))
    return np.maximum(v, 0.0)


def moving(network, node, layer, slopes):
    """Entries of an activation that became neurons: their slope varies and their input can change."""
    index = network.nodes.index(node)
    prefix = Network(network.nodes[: node.inputs[0] + 1], network.weights)
    before = lower(prefix)
    touched = np.zeros(node.size, dtype=bool)
    for term in before.output:
        touched |= np.diff(term.matrix.indptr) > 0
    kept = np.flatnonzero(touched & (slopes != 1.0))
    assert kept.size == layer.size, index
    return kept


@quick
@given(networks(softmax=False), st.integers(0, 2**16))
def test_slopes_of_the_sector_form_are_slopes_of_the_network(network, seed):
    """With slope t at every neuron of a layer the sector form is the network with slopes a + (b - a) t."""
    assume(not any(isinstance(node.op, MaxPool) for node in network.nodes))
    rng = np.random.default_rng(seed)
    shares = {node.name: rng.random() for node in network.nodes}
    linear = Linearised(network)
    choices = {
        key: low + (high - low) * shares[network.nodes[int(key.removeprefix("choice"))].name]
        for key, (low, high) in linear.intervals.items()
    }
    jacobian = linear.jacobian(choices).numpy()
    form = lower(network)
    for column, wanted in zip(np.eye(form.input_size), jacobian.T, strict=True):
        found = run(form, column, lambda layer, v: shares[layer.name] * v)
        np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-10)


def one_activation(op, shape=(3,)):
    return Network((Node("x", Input(), (), shape), Node("a", op, (0,), shape)), {})


def test_slope_intervals_are_covered_in_exact_arithmetic():
    rng = np.random.default_rng(0)
    for low, high in [(0.0, 1.0), (-0.2, 1.0), (1e-30, 1.0), (-0.1, 0.3), *np.sort(rng.normal(size=(50, 2)))]:
        form = lower(one_activation(Activation("leaky_relu", (float(low),), (float(high),), (float(low),))))
        terms = {term.source: term for term in form.output}
        bottom = Fraction(terms[0].matrix.toarray()[0, 0]) if 0 in terms else Fraction(0)
        width = Fraction(terms[1].matrix.toarray()[0, 0])
        assert bottom <= Fraction(float(low))
        assert bottom + width >= Fraction(float(high))
        assert bottom + width <= Fraction(float(high)) + Fraction(1, 10**15)


def test_slopes_per_channel_go_to_their_channel():
    form = lower(one_activation(act.prelu((0.25, 1.0, -0.5)), (3, 2)))
    (layer,) = form.layers
    assert layer.size == 4  # the middle channel is linear
    found = run(form, np.array([-1.0, 1.0, -1.0, 1.0, -1.0, 1.0]), lambda _, v: np.maximum(v, 0.0))
    np.testing.assert_allclose(found, [-0.25, 1.0, -1.0, 1.0, 0.5, 1.0], rtol=1e-15)


def test_neurons_that_never_move_are_left_out():
    weight = np.array([[1.0, 2.0], [0.0, 0.0], [3.0, 0.0]])
    nodes = (
        Node("x", Input(), (), (2,)),
        Node("d", Dense("w", "b"), (0,), (3,)),
        Node("r", RELU, (1,), (3,)),
        Node("e", Dense("v", None), (2,), (1,)),
    )
    form = lower(Network(nodes, {"w": weight, "b": np.ones(3), "v": np.array([[1.0, 10.0, 100.0]])}))
    assert form.widths == (2,)
    assert run(form, np.array([1.0, 0.0]), lambda _, v: v).item() == 301.0
    # The same number on both sides of a maximum: nothing to choose.
    pool = MaxPool((3,), (1,), ((1, 1),), (1,))
    same = Network((Node("x", Input(), (), (1, 1)), Node("p", pool, (0,), (1, 1))), {})
    assert lower(same).widths == ()


def test_a_linear_activation_makes_no_layer():
    assert lower(one_activation(act.leaky_relu(1.0))).layers == ()


def test_final_softmax_is_a_factor():
    for log, factor in ((False, 0.5), (True, math.sqrt(3.0))):
        nodes = (Node("x", Input(), (), (3,)), Node("s", Softmax(log), (0,), (3,)))
        form = lower(Network(nodes, {}))
        assert form.factor >= factor
        assert form.factor == pytest.approx(factor, rel=1e-15)


# Rounding: the same products in rational arithmetic.


def fractions(matrix):
    return [[Fraction(float(v)) for v in row] for row in np.asarray(matrix)]


def exact_matrix(node, weights, shapes):
    """The operation's matrix with its true entries: 1/9 is not a double."""
    if isinstance(node.op, AvgPool):
        ones = lm.operation_matrix(
            AvgPool(node.op.kernel, node.op.stride, node.op.padding, "one"), {"one": np.ones(1)}, *shapes
        )
        divisor = math.prod(node.op.kernel) if node.op.divisor is None else weights[node.op.divisor]
        full = np.broadcast_to(divisor, node.shape[1:]).ravel()
        per_row = [Fraction(float(full[row % full.size])) for row in range(node.size)]
        return [[v / d for v in row] for row, d in zip(fractions(ones.toarray()), per_row, strict=True)]
    return fractions(lm.operation_matrix(node.op, weights, *shapes).toarray())


def multiply(a, b):
    columns = list(zip(*b, strict=True))
    result = []
    for row in a:
        live = [(i, v) for i, v in enumerate(row) if v]
        result.append([sum((v * column[i] for i, v in live), Fraction(0)) for column in columns])
    return result


def add(a, b):
    return [[x + y for x, y in zip(*rows, strict=True)] for rows in zip(a, b, strict=True)]


def exact_linear(network):
    """The whole map of a network without activations, in rational arithmetic."""
    values = []
    for node in network.nodes:
        shapes = [network.nodes[i].shape for i in node.inputs]
        match node.op:
            case Input():
                value = fractions(np.eye(node.size))
            case Sum():
                value = [[Fraction(0)] * math.prod(network.input_shape) for _ in range(node.size)]
                for coefficient, i in zip(node.op.coefficients, node.inputs, strict=True):
                    value = add(value, [[Fraction(coefficient) * v for v in row] for row in values[i]])
            case Concat():
                places = [fractions(p.toarray()) for p in lm.concatenation(shapes, node.op.axis)]
                parts = [multiply(place, values[i]) for place, i in zip(places, node.inputs, strict=True)]
                value = parts[0]
                for part in parts[1:]:
                    value = add(value, part)
            case _:
                value = multiply(exact_matrix(node, network.weights, (shapes[0], node.shape)), values[node.inputs[0]])
        values.append(value)
    return values[-1]


def covers(network):
    form = lower(network)
    exact = exact_linear(network)
    zero = np.zeros((form.output_size, form.input_size))
    matrix, error = zero, zero
    for term in form.output:
        matrix = term.matrix.toarray()
        error = zero if term.error is None else term.error.toarray()
    for row, errors, wanted in zip(matrix, error, exact, strict=True):
        for value, bound, true in zip(row, errors, wanted, strict=True):
            assert abs(Fraction(float(value)) - true) <= Fraction(float(bound))
    # And no more than a small multiple of what rounding can do.
    scale = max((abs(float(v)) for row in exact for v in row), default=0.0)
    return float(error.max(initial=0.0)), scale


@st.composite
def linear_networks(draw):
    rank = draw(st.integers(1, 2))
    shape = (draw(st.integers(1, 2)), *(draw(st.integers(2, 3 if rank == 2 else 5)) for _ in range(rank)))
    builder = Builder(draw, rank, shape, integers=False, limit=16)
    last = 0

    def total(source):
        channels, *sizes = builder.nodes[source].shape
        branch = builder.conv(source, same=True, channels=channels)
        return builder.add(Sum((1.0, 0.3, -1.7)), (source, branch, source), channels, sizes)

    steps = {
        "conv": builder.conv,
        "average": lambda source: builder.pool(source, maximum=False),
        "pad": builder.pad,
        "affine": builder.affine,
        "concat": lambda source: builder.add(
            Concat(0), (source, source), 2 * builder.nodes[source].shape[0], builder.nodes[source].shape[1:]
        ),
        "sum": total,
    }
    for kind in draw(st.lists(st.sampled_from(sorted(steps)), min_size=2, max_size=4)):
        if builder.nodes[last].size <= 16:
            last = steps[kind](last)
    last = builder.dense(last, 2)
    network = builder.network()
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    # Full mantissas and cancellation.
    for key in array_keys(network):
        if not any(getattr(node.op, "divisor", None) == key for node in network.nodes):
            network.weights[key] = rng.normal(size=network.weights[key].shape) * 10.0 ** rng.integers(-6, 6)
    return network


@settings(quick, max_examples=50)
@given(linear_networks())
def test_errors_cover_the_rounding_of_folded_linear_maps(network):
    if not any(isinstance(node.op, ChannelAffine) for node in network.nodes):
        covers(network)
        return
    # A channel's scale is itself allowed to be a few ulps off: change it, and the bound still holds.
    covers(network)
    changed = dict(network.weights)
    for node in network.nodes:
        if isinstance(node.op, ChannelAffine):
            changed[node.op.scale] = network.weights[node.op.scale] * (1.0 + 4.0 * 2.0**-53)
    form = lower(network)
    exact = exact_linear(Network(network.nodes, changed))
    for term in form.output:
        difference = np.array([[float(v) for v in row] for row in exact]) - term.matrix.toarray()
        assert (np.abs(difference) <= term.error.toarray() * (1.0 + 1e-6) + 1e-300).all()


@pytest.mark.parametrize("coefficients", [(1.0, 1.0), (1.0, -1.0), (0.3, 1.0), (0.1, -0.7)])
def test_sums_round_and_say_so(coefficients):
    rng = np.random.default_rng(1)
    nodes = (
        Node("x", Input(), (), (4,)),
        Node("a", Dense("a", None), (0,), (5,)),
        Node("b", Dense("b", None), (0,), (5,)),
        Node("s", Sum(coefficients), (1, 2), (5,)),
    )
    error, scale = covers(Network(nodes, {"a": rng.normal(size=(5, 4)), "b": rng.normal(size=(5, 4))}))
    assert 0.0 < error <= 1e-15 * max(scale, 1.0)
    # One summand only: nothing but the coefficient rounds.
    single = (*nodes[:2], Node("s", Sum(coefficients[:1]), (1,), (5,)))
    error, _ = covers(Network(single, {"a": rng.normal(size=(5, 4))}))
    assert (error == 0.0) is (coefficients[0] == 1.0)


def test_a_signal_read_several_times_is_added_up_with_its_error():
    nodes = (
        Node("x", Input(), (), (1,)),
        Node("c", Concat(0), (0, 0, 0), (3,)),
        Node("d", Dense("w", None), (1,), (1,)),
    )
    error, _ = covers(Network(nodes, {"w": np.array([[1e20, 1.0, -1e20]])}))
    assert error >= 1.0
    pool = MaxPool((2,), (1,), ((1, 1),), (1,))
    overlapping = Network(
        (Node("x", Input(), (), (1, 2)), Node("p", pool, (0,), (1, 3)), Node("d", Dense("w", None), (1,), (1, 1))),
        {"w": np.array([[0.1, 0.7, 1e10]])},
    )
    for term in lower(overlapping).output:
        assert term.source != 0 or term.error is not None


def test_exact_maps_have_no_error():
    weight = np.random.default_rng(0).normal(size=(3, 4))
    nodes = (
        Node("x", Input(), (), (4,)),
        Node("d", Dense("w", None), (0,), (3,)),
        Node("r", RELU, (1,), (3,)),
        Node("e", Dense("v", None), (2,), (2,)),
    )
    form = lower(Network(nodes, {"w": weight, "v": weight[:2, :3]}))
    assert all(term.error is None for term in (*form.layers[0].terms, *form.output))
    np.testing.assert_array_equal(form.layers[0].terms[0].matrix.toarray(), weight)
