"""No bound is below a quotient that is attained, on random networks over every layer kind."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lipray.certify.certificate import Status
from lipray.certify.solve import solve
from lipray.compose.compose import compose
from lipray.errors import SolveError
from lipray.model import activations as act
from lipray.model.evaluate import evaluate
from lipray.model.network import (
    Concat,
    Conv,
    Dense,
    Input,
    MaxPool,
    Network,
    Node,
    Softmax,
    Sum,
)
from lipray.partition.planner import plan_network
from lipray.partition.subproblem import Settings, Subproblem
from lipray.partition.worklist import subproblems
from lipray.run.lower_bound import ascend, best, plan_ascents
from lipray.verify.tiles import is_tileable, tile_block
from tests.networks import PIECEWISE, RELU, networks
from tests.slopes import Linearised, worst_slopes

quick = settings(
    max_examples=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def certify(network, method, **options):
    return solve(Subproblem("test", network, method, Settings(**options)))


def attained(network, seed=0):
    tasks = plan_ascents(network, starts=4, seed=seed)
    return best({task.label: ascend(replace(task, steps=15)) for task in tasks}).quotient


def lowest(network, seed=0):
    """The best lower bound at hand, less its rounding: pairs of the network itself, and the worst slopes allowed."""
    linear = Linearised(network)
    slopes = worst_slopes(network, seed) if linear.factor == 1.0 else 0.0
    return max(attained(network, seed), slopes) * (1.0 - 1e-12) - 1e-14


def in_order(network, seed):
    low = lowest(network, seed)
    product = certify(network, "product")
    closed = certify(network, "ellipsoid", iterations=0)
    few = certify(network, "ellipsoid", iterations=3)
    optimised = certify(network, "ellipsoid")
    for certificate in (product, closed, few, optimised):
        assert low <= certificate.bound
        assert math.isfinite(certificate.bound)
        for name in ("liplt", "eclipse_fast", "product"):
            assert low <= certificate.figures.get(name, math.inf), name
    assert optimised.bound <= closed.bound
    assert few.bound <= closed.bound
    assert closed.figures["eclipse_fast"] == closed.bound


@settings(quick, max_examples=40)
@given(networks(), st.integers(0, 2**16))
def test_every_method_is_above_what_is_attained_and_in_order(network, seed):
    in_order(network, seed)


@pytest.mark.slow
@settings(quick, max_examples=250, derandomize=False)
@given(networks(limit=40, layers=6), st.integers(0, 2**16))
def test_larger_networks_other_ones_every_time(network, seed):
    in_order(network, seed)


@settings(quick, max_examples=12)
@given(networks(limit=12, layers=3), st.integers(0, 2**16))
def test_the_interior_point_method_and_the_sdp_agree(network, seed):
    low = lowest(network, seed)
    ours = certify(network, "ellipsoid")
    sdp = certify(network, "sdp")
    assert low <= sdp.bound <= sdp.figures["eclipse_fast"]
    if sdp.status is Status.CONVERGED and ours.status is Status.CONVERGED and sdp.bound > 0.0:
        assert ours.bound <= sdp.bound * 1.005
        assert ours.bound >= sdp.bound * (1.0 - 1e-5)


@settings(quick, max_examples=20)
@given(networks(softmax=False), st.integers(0, 2**16))
def test_margins_come_from_the_gram_matrix(network, seed):
    certificate = certify(network, "ellipsoid")
    size = math.prod(network.output_shape)
    rng = np.random.default_rng(seed)
    linear = Linearised(network)
    jacobian = linear.jacobian(linear.random(rng)).numpy()
    assert certificate.gram.shape == (size, size)
    for direction in (*rng.normal(size=(3, size)), *np.eye(size)[:2] - np.eye(size)[-1]):
        square = direction @ certificate.gram @ direction
        assert np.linalg.norm(direction @ jacobian) ** 2 <= square * (1.0 + 1e-12) + 1e-300


@settings(quick, max_examples=15)
@given(networks(tail=False, activations=PIECEWISE, limit=40), st.integers(2, 3), st.integers(0, 2**16))
def test_tiles_and_their_composition_are_sound(block, factor, seed):
    low = lowest(block, seed)
    factor = min(factor, max(block.output_shape[1:], default=1))
    if factor == 1 or not is_tileable(block):
        return
    for _, _, tile in tile_block(block, factor):
        assert lowest(tile, seed) <= certify(tile, "ellipsoid", iterations=20).bound
    plan = plan_network(block, settings=Settings(iterations=20), partition_factor=factor)
    products = [certify(part.network, "product") for part in plan.blocks]
    certificates = {certificate.key: certificate for certificate in map(solve, subproblems(plan))}
    bound = compose(plan, certificates, products)
    assert low <= bound.upper


class Net:
    """A network written by hand: ``net(op, *inputs, shape=...)`` adds a node and returns its number."""

    def __init__(self, shape):
        self.nodes, self.weights = [Node("x", Input(), (), shape)], {}

    def __call__(self, op, *inputs, shape=None):
        if isinstance(op, np.ndarray):
            key = f"w{len(self.nodes)}"
            self.weights[key], op, shape = op, Dense(key, None), (len(op),)
        shape = self.nodes[inputs[0]].shape if shape is None else shape
        self.nodes.append(Node(f"n{len(self.nodes)}", op, inputs, shape))
        return len(self.nodes) - 1

    def network(self):
        return Network(tuple(self.nodes), self.weights)


def quotient(network, x, y):
    pair = torch.from_numpy(np.stack([x, y]).astype(np.float64)).reshape(2, *network.input_shape)
    image = evaluate(network, pair).reshape(2, -1)
    return float((image[0] - image[1]).norm() / (pair[0] - pair[1]).norm())


@pytest.mark.parametrize(
    ("function", "sign", "x", "y", "least"),
    [
        (act.leaky_relu(-0.2), -1.0, -1.0, -2.0, 1.2),
        (act.absolute(), -1.0, -1.0, -2.0, 2.0),
        (act.hardswish(), -1.0, -3.0, -2.999, 1.499),
        (act.leaky_relu(1.5), 0.0, -1.0, -2.0, 1.5),
        (act.hardswish(), 0.0, 3.0, 2.999, 1.499),
        (act.gelu(), 0.0, 1.4142, 1.4143, 1.1289),
        (act.gelu(), -1.0, -1.4142, -1.4143, 1.1289),
        (act.silu(), 0.0, 2.3993, 2.3994, 1.0998),
        (act.mish(), 0.0, 1.4906, 1.4907, 1.0884),
    ],
    ids=lambda value: getattr(value, "function", None),
)
@pytest.mark.parametrize("method", ["product", "ellipsoid", "sdp"])
def test_slopes_outside_the_unit_interval_count(function, sign, x, y, least, method):
    """phi(x) + sign x: with the slopes of phi taken in [0, 1] the constant would come out as 1."""

    def build(op):
        net = Net((1,))
        net(Sum((1.0, sign)), net(op, 0), 0)
        return net.network()

    network = build(function)
    assert quotient(network, [x], [y]) >= least
    assert certify(network, method).bound >= least
    wrong = build(replace(function, lower=(0.0,), upper=(1.0,)))
    assert certify(wrong, "ellipsoid").bound < 1.0 + 1e-6 < least


def test_a_residual_block_is_not_its_branch():
    net = Net((3,))
    branch = net(RELU, net(np.eye(3), 0))
    net(Sum((1.0, 1.0)), 0, branch)
    network = net.network()
    assert quotient(network, [1.0, 1.0, 1.0], [2.0, 2.0, 2.0]) == 2.0
    for method in ("product", "ellipsoid", "sdp"):
        assert 2.0 <= certify(network, method).bound <= 2.0 + 1e-5
    # A skip with the opposite sign: the branch takes away from it, and only the product adds them up.
    nodes = (*network.nodes[:-1], replace(network.nodes[-1], op=Sum((1.0, -1.0))))
    opposite = replace(network, nodes=nodes)
    assert 1.0 <= certify(opposite, "ellipsoid").bound <= 1.0 + 1e-5
    assert certify(opposite, "product").bound >= 2.0


def test_a_concatenation_with_itself_counts_twice():
    net = Net((2,))
    net(np.array([[1.0, 0.0, 1.0, 0.0]]), net(Concat(0), 0, 0, shape=(4,)))
    network = net.network()
    assert quotient(network, [1.0, 0.0], [0.0, 0.0]) == 2.0
    for method in ("product", "ellipsoid", "sdp"):
        assert certify(network, method).bound >= 2.0


def test_an_overlapping_max_pool_is_not_nonexpansive():
    net = Net((1, 4, 4))
    net(MaxPool((3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1)), 0, shape=(1, 2, 2))
    network = net.network()
    x = np.zeros((1, 4, 4))
    x[0, 1, 1] = 1.0  # in all four windows
    assert quotient(network, x, np.zeros_like(x)) == 2.0
    for method in ("product", "ellipsoid"):
        assert 2.0 <= certify(network, method).bound <= 2.0 + 1e-5


def test_tiles_may_not_be_joined_by_their_maximum():
    """Two tiles of a convolution that share a pixel: each has norm near 1, together they have sqrt(2)."""
    op = Conv("w", None, (1,), ((0, 0),), (1,))
    block = Network(
        (Node("x", Input(), (), (1, 3)), Node("c", op, (0,), (1, 2)), Node("r", RELU, (1,), (1, 2))),
        {"w": np.array([[[0.1, 1.0]]])},
    )
    network = replace(block, weights={"w": np.array([[[1.0, 1.0]]])})
    tiles = [certify(tile, "ellipsoid").bound for _, _, tile in tile_block(network, 2)]
    x = np.array([[1.0, 2.0, 1.0]])
    assert quotient(network, x, np.zeros_like(x)) > max(tiles) * 1.2
    plan = plan_network(network, settings=Settings(), partition_factor=2)
    assert compose(plan, {}, [certify(part.network, "product") for part in plan.blocks]).upper >= math.sqrt(3.0)


def test_the_bounds_of_a_final_softmax_are_nearly_attained():
    cases = (
        (False, 0.49, [0.0, 0.0, -9.0], [1e-3, -1e-3, 0.0]),
        (True, 1.73, [30.0, 0.0, 0.0], [-2.0, 1.0, 1.0]),
    )
    for log, least, x, step in cases:
        net = Net((3,))
        net(Softmax(log), net(np.eye(3), 0), shape=(3,))
        network = net.network()
        reached = quotient(network, np.array(x), np.add(x, step))
        for method in ("product", "ellipsoid", "sdp"):
            assert least <= reached <= certify(network, method).bound <= least * 1.03


@pytest.mark.parametrize("scale", [1e-140, 1e-30, 1e30, 1e140])
@pytest.mark.parametrize("method", ["product", "ellipsoid"])
def test_the_scale_of_the_weights_does_not_matter(method, scale):
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(4, 3)), rng.normal(size=(2, 4))
    known = certify(two_layers(first, second), method).bound
    assert certify(two_layers(first * scale, second), method).bound == pytest.approx(known * scale, rel=1e-4)
    assert certify(two_layers(first * scale, second / scale), method).bound == pytest.approx(known, rel=1e-4)


@pytest.mark.parametrize("scale", [1e-300, 1e-170, 1e-140, 1e-30, 1e30, 1e140])
@pytest.mark.parametrize("method", ["product", "ellipsoid"])
def test_squares_may_underflow(method, scale):
    net = Net((3,))
    net(scale * np.eye(3), 0)
    bound = certify(net.network(), method).bound
    assert scale <= bound
    # Shape matrices hold squares: below 1e-150 their bound is sound and no more.
    assert bound <= max(scale * (1.0 + 1e-9), 0.0 if method == "product" else 1.1e-150)


def two_layers(first, second):
    net = Net((first.shape[1],))
    net(second, net(RELU, net(first, 0)))
    return net.network()


@pytest.mark.parametrize("method", ["product", "ellipsoid", "sdp"])
def test_a_constant_network_has_constant_zero(method):
    assert certify(two_layers(np.zeros((3, 2)), np.ones((2, 3))), method).bound == 0.0
    assert certify(two_layers(np.ones((3, 2)), np.zeros((2, 3))), method).bound == 0.0


def test_what_overflows_is_never_certified_as_finite():
    huge = two_layers(np.full((2, 2), 1e200), np.full((2, 2), 1e200))
    for method in ("product", "ellipsoid"):
        try:
            bound = certify(huge, method).bound
        except SolveError:
            continue
        assert bound == math.inf


@pytest.mark.parametrize("method", ["product", "ellipsoid"])
def test_what_underflows_is_not_certified_as_zero(method):
    tiny = two_layers(np.eye(2) * 1e-200, np.eye(2) * 1e-200)
    assert certify(tiny, method).bound > 0.0


@pytest.mark.parametrize("method", ["product", "ellipsoid"])
def test_weights_that_cancel_in_floating_point_count(method):
    """1e20 + 1 - 1e20: the three weights of one input add up to 1, and to 0 in floating point."""
    net = Net((1,))
    net(np.array([[1e20, 1.0, -1e20]]), net(Concat(0), 0, 0, 0, shape=(3,)))
    assert certify(net.network(), method).bound >= 1.0
