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
    # The input is no wider than the first layer's rows: 100 + 100 + 50.
    cost = estimate_cost(mlp(784, 100, 50, 10), "ellipsoid", Settings())
    assert (cost.order, cost.neurons) == (250, 150)
    assert cost.memory_bytes == 14 * 8 * 250**2
    assert estimate_cost(mlp(30, 100, 50, 10), "ellipsoid", Settings()).order == 180


def test_the_front_of_a_chain_is_a_layer_and_the_next():
    entries = 400 * (400 + 500) + 500 * (500 + 10) + 10**2
    closed = estimate_cost(mlp(3000, 400, 500, 10), "ellipsoid", Settings(iterations=0))
    assert closed.memory_bytes == 8 * 4 * entries
    # The same where the order, 2 * 2000 + 100, is beyond the interior-point method.
    steps = estimate_cost(mlp(3000, 2000, 100, 10), "ellipsoid", Settings())
    assert steps.memory_bytes == 8 * 10 * (2000 * 2100 + 100 * 110 + 10**2)


def test_long_chains_go_to_the_interior_point_method_beyond_what_others_do():
    long = estimate_cost(mlp(20, *[100] * 40, 10), "ellipsoid", Settings())
    assert (long.order, long.memory_bytes) == (4020, 14 * 8 * 4020**2)
    short = estimate_cost(mlp(20, *[1000] * 4, 10), "ellipsoid", Settings())
    assert (short.order, short.memory_bytes) == (4020, 8 * 10 * (3 * 1000 * 2000 + 1000 * 1010 + 10**2))


def test_a_skip_stays_in_the_front():
    nodes = (
        Node("x", Input(), (), (6,)),
        Node("fc1", Dense("a", None), (0,), (5,)),
        Node("relu1", RELU, (1,), (5,)),
        Node("fc2", Dense("b", None), (2,), (4,)),
        Node("relu2", RELU, (3,), (4,)),
        Node("fc3", Dense("c", None), (4,), (5,)),
        Node("sum", Sum((1.0, 1.0)), (2, 5), (5,)),
    )
    weights = {"a": np.zeros((5, 6)), "b": np.zeros((4, 5)), "c": np.zeros((5, 4))}
    cost = estimate_cost(Network(nodes, weights), "ellipsoid", Settings(iterations=0))
    # relu1 is read by relu2 and by the output: its front is all three.
    assert cost.memory_bytes == 8 * 4 * (5 * (5 + 4 + 5) + 4 * (4 + 5) + 5**2)


def test_slopes_away_from_zero_keep_what_they_read():
    def chain(lower):
        network = mlp(9, 7, 5, 3)
        op = Activation("leaky_relu", (lower,), (1.0,))
        return Network(tuple(replace(n, op=op) if n.op == RELU else n for n in network.nodes), network.weights)

    straight, bent = (estimate_cost(chain(lower), "ellipsoid", Settings(iterations=0)) for lower in (0.0, 0.1))
    assert straight.neurons == bent.neurons == 12
    # Each layer also reads all earlier ones, the input included: every front is all that follows.
    assert straight.memory_bytes == 8 * 4 * (7 * 12 + 5 * 8 + 9)
    assert bent.memory_bytes == 8 * 4 * (7 * 15 + 5 * 8 + 9)


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
