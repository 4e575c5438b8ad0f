import itertools
from dataclasses import replace

import numpy as np
import pytest

from lipray.model.network import Activation, AvgPool, Conv, Dense, Input, MaxPool, Network, Node, Sum
from lipray.partition.cost import estimate_cost, fits
from lipray.partition.subproblem import METHODS, Settings

RELU = Activation("relu", (0.0,), (1.0,))


def mlp(*widths):
    nodes = [Node("x", Input(), (), (widths[0],))]
    weights = {}
    for i, (columns, rows) in enumerate(itertools.pairwise(widths)):
        weights[f"w{i}"] = np.zeros((rows, columns), dtype=np.float32)
        nodes.append(Node(f"fc{i}", Dense(f"w{i}", None), (len(nodes) - 1,), (rows,)))
        if i < len(widths) - 2:
            nodes.append(Node(f"relu{i}", RELU, (len(nodes) - 1,), (rows,)))
    return Network(tuple(nodes), weights)


def test_order_and_interior_point_memory():
    cost = estimate_cost(mlp(784, 100, 50, 10), "ellipsoid", Settings())
    assert (cost.order, cost.neurons) == (934, 150)
    assert cost.memory_bytes == 14 * 8 * 934**2


def test_frontier_of_a_chain_is_the_largest_pair_of_neighbours():
    # No interior point: order 3000 + ... is beyond it. Pairs: (3000, 400), (400, 500), (500, 10).
    cost = estimate_cost(mlp(3000, 400, 500, 10), "ellipsoid", Settings())
    assert cost.memory_bytes == 8 * 4 * 3400**2 * 4
    # The closed form needs one pass of the recursion whatever the order.
    closed = estimate_cost(mlp(300, 40, 50, 10), "ellipsoid", Settings(iterations=0))
    assert closed.memory_bytes == 8 * 4 * 340**2 * 4


def test_a_skip_stays_in_the_frontier():
    nodes = (
        Node("x", Input(), (), (6,)),
        Node("fc1", Dense("a", None), (0,), (5,)),
        Node("relu1", RELU, (1,), (5,)),
        Node("fc2", Dense("b", None), (2,), (6,)),
        Node("relu2", RELU, (3,), (6,)),
        Node("sum", Sum((1.0, 1.0)), (0, 4), (6,)),
    )
    network = Network(nodes, {"a": np.zeros((5, 6)), "b": np.zeros((6, 5))})
    # While relu2 is formed: x (needed by the sum), relu1, and relu2 itself.
    cost = estimate_cost(network, "ellipsoid", Settings(iterations=0))
    assert cost.memory_bytes == 8 * 4 * 17**2 * 4


def test_a_maximum_pool_counts_its_tournament():
    def pool(kernel, stride, size, out):
        op = MaxPool((kernel,) * 2, (stride,) * 2, ((0, 0),) * 2, (1, 1))
        return Network((Node("x", Input(), (), (1, size, size)), Node("p", op, (0,), (1, out, out))), {})

    # 2 x 2 windows of 4 x 4: 4 rows of 2 pairs, then 2 x 2 pairs: kernel size less 1 per output.
    assert estimate_cost(pool(2, 2, 4, 2), "ellipsoid", Settings()).neurons == 8 + 4
    # 3 x 3, stride 1, of 5 x 5: 2 per row position (5 x 3), 2 per output (3 x 3).
    assert estimate_cost(pool(3, 1, 5, 3), "ellipsoid", Settings()).neurons == 2 * 15 + 2 * 9


def test_sdp_time_follows_the_measurements():
    for half, seconds in ((24, 0.62), (32, 2.5), (48, 17.9)):
        estimated = estimate_cost(mlp(half, half, 1), "sdp", Settings()).seconds
        assert 0.5 * seconds < estimated < 2 * seconds


def test_a_convolution_needs_less_than_its_matrix():
    op = Conv("w", None, (1, 1), ((1, 1), (1, 1)), (1, 1))
    big = Network(
        (Node("x", Input(), (), (64, 224, 224)), Node("c", op, (0,), (64, 224, 224))),
        {"w": np.zeros((64, 64, 3, 3), dtype=np.float32)},
    )
    assert fits(big, "product", Settings())
    assert not fits(big, "ellipsoid", Settings())
    pool = AvgPool((2, 2), (2, 2), ((0, 0), (0, 0)))
    pooled = Network((big.nodes[0], Node("p", pool, (0,), (64, 112, 112))), {})
    assert estimate_cost(pooled, "product", Settings()).seconds > 0


@pytest.mark.parametrize("method", METHODS)
def test_cost_grows_with_width_and_respects_limits(method):
    small, large = (estimate_cost(mlp(80, width, 80), method, Settings()) for width in (20, 60))
    assert small.memory_bytes < large.memory_bytes
    assert small.seconds < large.seconds
    settings = Settings(memory=large.memory_bytes)
    assert fits(mlp(80, 60, 80), method, settings)
    assert not fits(mlp(80, 60, 80), method, replace(settings, memory=large.memory_bytes - 1))
    limited = estimate_cost(mlp(2000, 2000, 2000), method, Settings(time_limit=3.0))
    assert limited.seconds <= 3.5
