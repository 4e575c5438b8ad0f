"""Evaluation against loops over single entries, and its derivative against finite differences."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lipray.errors import InputShapeError
from lipray.model import activations
from lipray.model.evaluate import evaluate, prepare
from lipray.model.network import (
    AdaptiveAvgPool,
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
    Softmax,
    Sum,
)


def single(op, in_shape, out_shape, **weights):
    return Network((Node("input", Input(), (), in_shape), Node("op", op, (0,), out_shape)), weights)


def run(network, x):
    return evaluate(network, torch.from_numpy(x)).numpy()


def windows(sizes, kernel, stride, padding, dilation):
    """Output position → positions read (unpadded coordinates, possibly outside), with their kernel index."""
    counts = [
        (n + sum(p) - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(sizes, kernel, stride, padding, dilation, strict=True)
    ]
    for out in itertools.product(*map(range, counts)):
        yield (
            out,
            [
                (
                    k,
                    tuple(
                        o * s - p[0] + d * j for o, s, p, d, j in zip(out, stride, padding, dilation, k, strict=True)
                    ),
                )
                for k in itertools.product(*map(range, kernel))
            ],
        )


def inside(position, sizes):
    return all(0 <= p < n for p, n in zip(position, sizes, strict=True))


@st.composite
def window_cases(draw, *, cropping=True):
    axes = draw(st.integers(1, 2))
    sizes = [draw(st.integers(4, 6)) for _ in range(axes)]
    kernel = tuple(draw(st.integers(1, 3)) for _ in range(axes))
    stride = tuple(draw(st.integers(1, 3)) for _ in range(axes))
    dilation = tuple(draw(st.integers(1, 2)) for _ in range(axes))
    low = -1 if cropping else 0
    padding = tuple((draw(st.integers(low, 2)), draw(st.integers(low, 2))) for _ in range(axes))
    grown = [n + sum(p) for n, p in zip(sizes, padding, strict=True)]
    if any(g < d * (k - 1) + 1 for g, k, d in zip(grown, kernel, dilation, strict=True)):
        padding = ((2, 2),) * axes
    return sizes, kernel, stride, padding, dilation


def cropped(position, sizes, padding):
    """Whether a position in the map was cropped away by negative padding."""
    return any(p < -pad[0] or p >= n + pad[1] for p, n, pad in zip(position, sizes, padding, strict=True))


@settings(max_examples=60, deadline=None)
@given(case=window_cases(), groups=st.integers(1, 2), bias=st.booleans(), seed=st.integers(0, 9))
def test_convolution(case, groups, bias, seed):
    sizes, kernel, stride, padding, dilation = case
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(4, 2, *kernel)).astype(np.float32)
    offset = rng.normal(size=4).astype(np.float32)
    x = rng.normal(size=(2, 2 * groups, *sizes))
    places = list(windows(sizes, kernel, stride, padding, dilation))
    shape = tuple(n + 1 for n in places[-1][0])
    expected = np.zeros((2, 4, *shape))
    for out, reads in places:
        for channel in range(4):
            group = channel // (4 // groups)
            total = np.zeros(2) + (offset[channel] if bias else 0)
            for k, position in reads:
                if inside(position, sizes) and not cropped(position, sizes, padding):
                    part = x[(slice(None), slice(2 * group, 2 * group + 2), *position)]
                    total += part @ weight[(channel, slice(None), *k)].astype(np.float64)
            expected[(slice(None), channel, *out)] = total
    op = Conv("w", "b" if bias else None, stride, padding, dilation, groups)
    network = single(op, x.shape[1:], (4, *shape), w=weight, b=offset)
    np.testing.assert_allclose(run(network, x), expected, rtol=1e-12, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(case=window_cases(), custom=st.booleans(), seed=st.integers(0, 9))
def test_average_pool(case, custom, seed):
    sizes, kernel, stride, padding, _ = case
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2, 3, *sizes))
    if any(n + sum(p) < k for n, p, k in zip(sizes, padding, kernel, strict=True)):
        padding = ((1, 2),) * len(sizes)
    places = list(windows(sizes, kernel, stride, padding, (1,) * len(sizes)))
    shape = tuple(n + 1 for n in places[-1][0])
    divisor = rng.integers(1, 9, size=shape).astype(np.float32) if custom else np.full(shape, math.prod(kernel))
    expected = np.zeros((2, 3, *shape))
    for out, reads in places:
        kept = [p for _, p in reads if inside(p, sizes) and not cropped(p, sizes, padding)]
        expected[(slice(None), slice(None), *out)] = sum(
            (x[(slice(None), slice(None), *p)] for p in kept), np.zeros((2, 3))
        )
    op = AvgPool(kernel, stride, padding, "d" if custom else None)
    network = single(op, x.shape[1:], (3, *shape), d=divisor)
    np.testing.assert_allclose(run(network, x), expected / divisor, rtol=1e-12, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(case=window_cases(cropping=False), seed=st.integers(0, 9))
def test_max_pool_ignores_its_padding(case, seed):
    sizes, kernel, stride, padding, dilation = case
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2, 3, *sizes)) - 10  # a zero from the padding would win
    places = list(windows(sizes, kernel, stride, padding, dilation))
    shape = tuple(n + 1 for n in places[-1][0])
    expected = np.full((2, 3, *shape), -math.inf)
    for out, reads in places:
        for _, p in reads:
            if inside(p, sizes):
                at = (slice(None), slice(None))
                expected[(*at, *out)] = np.maximum(expected[(*at, *out)], x[(*at, *p)])
    network = single(MaxPool(kernel, stride, padding, dilation), x.shape[1:], (3, *shape))
    assert np.array_equal(run(network, x), expected)


def test_pointwise_and_shape_operations():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 4, 5))
    scale, shift = rng.normal(size=3), rng.normal(size=3)
    got = run(single(ChannelAffine("a", "b"), (3, 4, 5), (3, 4, 5), a=scale, b=shift), x)
    np.testing.assert_allclose(got, x * scale[:, None, None] + shift[:, None, None])
    weight = rng.normal(size=(2, 5)).astype(np.float16)
    got = run(single(Dense("w", None), (3, 4, 5), (3, 4, 2), w=weight), x)
    np.testing.assert_allclose(got, x @ weight.astype(np.float64).T)
    padded = run(single(Pad(((1, -2), (-1, 3))), (3, 4, 5), (3, 3, 7)), x)
    expected = np.zeros((2, 3, 3, 7))
    expected[:, :, 1:, :4] = x[:, :, :2, 1:]
    assert np.array_equal(padded, expected)
    assert np.array_equal(run(single(Reshape(), (3, 4, 5), (60,)), x), x.reshape(2, 60))
    pooled = run(single(AdaptiveAvgPool(), (3, 4, 5), (3, 3, 2)), x)
    np.testing.assert_allclose(pooled[:, :, 0, 1], x[:, :, :2, 2:].mean((2, 3)))
    np.testing.assert_allclose(pooled[:, :, 2, 0], x[:, :, 2:, :3].mean((2, 3)))
    line = run(single(AdaptiveAvgPool(), (3, 5), (3, 3)), x[:, :, 0])
    np.testing.assert_allclose(line[:, :, 1], x[:, :, 0, 1:4].mean(2))


def test_joins_and_softmax():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 4))
    nodes = (
        Node("input", Input(), (), (3, 4)),
        Node("act", activations.relu(), (0,), (3, 4)),
        Node("sum", Sum((2.0, -3.0, 0.5)), (0, 1, 0), (3, 4)),
        Node("cat", Concat(1), (2, 0), (3, 8)),
        Node("flat", Reshape(), (3,), (24,)),
    )
    joined = run(Network(nodes, {}), x)
    total = 2.5 * x - 3 * np.maximum(x, 0)
    np.testing.assert_allclose(joined, np.concatenate([total, x], 2).reshape(2, 24))
    for log in (False, True):
        got = run(Network((*nodes, Node("soft", Softmax(log), (4,), (24,))), {}), x)
        expected = np.exp(joined) / np.exp(joined).sum(1, keepdims=True)
        np.testing.assert_allclose(got, np.log(expected) if log else expected)


def test_derivative_and_reused_weights():
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.normal(size=(2, 1, 3, 3)).astype(np.float32),
        "v": rng.normal(size=(3, 8)),
        "b": rng.normal(size=3),
        "unused": np.array(1.0),
    }
    nodes = (
        Node("input", Input(), (), (1, 4, 4)),
        Node("conv", Conv("w", None, (1, 1), ((1, 0), (0, 1)), (1, 1)), (0,), (2, 3, 3)),
        Node("act", activations.gelu(), (1,), (2, 3, 3)),
        Node("pool", AvgPool((2, 2), (1, 1), ((0, 0), (0, 0))), (2,), (2, 2, 2)),
        Node("flat", Reshape(), (3,), (8,)),
        Node("fc", Dense("v", "b"), (4,), (3,)),
    )
    network = Network(nodes, weights)
    prepared = prepare(network)
    assert set(prepared) == {"w", "v", "b"}
    assert all(tensor.dtype is torch.float64 for tensor in prepared.values())
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.equal(evaluate(network, x, prepared), evaluate(network, x))
    assert torch.autograd.gradcheck(lambda v: evaluate(network, v, prepared), x)


def test_wrong_batch_is_refused():
    network = single(Reshape(), (3, 4), (12,))
    with pytest.raises(InputShapeError, match="4,3"):
        evaluate(network, torch.zeros(2, 4, 3))
