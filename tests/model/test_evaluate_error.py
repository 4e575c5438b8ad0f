"""The bound of an evaluation's rounding, against the same network in ball arithmetic of 200 bits."""

import flint
import numpy as np
import pytest
import torch
from flint import arb

from lipray.model import activations as act
from lipray.model.evaluate import prepare
from lipray.model.evaluate_error import evaluate_with_error
from lipray.verify.layer_norms import operation_constant
from tests.maps import Maps


def exact(network, point):
    """The network's outputs on one point, by its own nodes: what is spelt out here is all that is used."""
    flint.ctx.prec = 200
    signals = [_precise(point)]
    for node in network.nodes[1:]:
        signals.append(STEPS[type(node.op).__name__](node, [signals[i] for i in node.inputs], network.weights))
    return signals[-1]


def _precise(array):
    return np.vectorize(lambda value: arb(float(value)), otypes=[object])(array)


def _dense(node, sources, weights):
    bias = 0 if node.op.bias is None else _precise(weights[node.op.bias])
    return _precise(weights[node.op.weight]) @ sources[0] + bias


def _conv(node, sources, weights):
    op, x = node.op, sources[0]
    kernel = _precise(weights[op.weight])
    (top, bottom), (left, right) = op.padding
    padded = np.full((x.shape[0], x.shape[1] + top + bottom, x.shape[2] + left + right), arb(0))
    padded[:, top : top + x.shape[1], left : left + x.shape[2]] = x
    out = np.full(node.shape, arb(0))
    for o, i, j in np.ndindex(*node.shape):
        window = padded[
            :,
            i * op.stride[0] : i * op.stride[0] + kernel.shape[2],
            j * op.stride[1] : j * op.stride[1] + kernel.shape[3],
        ]
        out[o, i, j] = (kernel[o] * window).sum()
    if op.bias is not None:
        out = out + _precise(weights[op.bias])[:, None, None]
    return out


FUNCTIONS = {
    "relu": lambda v: max(v, arb(0)),
    "tanh": arb.tanh,
    "sigmoid": lambda v: 1 / (1 + (-v).exp()),
    "abs": abs,
}


def _activation(node, sources, _weights):
    return np.vectorize(FUNCTIONS[node.op.function], otypes=[object])(sources[0])


def _max_pool(node, sources, _weights):
    out = np.empty(node.shape, dtype=object)
    (kh, kw), (sh, sw) = node.op.kernel, node.op.stride
    for c, i, j in np.ndindex(*node.shape):
        out[c, i, j] = sources[0][c, i * sh : i * sh + kh, j * sw : j * sw + kw].max()
    return out


def _sum(node, sources, _weights):
    return sum(arb(factor) * source for factor, source in zip(node.op.coefficients, sources, strict=True))


STEPS = {
    "Sum": _sum,
    "Concat": lambda node, sources, _: np.concatenate(sources, axis=node.op.axis),
    "Dense": _dense,
    "Conv": _conv,
    "Activation": _activation,
    "MaxPool": _max_pool,
    "Reshape": lambda node, sources, _: sources[0].reshape(node.shape),
}


def constants(network):
    """Certified constants of the nodes with one input, by which norms of errors are carried on."""
    found = [0.0]
    for node in network.nodes[1:]:
        source = network.nodes[node.inputs[0]].shape
        one = len(node.inputs) == 1
        found.append(operation_constant(node.op, network.weights, source, node.shape) if one else 0.0)
    return found


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("function", [act.relu, act.tanh, act.sigmoid])
def test_no_entry_is_further_off_than_its_bound(seed, function, normed):
    maps = Maps(2, 6, 6, seed=seed)
    maps.conv(3, padding=1)
    maps.act(function())
    maps.maximum()
    maps.conv(4, padding=1)
    maps.act(function())
    maps.flatten()
    maps.dense(5)
    maps.dense(2)
    network = maps.network()
    point = np.random.default_rng(seed).standard_normal(network.input_shape) * 10.0 ** (seed - 2)
    norms = constants(network) if normed else None
    value, error = evaluate_with_error(network, torch.from_numpy(point[None]), prepare(network), norms)
    wanted = exact(network, point)
    for got, bound, true in zip(value[0].tolist(), error[0].tolist(), wanted.tolist(), strict=True):
        off = abs(arb(got) - true)
        assert off.upper() <= bound
        assert bound <= 1e-9 * (1.0 + float(np.abs(point).max()))


@pytest.mark.parametrize("seed", range(3))
def test_norms_carry_errors_through_joins(seed):
    """A residual sum and a concatenation, deep enough for norms to be the smaller bound."""
    rng = np.random.default_rng(seed)
    maps = Maps(12)
    for _ in range(8):
        source = maps.last
        branch = maps.act(act.absolute(), maps.dense(np.linalg.qr(rng.normal(size=(12, 12)))[0], source))
        maps.sum(source, branch, coefficients=(0.5, -0.5))
    maps.concat(maps.last, branch)
    maps.dense(rng.normal(size=(2, 24)))
    network = maps.network()
    point = rng.standard_normal((1, 12)) * 1e3
    value, error = evaluate_with_error(network, torch.from_numpy(point), prepare(network), constants(network))
    _, plain = evaluate_with_error(network, torch.from_numpy(point), prepare(network))
    assert (error < plain).all()
    for got, bound, true in zip(value[0].tolist(), error[0].tolist(), exact(network, point[0]).tolist(), strict=True):
        assert abs(arb(got) - true).upper() <= bound
