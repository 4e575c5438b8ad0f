"""Matrices of linear operations are what evaluation computes."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lipray.model.evaluate import evaluate
from lipray.model.network import (
    Activation,
    AdaptiveAvgPool,
    AvgPool,
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
from lipray.verify import linear_maps as lm
from tests.networks import Builder
from tests.slopes import windows

quick = settings(max_examples=40, deadline=None, derandomize=True)


def agrees(network, seed=0):
    """f(x) - f(0) = A x for the network's single operation."""
    node = network.nodes[-1]
    matrix = lm.operation_matrix(node.op, network.weights, network.input_shape, node.shape)
    x = np.random.default_rng(seed).normal(size=(3, *network.input_shape))
    x[0] = 0.0
    image = evaluate(network, torch.from_numpy(x)).numpy().reshape(3, -1)
    assert matrix.shape == (node.size, math.prod(network.input_shape))
    np.testing.assert_allclose(x.reshape(3, -1) @ matrix.toarray().T, image - image[0], rtol=0, atol=1e-11)
    return matrix


@st.composite
def operations(draw, kind):
    rank = draw(st.integers(1, 2))
    shape = (draw(st.integers(1, 3)), *(draw(st.integers(1, 7)) for _ in range(rank)))
    builder = Builder(draw, rank, shape, integers=False)
    make = {
        "conv": builder.conv,
        "average": lambda source: builder.pool(source, maximum=False),
        "pad": builder.pad,
        "affine": builder.affine,
        "adaptive": builder.adaptive,
    }[kind]
    make(0)
    return builder.network()


