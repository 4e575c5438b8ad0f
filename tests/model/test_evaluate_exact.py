"""Images in long arithmetic are within their error of the exact ones, and where float64 is lost they are not."""

import itertools
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lipray.model.activations import absolute, prelu, relu, tanh
from lipray.model.evaluate import evaluate, evaluate_node, prepare
from lipray.model.evaluate_exact import _terms, difference
from lipray.model.fixed_point import TERMS, Grid, _digits, fitting
from lipray.model.network import (
    Activation,
    AvgPool,
    ChannelAffine,
    Concat,
    Conv,
    Dense,
    Input,
    MaxPool,
    Network,
    Node,
    Pad,
    Reshape,
    Sum,
)
from lipray.run.lower_bound import _attained, ascend, attained, best, plan_ascents

FUNCTIONS = (relu(), absolute(), prelu((0.01,)), prelu((-1.7,)))


def dense_chain(draw, sizes, spread=0.0, bias=1.0, activations=FUNCTIONS):
    nodes, weights = [Node("x", Input(), (), (sizes[0],))], {}
    for i, (before, after) in enumerate(itertools.pairwise(sizes)):
        scale = 10.0 ** draw.uniform(-spread, spread, (after, before))
        weights[f"w{i}"] = draw.standard_normal((after, before)) * scale / math.sqrt(before)
        weights[f"b{i}"] = draw.standard_normal(after) * bias
        nodes.append(Node(f"fc{i}", Dense(f"w{i}", f"b{i}"), (len(nodes) - 1,), (int(after),)))
        if i + 2 < len(sizes):
            op = activations[draw.integers(len(activations))]
            nodes.append(Node(f"a{i}", op, (len(nodes) - 1,), (int(after),)))
    return Network(tuple(nodes), weights)


