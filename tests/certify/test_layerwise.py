"""Multipliers chosen layer by layer are feasible, better than the closed form, and no better than the optimum."""

import time

import numpy as np
import pytest

from lipray.certify import ellipsoid
from lipray.certify import layerwise as greedy
from lipray.certify.closed_form import closed_form
from lipray.certify.layerwise import layerwise
from lipray.certify.solve import solve
from lipray.model.activations import leaky_relu, relu
from lipray.model.network import Dense, Input, Network, Node, Sum
from lipray.partition.subproblem import Settings, Subproblem
from lipray.run.lower_bound import attained
from lipray.verify.elimination import evaluate, prepare
from lipray.verify.sector import lower


def deep(seed, layers, width, activation=None, inputs=3, outputs=2):
    draw = np.random.default_rng(seed)
    sizes = [inputs, *[width] * layers, outputs]
    nodes, weights = [Node("x", Input(), (), (inputs,))], {}
    for i in range(layers + 1):
        weight = draw.standard_normal((sizes[i + 1], sizes[i]))
        weights[f"w{i}"] = weight * draw.uniform(0.4, 1.8) / np.linalg.norm(weight, 2)
        nodes.append(Node(f"fc{i}", Dense(f"w{i}", None), (len(nodes) - 1,), (sizes[i + 1],)))
        if i < layers:
            nodes.append(Node(f"a{i}", activation or relu(), (len(nodes) - 1,), (sizes[i + 1],)))
    return Network(tuple(nodes), weights)


def bound_of(network, multipliers):
    return evaluate(prepare(lower(network)), multipliers).bound


@pytest.mark.parametrize("seed", [0, 1])
def test_between_the_optimum_and_the_closed_form(seed):
    network = deep(seed, 10, 5)
    blocks = prepare(lower(network))
    found = bound_of(network, layerwise(blocks))
    best = solve(Subproblem("net", network, "ellipsoid", Settings())).bound
    assert best <= found * (1.0 + 1e-6)
    assert found < 0.7 * bound_of(network, closed_form(blocks))
    draw = np.random.default_rng(seed)
    for _ in range(20):
        x = draw.standard_normal(3)
        assert attained(network, x, x + draw.standard_normal(3)) <= found


def test_of_one_layer_it_is_lipsdp(monkeypatch):
    monkeypatch.setattr(greedy, "DEEP", 1)
    for seed in range(3):
        network = deep(seed, 1, 12, inputs=4, outputs=20)
        best = solve(Subproblem("net", network, "ellipsoid", Settings())).bound
        assert best * (1.0 - 1e-6) <= bound_of(network, layerwise(prepare(lower(network)))) <= 1.01 * best


def test_without_time_it_is_the_closed_form():
    blocks = prepare(lower(deep(3, 9, 4)))
    for mine, theirs in zip(layerwise(blocks, deadline=time.monotonic() - 1.0), closed_form(blocks), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6)


def test_only_for_deep_chains(monkeypatch):
    assert layerwise(prepare(lower(deep(4, 3, 4)))) is None
    assert layerwise(prepare(lower(deep(4, 9, 4, leaky_relu(0.2))))) is None
    network = deep(4, 9, 4)
    skip = Node("sum", Sum((1.0, 1.0)), (len(network.nodes) - 3, 2), (4,))
    last = network.nodes[-1]
    nodes = (*network.nodes[:-1], skip, Node("fc", last.op, (len(network.nodes) - 1,), last.shape))
    assert layerwise(prepare(lower(Network(nodes, network.weights)))) is None
    dead = Network(network.nodes, {**network.weights, "w4": np.zeros((4, 4))})
    assert layerwise(prepare(lower(dead))) is None
    monkeypatch.setattr(greedy, "WIDEST", 7)
    assert layerwise(prepare(lower(network))) is None


@pytest.mark.parametrize(
    ("name", "value", "limit"), [("interior_fits", lambda *_, **__: False, None), ("QUICK_ORDER", 0, 600.0)]
)
def test_it_is_where_large_networks_start_and_what_hurried_ones_fall_back_on(monkeypatch, name, value, limit):
    monkeypatch.setattr(ellipsoid, name, value)
    network = deep(5, 30, 6)
    few = solve(Subproblem("net", network, "ellipsoid", Settings(iterations=1, time_limit=limit)))
    assert few.bound <= few.figures["layerwise"] < 0.5 * few.figures["eclipse_fast"]
    assert evaluate(prepare(lower(network)), few.proof.multipliers).bound == few.bound
    assert "layerwise" not in solve(Subproblem("net", network, "ellipsoid", Settings(iterations=0))).figures
