import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lipray.model.network import Conv, Input, Network, Node
from lipray.verify.composition import overlap_bound, sum_bound
from lipray.verify.tiles import tile_block


def matrix(network):
    """The matrix of one convolution without bias, built from its definition."""
    op = network.nodes[1].op
    weight = network.weights[op.weight]
    channels, *sizes = network.input_shape
    rank = len(sizes)
    rows = np.zeros((*network.output_shape, channels, *sizes))
    for at in np.ndindex(*network.output_shape):
        for tap in np.ndindex(*weight.shape[1:]):
            place = [
                at[axis + 1] * op.stride[axis] - op.padding[axis][0] + tap[axis + 1] * op.dilation[axis]
                for axis in range(rank)
            ]
            if all(0 <= position < size for position, size in zip(place, sizes, strict=True)):
                rows[(*at, tap[0], *place)] += weight[(at[0], *tap)]
    return rows.reshape(math.prod(network.output_shape), -1)


def convolution(rng, rank, size, padding, stride):
    weight = rng.normal(size=(2, 2, *(3,) * rank))
    out = (size + 2 * padding - 3) // stride + 1
    op = Conv("w", None, (stride,) * rank, ((padding, padding),) * rank, (1,) * rank)
    nodes = (Node("x", Input(), (), (2, *(size,) * rank)), Node("c", op, (0,), (2, *(out,) * rank)))
    return Network(nodes, {"w": weight})


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**16),
    st.tuples(st.integers(1, 2), st.integers(4, 7), st.integers(0, 1), st.integers(1, 2)),
    st.integers(2, 4),
)
def test_both_compositions_bound_a_linear_block_and_overlap_is_tighter(seed, geometry, factor):
    block = convolution(np.random.default_rng(seed), *geometry)
    tiles = tile_block(block, min(factor, max(block.output_shape[1:])))
    if len(tiles) == 1:
        return
    norms = [np.linalg.norm(matrix(tile), 2) for _, _, tile in tiles]
    true = np.linalg.norm(matrix(block), 2)
    overlap = overlap_bound(norms, [field for _, field, _ in tiles])
    assert true <= overlap * (1 + 1e-12)
    assert overlap <= sum_bound(norms)


def test_the_largest_tile_is_no_bound_where_fields_overlap():
    # A constant kernel: neighbouring tiles both respond to the pixels they share.
    block = Network(
        (
            Node("x", Input(), (), (1, 6)),
            Node("c", Conv("w", None, (1,), ((0, 0),), (1,)), (0,), (1, 4)),
        ),
        {"w": np.ones((1, 1, 3))},
    )
    tiles = tile_block(block, 4)
    norms = [np.linalg.norm(matrix(tile), 2) for _, _, tile in tiles]
    true = np.linalg.norm(matrix(block), 2)
    assert max(norms) < 0.8 * true
    assert overlap_bound(norms, [field for _, field, _ in tiles]) >= true


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 2), st.data())
def test_overlap_is_the_largest_cover_of_a_pixel_rounded_up(rank, data):
    def interval():
        low = data.draw(st.integers(0, 7))
        return low, data.draw(st.integers(low + 1, 9))

    count = data.draw(st.integers(2, 6))
    fields = [tuple(interval() for _ in range(rank)) for _ in range(count)]
    bounds = [data.draw(st.floats(0.0, 1e3)) for _ in fields]
    exact = max(
        sum(
            Fraction(bound) ** 2
            for bound, field in zip(bounds, fields, strict=True)
            if all(low <= x < high for x, (low, high) in zip(pixel, field, strict=True))
        )
        for pixel in itertools.product(range(9), repeat=rank)
    )
    result = overlap_bound(bounds, fields)
    assert Fraction(result) ** 2 >= exact
    assert float(result) ** 2 <= float(exact) * (1 + 1e-14) or result < 1e-150


def test_disjoint_fields_give_the_largest_and_shared_fields_the_sum():
    disjoint = [((0, 2),), ((2, 4),)]
    assert overlap_bound([3.0, 4.0], disjoint) == pytest.approx(4.0, rel=1e-15)
    same = [((0, 2),), ((0, 2),)]
    assert overlap_bound([3.0, 4.0], same) == pytest.approx(5.0, rel=1e-15)
    assert sum_bound([3.0, 4.0]) >= 5.0


def test_many_small_covers_are_not_lost_to_rounding():
    # Each square is below half a unit in the last place of 1: to nearest, all thousand would vanish.
    bounds = [1.0] + [1e-9] * 1000
    exact = 1 + 1000 * Fraction(1e-9) ** 2
    assert Fraction(overlap_bound(bounds, [((0, 3),)] * 1001)) ** 2 >= exact
    assert Fraction(sum_bound(bounds)) ** 2 >= exact


def test_infinite_zero_and_huge_tiles():
    fields = [((0, 3),), ((2, 5),)]
    assert overlap_bound([math.inf, 1.0], fields) == sum_bound([math.inf, 1.0]) == math.inf
    assert overlap_bound([0.0, 0.0], fields) == sum_bound([0.0, 0.0]) == 0.0
    assert overlap_bound([1e200, 0.0], fields) >= 1e200
    assert overlap_bound([1e-200, 0.0], fields) >= 1e-200