def exact_images(network, point):
    """In rational arithmetic, node by node; linear maps by their matrices, whose entries are single products."""
    tensors, signals = prepare(network), [[Fraction(float(v)) for v in point.flatten()]]
    for node in network.nodes[1:]:
        given, op = [signals[i] for i in node.inputs], node.op
        shapes = [network.nodes[i].shape for i in node.inputs]
        if isinstance(op, Activation):
            slopes = [Fraction(v) for v in op.parameters] or [Fraction({"relu": 0, "abs": -1}[op.function])]
            each = len(given[0]) // len(slopes)
            signals.append([v if v > 0 else slopes[i // each] * v for i, v in enumerate(given[0])])
        elif isinstance(op, MaxPool):
            signals.append(exact_maxima(op, given[0], shapes[0], node.shape))
        else:
            bare = replace(op, bias=None) if isinstance(op, Conv | Dense) else op
            divisors = [Fraction(1)] * node.size
            if isinstance(op, AvgPool):
                bare = replace(op, divisor="one")
                counts = np.full(node.shape[1:], math.prod(op.kernel)) if op.divisor is None else tensors[op.divisor]
                divisors = [Fraction(int(v)) for v in np.broadcast_to(np.asarray(counts), node.shape).flatten()]
            total = [Fraction(0)] * node.size
            for number, (values, shape) in enumerate(zip(given, shapes, strict=True)):
                basis = [torch.zeros((len(values), *other), dtype=torch.float64) for other in shapes]
                basis[number] = torch.eye(len(values), dtype=torch.float64).reshape(len(values), *shape)
                matrix = evaluate_node(replace(node, op=bare), basis, {**tensors, "one": torch.ones(())})
                for row, value in zip(matrix.reshape(len(values), -1).tolist(), values, strict=True):
                    total = [t + Fraction(w) * value if w else t for t, w in zip(total, row, strict=True)]
            biases = [Fraction(0)] * node.size
            if isinstance(op, Conv | Dense) and op.bias is not None:
                shape = (-1, *[1] * (len(node.shape) - 1)) if isinstance(op, Conv) else (-1,)
                spread = np.broadcast_to(tensors[op.bias].numpy().reshape(shape), node.shape)
                biases = [Fraction(float(v)) for v in spread.flatten()]
            signals.append([t / d + b for t, d, b in zip(total, divisors, biases, strict=True)])
    return signals[-1]


def exact_maxima(op, values, before, after):
    """Windows over rows and columns, one by one."""
    lift = (1,) * (2 - len(op.kernel))
    height, width = (*lift, *before[1:])
    rows, columns = (*lift, *after[1:])
    kernel, stride, dilation = ((*lift, *part) for part in (op.kernel, op.stride, op.dilation))
    top, left = (0, op.padding[0][0]) if lift else (op.padding[0][0], op.padding[1][0])
    result = []
    for channel in range(before[0]):
        for i in range(rows):
            for j in range(columns):
                taps = [
                    (i * stride[0] + a * dilation[0] - top, j * stride[1] + b * dilation[1] - left)
                    for a in range(kernel[0])
                    for b in range(kernel[1])
                ]
                inside = [(r, c) for r, c in taps if 0 <= r < height and 0 <= c < width]
                result.append(max(values[(channel * height + r) * width + c] for r, c in inside))
    return result


def check(network, x, y, *, right=2.0**-30):
    """The difference is within its error of the exact one, and the error is small."""
    x, y = (torch.as_tensor(v, dtype=torch.float64) for v in (x, y))
    weights = prepare(network)
    apart = [a - b for a, b in zip(exact_images(network, x), exact_images(network, y), strict=True)]
    exact = math.sqrt(sum(v * v for v in apart))
    found = difference(network, x, y, weights, max(exact, 1e-200))
    assert found is not None
    value, error = (part.flatten() for part in found)
    for v, e, truth in zip(value.tolist(), error.tolist(), apart, strict=True):
        assert abs(Fraction(v) - truth) <= Fraction(e)
    assert float(error.norm()) <= right * exact
    return exact


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.integers(1, 6), st.sampled_from([0.0, 3.0, 12.0]), st.sampled_from([0.0, 1.0, 1e9])
)
def test_dense_chains(seed, depth, spread, bias):
    draw = np.random.default_rng(seed)
    network = dense_chain(draw, draw.integers(1, 7, depth + 1), spread, bias, (absolute(), prelu((0.01,))))
    x = draw.standard_normal(network.input_shape)
    check(network, x, x + draw.standard_normal(x.shape) * 10.0 ** draw.integers(-9, 2))


def conv_net(draw, *, flat):
    """Every operation that is exact, on maps or on sequences."""
    axes = 1 if flat else 2

    def array(*shape):
        return draw.standard_normal(shape)

    pads = ((1, 1), (2, 0))[:axes]
    ones, twos, threes = (1,) * axes, (2,) * axes, (3,) * axes
    side, half = (6,) * axes, (3,) * axes
    weights = {
        "k0": array(4, 2, *threes[:1], *(2,) * (axes - 1)),
        "b0": array(4),
        "k1": array(4, 2, *ones) * 1e-5,
        "d": array(3, 8 * 2**axes),
        "bd": array(3),
        "count": np.arange(2.0, 2.0 + 2**axes).reshape((2,) * axes),
    }
    grown = ((1, 1), (1, 0))[:axes]
    nodes = (
        Node("x", Input(), (), (2, *side)),
        Node("conv", Conv("k0", "b0", ones, grown, ones), (0,), (4, *side)),
        Node("prelu", prelu((0.25, -0.5, 0.1, 3.0)), (1,), (4, *side)),
        Node("group", Conv("k1", None, ones, ((0, 0),) * axes, ones, 2), (2,), (4, *side)),
        Node("sum", Sum((0.3, -2.0)), (2, 3), (4, *side)),
        Node("abs", absolute(), (4,), (4, *side)),
        Node("max", MaxPool(threes, twos, ((1, 0),) * axes, ones), (5,), (4, *half)),
        Node("mean", AvgPool(threes, twos, ((1, 0),) * axes), (4,), (4, *half)),
        Node("cat", Concat(0), (6, 7), (8, *half)),
        Node("pad", Pad(pads), (8,), (8, *(5,) * axes)),
        Node("dilated", MaxPool(twos, ones, ((0, 0),) * axes, twos), (9,), (8, *half)),
        Node("shares", AvgPool(twos, ones, ((0, 0),) * axes, "count"), (10,), (8, *twos)),
        Node("flat", Reshape(), (11,), (8 * 2**axes,)),
        Node("fc", Dense("d", "bd"), (12,), (3,)),
    )
    return Network(nodes, weights)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_maps_of_every_exact_operation(seed, flat):
    draw = np.random.default_rng(seed)
    network = conv_net(draw, flat=flat)
    x = draw.standard_normal(network.input_shape)
    check(network, x, x + 1e-3 * draw.standard_normal(x.shape))


@pytest.mark.parametrize("terms", [1, 2, 3, 100, 2**13, 2**13 + 1, TERMS])
def test_sums_of_products_stay_whole(terms):
    assert terms * 4 ** fitting(terms) <= 2**53 < 8 * terms * 4 ** fitting(terms) * 2


def test_the_largest_digits_there_are():
    # All digits as large as they get, so that sums are as near to 2^53 as they come.
    size = 4096
    most = 1.0 - 2.0**-53
    network = Network(
        (Node("x", Input(), (), (size,)), Node("fc", Dense("w", None), (0,), (2,))),
        {"w": np.stack([np.full(size, most), np.full(size, -most)])},
    )
    assert 4 ** fitting(_terms(network, prepare(network))) * size >= 2**51
    x = np.full(size, most)
    check(network, x, -x)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1e20, 1e20), min_size=1, max_size=5), st.sampled_from([15, 20, 26]))