@pytest.mark.parametrize("kind", ["conv", "average", "pad", "affine", "adaptive"])
def test_matrices_agree_with_evaluation(kind):
    seen = []

    @quick
    @given(operations(kind), st.integers(0, 2**16))
    def check(network, seed):
        if len(network.nodes) > 1:
            agrees(network, seed)
            seen.append(network.nodes[-1].op)

    check()
    assert len(seen) > 15


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "dilation"),
    [
        ((7,), (3,), (2,), ((2, 0),), (2,)),
        ((6, 5), (3, 2), (2, 1), ((0, 2), (1, 0)), (1, 2)),
        ((6, 7), (2, 3), (1, 3), ((-1, 2), (3, -2)), (2, 1)),
        ((1, 1), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)),
        ((2, 2), (1, 1), (3, 3), ((3, 3), (3, 3)), (1, 1)),
    ],
)
def test_grouped_convolutions_agree_with_evaluation(groups, size, kernel, stride, padding, dilation):
    rng = np.random.default_rng(1)
    weights = {"w": rng.normal(size=(8, 4 // groups, *kernel)), "b": rng.normal(size=8)}
    out = [
        (n + a + b - d * (k - 1) - 1) // s + 1
        for n, k, s, (a, b), d in zip(size, kernel, stride, padding, dilation, strict=True)
    ]
    op = Conv("w", "b", stride, padding, dilation, groups)
    agrees(Network((Node("x", Input(), (), (4, *size)), Node("c", op, (0,), (8, *out))), weights))


def test_a_convolution_that_reads_padding_only_is_the_zero_matrix():
    op = Conv("w", "b", (9,), ((2, 9),), (1,))
    network = Network(
        (Node("x", Input(), (), (2, 5)), Node("c", op, (0,), (1, 2))),
        {"w": np.ones((1, 2, 1)), "b": np.ones(1)},
    )
    assert agrees(network).nnz == 0


def test_dense_acts_along_the_last_axis():
    rng = np.random.default_rng(2)
    weights = {"w": rng.normal(size=(3, 4)), "b": rng.normal(size=3)}
    for shape in ((4,), (2, 4), (2, 3, 4)):
        agrees(Network((Node("x", Input(), (), shape), Node("d", Dense("w", "b"), (0,), (*shape[:-1], 3))), weights))


def test_divisors_and_unequal_adaptive_windows():
    divisor = np.array([[4.0, 2.0], [2.0, 1.0]])
    pool = AvgPool((2, 2), (2, 2), ((0, 1), (0, 1)), "d")
    agrees(Network((Node("x", Input(), (), (2, 3, 3)), Node("p", pool, (0,), (2, 2, 2))), {"d": divisor}))
    for source, target in (((5, 7), (3, 2)), ((4,), (3,)), ((3, 3), (1, 1))):
        nodes = (Node("x", Input(), (), (2, *source)), Node("p", AdaptiveAvgPool(), (0,), (2, *target)))
        agrees(Network(nodes, {}))


def test_padding_and_reshaping_keep_order():
    pad = Network((Node("x", Input(), (), (2, 4, 3)), Node("p", Pad(((-1, 2), (3, -2))), (0,), (2, 5, 4))), {})
    agrees(pad)
    agrees(Network((Node("x", Input(), (), (2, 4, 3)), Node("f", Reshape(), (0,), (24,))), {}))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_concatenation_places_every_input(axis):
    rng = np.random.default_rng(3)
    shapes = [tuple(n if i == axis else 2 for i in range(3)) for n in (1, 3, 2)]
    parts = [rng.normal(size=shape) for shape in shapes]
    places = lm.concatenation(shapes, axis)
    joined = sum(place @ part.ravel() for place, part in zip(places, parts, strict=True))
    np.testing.assert_array_equal(joined, np.concatenate(parts, axis=axis).ravel())


@pytest.mark.parametrize("op", [Activation("relu", (0.0,), (1.0,)), Sum((1.0, 1.0)), Concat(0)])
def test_what_is_not_linear_in_one_signal_is_refused(op):
    with pytest.raises(TypeError, match=type(op).__name__):
        lm.operation_matrix(op, {}, (2,), (2,))


@quick
@given(st.integers(1, 7), st.integers(1, 4), st.integers(1, 3), st.integers(0, 2), st.integers(0, 2), st.integers(1, 2))
def test_max_pool_taps_are_the_windows(size, kernel, stride, before, after, dilation):
    span = dilation * (kernel - 1) + 1
    if size + before + after < span or max(before, after) > span // 2:
        return
    op = MaxPool((kernel,), (stride,), ((before, after),), (dilation,))
    mask = windows(op, (1, size)).numpy()
    if not mask.any(axis=1).all():
        with pytest.raises(ValueError, match="outside"):
            lm.pool_candidates(op, 0, size, len(mask))
        return
    taps = lm.pool_candidates(op, 0, size, len(mask))
    assert len(taps) == kernel
    found = np.zeros_like(mask)
    for tap in taps:
        found[np.arange(len(mask)), tap] = True
    np.testing.assert_array_equal(found, mask)


@pytest.mark.parametrize("axis", [0, 1])
def test_selection_reads_positions_along_an_axis(axis):
    x = np.random.default_rng(4).normal(size=(2, 4, 5))
    index = np.array([3, 0, 0, 2])
    chosen = lm.selection(x.shape, axis, index) @ x.ravel()
    np.testing.assert_array_equal(chosen, np.take(x, index, axis=axis + 1).ravel())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**16), st.sampled_from((1e-200, 1.0, 1e150)))
def test_the_norm_bound_is_above_the_norm(rows, columns, seed, scale):
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(rows, columns)) * (rng.random((rows, columns)) < 0.7)
    bound = lm.norm_bound(matrix * scale)
    assert bound >= np.linalg.norm(matrix, 2) * scale * (1.0 - 1e-14)
    # It bounds |matrix|, and from above in exact arithmetic: square against the product of exact sums.
    entries = [[Fraction(abs(float(v))) for v in row] for row in matrix * scale]
    square = max(map(sum, entries)) * max(map(sum, zip(*entries, strict=True)))
    assert Fraction(bound) ** 2 >= square


def test_the_norm_bound_of_averages_and_selections_is_exact():
    assert lm.norm_bound(np.eye(5)) == pytest.approx(1.0, rel=1e-13)
    assert lm.norm_bound(np.zeros((3, 2))) == 0.0
    assert lm.norm_bound(np.zeros((0, 2))) == 0.0
    assert lm.norm_bound(np.full((1, 4), 0.25)) == pytest.approx(0.5, rel=1e-13)