def test_digits_of_numbers_and_their_carries(values, bits):
    tensor = torch.tensor(values, dtype=torch.float64)
    grid = Grid(bits, -20)
    unit = Fraction(2) ** (bits * grid.low)
    number = grid.number(tensor.reshape(1, -1))
    assert (number[:-1] >= 0).all()
    assert (number[:-1] < 2**bits).all()
    for i, value in enumerate(values):
        parts = sum(Fraction(int(d[0, i])) * Fraction(2) ** (bits * (grid.low + k)) for k, d in enumerate(number))
        assert abs(parts - Fraction(value)) < unit
        assert (int(number[-1, 0, i]) < 0) == (parts < 0)
    assert all(float(digit.abs().max()) < 2**bits for digit in _digits(tensor, bits, -40).values())


@pytest.mark.parametrize(("seed", "width"), [(0, 5), (1, 10), (2, 20)])
def test_deep_chains_attain_what_float64_cannot_prove(seed, width):
    draw = np.random.default_rng(seed)
    network = dense_chain(draw, [3, *[width] * 99, 2], bias=1e-7, activations=(prelu((0.3,)),))
    x = draw.standard_normal(3)
    y = x + draw.standard_normal(3)
    pair = torch.tensor(np.stack([x, y]))
    alone, likely = _attained(network, prepare(network), pair[:1], pair[1:])
    assert float(alone) < 0.5 * float(likely)
    images = [exact_chain(network, point) for point in (x, y)]
    square = sum((a - b) ** 2 for a, b in zip(*images, strict=True)) / exact_distance(x, y)
    value = attained(network, x, y)
    assert Fraction(value) ** 2 <= square <= Fraction(value) ** 2 * Fraction(1 + 1e-9)


def test_folded_scales_are_left_to_the_layers_norms():
    draw = np.random.default_rng(6)
    nodes, weights = [Node("x", Input(), (), (8,))], {"s": 1.0 + 0.01 * draw.standard_normal(8), "t": np.zeros(8)}
    for i in range(60):
        weights[f"w{i}"], weights[f"b{i}"] = np.linalg.qr(draw.standard_normal((8, 8)))[0], np.zeros(8)
        nodes.append(Node(f"fc{i}", Dense(f"w{i}", f"b{i}"), (len(nodes) - 1,), (8,)))
        nodes.append(Node(f"norm{i}", ChannelAffine("s", "t"), (len(nodes) - 1,), (8,)))
        nodes.append(Node(f"a{i}", prelu((0.9,)), (len(nodes) - 1,), (8,)))
    network = Network(tuple(nodes), weights)
    x, y = draw.standard_normal((2, 8))
    pair = torch.tensor(np.stack([x, y]))
    assert difference(network, pair[0], pair[1], prepare(network), 1.0) is None
    assert float(_attained(network, prepare(network), pair[:1], pair[1:])[0]) == 0.0
    images = [exact_chain(network, point) for point in (x, y)]
    square = sum((a - b) ** 2 for a, b in zip(*images, strict=True)) / exact_distance(x, y)
    value = attained(network, x, y)
    assert Fraction(value) ** 2 <= square <= Fraction(value) ** 2 * Fraction(1 + 1e-6)


def exact_chain(network, point):
    """``exact_images`` of a chain of dense layers and leaky ReLUs, quick enough for many."""
    values, places = whole(point)
    for node in network.nodes[1:]:
        if isinstance(node.op, Dense):
            weight, finer = whole(network.weights[node.op.weight])
            bias, lowest = whole(network.weights[node.op.bias])
            values, places = weight @ values, places + finer
            more = max(lowest - places, 0)
            values, places = values * 2**more + bias * 2 ** (places + more - lowest), places + more
        elif isinstance(node.op, ChannelAffine):
            scale, finer = whole(network.weights[node.op.scale])
            values, places = values * scale, places + finer
        else:
            slope, finer = whole(np.array(node.op.parameters))
            values, places = np.array([v * (2**finer if v > 0 else slope[0]) for v in values]), places + finer
    return [Fraction(v, 2**places) for v in values]


def whole(array):
    """An array as whole numbers of 2^-places."""
    fractions = [Fraction(float(v)) for v in array.flatten()]
    places = max(f.denominator for f in fractions).bit_length() - 1
    return np.array([int(f * 2**places) for f in fractions], dtype=object).reshape(array.shape), places


def exact_square(network, x, y):
    images = [exact_images(network, torch.from_numpy(point)) for point in (x, y)]
    above = sum((a - b) ** 2 for a, b in zip(*images, strict=True))
    return above / exact_distance(x, y)


def exact_distance(x, y):
    """Squared."""
    return sum((Fraction(float(a)) - Fraction(float(b))) ** 2 for a, b in zip(x, y, strict=True))


def test_the_plain_quotient_of_what_cancels_is_above_the_truth_and_is_not_what_is_said():
    """The tempting version, float64 without an allowance, or with one of the images' last bits only."""
    above = proven = 0
    for seed in range(40):
        draw = np.random.default_rng(seed)
        rows = np.repeat(draw.uniform(0.5, 2.0, (1, 3)), 2, axis=0) * (1.0 + 1e-9 * draw.uniform(0.0, 1.0, (2, 3)))
        weights = {"a": draw.uniform(0.5, 2.0, (3, 2)), "b": rows, "c": np.array([[1.0, -1.0]])}
        nodes = (
            Node("x", Input(), (), (2,)),
            Node("fc0", Dense("a", None), (0,), (3,)),
            Node("relu", relu(), (1,), (3,)),
            Node("fc1", Dense("b", None), (2,), (2,)),
            Node("fc2", Dense("c", None), (3,), (1,)),
        )
        network = Network(nodes, weights)
        x = draw.uniform(0.0, 1.0, 2)
        y = x + draw.uniform(0.0, 1.0, 2) * 1e-3
        square = exact_square(network, x, y)
        images = evaluate(network, torch.from_numpy(np.stack([x, y])))
        plain = float((images[0] - images[1]).norm()) / float(np.linalg.norm(x - y))
        above += Fraction(plain) ** 2 > square * Fraction(1 + 1e-9)
        value = attained(network, x, y)
        assert Fraction(value) ** 2 <= square
        proven += Fraction(value) ** 2 >= square * Fraction(1 - 1e-6)
    assert above >= 10
    assert proven >= 30


def test_the_search_finds_pairs_of_deep_networks_and_they_are_found_again():
    draw = np.random.default_rng(4)
    network = dense_chain(draw, [3, *[10] * 59, 1], bias=0.0, activations=(relu(), prelu((0.5,))))
    tasks = [replace(task, steps=10) for task in plan_ascents(network, starts=4, seed=0)]
    witness = best({task.label: ascend(task) for task in tasks})
    assert witness.quotient > 0.0
    assert attained(network, witness.x, witness.y) == witness.quotient
    pair = torch.tensor(np.stack([witness.x, witness.y]))
    assert float(_attained(network, prepare(network), pair[:1], pair[1:])[0]) < 0.99 * witness.quotient


def test_what_is_not_exact_is_left_to_float64():
    draw = np.random.default_rng(5)
    network = dense_chain(draw, [2, *[6] * 59, 2], activations=(relu(),))
    x, y = draw.standard_normal((2, 2))
    arguments = [torch.from_numpy(x), torch.from_numpy(y)]
    assert difference(network, *arguments, prepare(network), 1e-9) is not None
    smooth = replace(network, nodes=tuple(
        replace(node, op=tanh()) if node.name == "a30" else node for node in network.nodes
    ))  # fmt: skip
    scaled = Network(
        (*network.nodes, Node("norm", ChannelAffine("s", "t"), (len(network.nodes) - 1,), (2,))),
        {**network.weights, "s": np.ones(2), "t": np.zeros(2)},
    )
    tiny = replace(network, weights={**network.weights, "w3": network.weights["w3"] * 1e-300})
    for other in (smooth, scaled, tiny):
        assert difference(other, *arguments, prepare(other), 1e-9) is None
        assert attained(other, x, y) >= 0.0
    assert difference(network, *arguments, prepare(network), 1e-300) is None  # more digits than there are
