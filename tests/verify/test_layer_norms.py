"""Norms of single layers come from above, at any size."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lipray.model import activations as act
from lipray.model.evaluate import evaluate
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
from lipray.verify import layer_norms
from lipray.verify import linear_maps as lm
from lipray.verify.layer_norms import convolution_constant, operation_constant, torus_norm
from lipray.verify.spectral import largest_eigenvalues_bound
from tests.networks import Builder
from tests.slopes import windows

quick = settings(max_examples=60, deadline=None, derandomize=True)


def norms(weight, op, size):
    """The torus bound and the exact norm of the matrix."""
    source = (weight.shape[1] * op.groups, *size)
    out = [
        (n + a + b - d * (k - 1) - 1) // s + 1
        for n, k, s, (a, b), d in zip(size, weight.shape[2:], op.stride, op.padding, op.dilation, strict=True)
    ]
    matrix = lm.convolution(weight, op, source, (weight.shape[0], *out)).toarray()
    return torus_norm(weight, op, source), np.linalg.norm(matrix, 2) if matrix.any() else 0.0


@st.composite
def convolutions(draw):
    rank = draw(st.integers(1, 2))
    size = tuple(draw(st.integers(1, 8 if rank == 2 else 14)) for _ in range(rank))
    kernel = tuple(draw(st.integers(1, 4)) for _ in range(rank))
    dilation = tuple(draw(st.integers(1, 3)) for _ in range(rank))
    stride = tuple(draw(st.integers(1, 3)) for _ in range(rank))
    padding = []
    for n, k, d in zip(size, kernel, dilation, strict=True):
        before, after = draw(st.integers(-2, 6)), draw(st.integers(-2, 6))
        short = d * (k - 1) + 1 - (n + before + after)
        padding.append((before, after + max(short, 0)))
    groups = draw(st.sampled_from((1, 1, 2)))
    outputs, inputs = groups * draw(st.integers(1, 3)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    weight = rng.normal(size=(outputs, inputs, *kernel))
    return weight, Conv("w", None, stride, tuple(padding), dilation, groups), size


@quick
@given(convolutions(), st.sampled_from((1e-200, 1.0, 1e200)))
def test_the_torus_norm_is_above_the_norm(convolution, scale):
    weight, op, size = convolution
    bound, true = norms(weight, op, size)
    assert bound >= true * (1.0 - 1e-13)
    assert torus_norm(weight * scale, op, (weight.shape[1] * op.groups, *size)) == pytest.approx(
        bound * scale, rel=1e-9
    )


@pytest.mark.parametrize(
    ("size", "stride", "dilation", "padding", "groups", "within"),
    [
        ((24,), (1,), (1,), ((1, 1),), 1, 1.02),
        ((24,), (2,), (1,), ((1, 1),), 1, 1.02),
        ((24,), (3,), (2,), ((2, 0),), 2, 1.03),
        ((16, 16), (1, 1), (1, 1), ((1, 1), (1, 1)), 1, 1.03),
        ((16, 16), (2, 2), (1, 1), ((1, 1), (1, 1)), 1, 1.04),
        ((16, 15), (2, 1), (1, 2), ((0, 1), (2, 2)), 2, 1.06),
        ((14, 14), (1, 1), (1, 1), ((0, 0), (0, 0)), 1, 1.04),
    ],
)
def test_the_torus_norm_is_close_on_larger_maps(size, stride, dilation, padding, groups, within):
    """A bound that ignored the stride, or took the kernel's 1-norm, would be far off."""
    rng = np.random.default_rng(1)
    for _ in range(3):
        weight = rng.normal(size=(4, 4 // groups, *(3,) * len(size)))
        bound, true = norms(weight, Conv("w", None, stride, padding, dilation, groups), size)
        assert true <= bound <= true * within


LAPLACE = np.outer([-1.0, 2.0, -1.0], [-1.0, 2.0, -1.0])[None, None]
SAME = Conv("w", None, (1, 1), ((1, 1), (1, 1)), (1, 1))


def transform_at(side):
    """The tempting bound: largest |FFT| of the kernel at some side."""
    return float(np.abs(np.fft.fft2(LAPLACE[0, 0], (side, side))).max())


def test_the_transform_at_the_image_size_is_not_a_bound():
    network = Network((Node("x", Input(), (), (1, 3, 3)), Node("c", SAME, (0,), (1, 3, 3))), {"w": LAPLACE})
    x = np.outer([1.0, -math.sqrt(2.0), 1.0], [1.0, -math.sqrt(2.0), 1.0])[None, None]
    reached = float(evaluate(network, torch.from_numpy(x)).norm() / np.linalg.norm(x))
    true = (2.0 + math.sqrt(2.0)) ** 2
    assert reached == pytest.approx(true, rel=1e-12)
    assert transform_at(3) < 9.0 + 1e-9 < reached < transform_at(4)
    assert reached <= torus_norm(LAPLACE, SAME, (1, 3, 3)) <= 16.0 + 1e-9
    assert reached <= operation_constant(SAME, {"w": LAPLACE}, (1, 3, 3), (1, 3, 3)) <= true * (1.0 + 1e-9)


@pytest.mark.parametrize("side", [3, 5, 7, 9])
def test_odd_maps_where_the_worst_frequency_is_off_their_grid(side):
    bound, true = norms(LAPLACE, SAME, (side, side))
    assert transform_at(side) < true <= bound


def test_padding_wider_than_the_map():
    rng = np.random.default_rng(2)
    weight = rng.normal(size=(2, 2, 5))
    for size, padding, stride, dilation in itertools.product((1, 2, 3), (0, 3, 8), (1, 2), (1, 2, 3)):
        op = Conv("w", None, (stride,), ((8, padding),), (dilation,))
        if size + 8 + padding >= 4 * dilation + 1:
            bound, true = norms(weight, op, (size,))
            assert bound >= true * (1.0 - 1e-13)


def test_large_convolutions_go_through_the_torus_and_both_ways_agree(monkeypatch):
    rng = np.random.default_rng(3)
    weights = {"w": rng.normal(size=(4, 3, 3, 3))}
    op = Conv("w", None, (2, 2), ((1, 1), (1, 1)), (1, 1))
    exact = operation_constant(op, weights, (3, 12, 12), (4, 6, 6))
    monkeypatch.setattr(layer_norms, "MATRIX_BELOW", 0)
    torus = operation_constant(op, weights, (3, 12, 12), (4, 6, 6))
    assert exact <= torus <= exact * 1.06


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "padding"),
    [
        ((1, 1), (1, 1), (1, 1), ((0, 0), (0, 0))),
        ((1, 1), (2, 1), (3, 1), ((1, 0), (0, 2))),
        ((2, 3), (2, 3), (1, 1), ((0, 0), (0, 0))),
        ((2, 2), (3, 4), (2, 3), ((1, 1), (2, 0))),
        ((2,), (2,), (1,), ((1, 0),)),
    ],
)
def test_of_disjoint_windows_the_kernel_is_the_norm(kernel, stride, dilation, padding, groups, monkeypatch):
    rng = np.random.default_rng(5)
    op = Conv("w", None, stride, padding, dilation, groups)
    weight = rng.normal(size=(4, 2, *kernel))
    source = (2 * groups, *[13] * len(kernel))
    extents = zip(source[1:], padding, dilation, kernel, stride, strict=True)
    target = (4, *((n + sum(p) - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in extents))
    norm = np.linalg.norm(lm.convolution(weight, op, source, target).toarray(), 2)
    monkeypatch.setattr(layer_norms, "MATRIX_BELOW", 0)
    monkeypatch.setattr(layer_norms, "torus_norm", lambda *_: pytest.fail("the torus was asked"))
    assert norm <= convolution_constant(weight, op, source, target) == pytest.approx(norm, rel=1e-9)


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"), [((2,), (1,), (1,)), ((2,), (2,), (2,)), ((3, 1), (2, 1), (1, 1))]
)
def test_windows_that_meet_have_a_larger_norm_than_their_kernel(kernel, stride, dilation, monkeypatch):
    padding = ((0, 0),) * len(kernel)
    op = Conv("w", None, stride, padding, dilation, 1)
    weight, side = np.ones((1, 1, *kernel)), 12
    target = (1, *((side - d * (k - 1) - 1) // s + 1 for k, s, d in zip(kernel, stride, dilation, strict=True)))
    source = (1, *[side] * len(kernel))
    norm = np.linalg.norm(lm.convolution(weight, op, source, target).toarray(), 2)
    assert norm > 1.1 * np.linalg.norm(weight)
    monkeypatch.setattr(layer_norms, "MATRIX_BELOW", 0)
    assert convolution_constant(weight, op, source, target) >= norm


def test_a_whole_batch_is_proven_however_many_chunks_it_takes(monkeypatch):
    rng = np.random.default_rng(4)
    weight = rng.normal(size=(3, 2, 3, 3))
    known = torus_norm(weight, SAME, (2, 10, 10))
    monkeypatch.setattr(layer_norms, "CHUNK", 100)
    assert torus_norm(weight, SAME, (2, 10, 10)) == pytest.approx(known, rel=1e-12)


@pytest.mark.parametrize("outputs", [64, 512, 4096])
def test_many_outputs_of_few_inputs_round_by_the_number_of_outputs(outputs):
    """One weight of 1 and the others 2⁻²⁷: summed one by one, every square after the first is lost."""
    weight = np.full((outputs, 1, 1, 1), 2.0**-27)
    weight[0] = 1.0
    bound = torus_norm(weight, Conv("w", None, (1, 1), ((0, 0), (0, 0)), (1, 1)), (1, 50, 50))
    square = 1 + (outputs - 1) * Fraction(1, 2**54)
    assert Fraction(bound) ** 2 >= square
    assert bound <= math.sqrt(square) * (1.0 + 1e-9)


def test_a_frequency_the_estimate_overlooks_is_found_by_the_proof():
    """Power iteration from any one vector sees nothing orthogonal to it."""
    start = torch.randn(1, 2, 1, dtype=torch.float64, generator=torch.Generator("cpu").manual_seed(0))[0, :, 0]
    blind = torch.stack([-start[1], start[0]]) / start.norm()
    hidden = (torch.outer(blind, blind) * 100.0).to(torch.complex128)
    plain = torch.eye(2, dtype=torch.complex128).expand(8, 2, 2)
    grams = torch.cat([plain * torch.arange(1, 9)[:, None, None], hidden[None]])
    assert 100.0 <= largest_eigenvalues_bound(grams) <= 100.0 + 1e-9
    assert largest_eigenvalues_bound(hidden[None]) >= 100.0 - 1e-12
    assert largest_eigenvalues_bound(plain, 123.0) >= 123.0


def pool_quotient(op, shape, target, x, y):
    network = Network((Node("x", Input(), (), shape), Node("p", op, (0,), target)), {})
    image = evaluate(network, torch.from_numpy(np.stack([x, y])))
    return float((image[0] - image[1]).norm() / np.linalg.norm(x - y))


def test_a_max_pool_with_overlapping_windows_is_2_lipschitz():
    op = MaxPool((3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1))
    constant = operation_constant(op, {}, (3, 8, 8), (3, 4, 4))
    assert 2.0 <= constant <= 2.0 + 1e-12
    x = np.zeros((3, 8, 8))
    x[1, 3, 3] = 1.0
    assert pool_quotient(op, (3, 8, 8), (3, 4, 4), x, np.zeros_like(x)) == 2.0
    rng = np.random.default_rng(5)
    # Without a hand-made example: spikes over noise already pass what a non-expansive map could do.
    best = 0.0
    for _ in range(20):
        low = rng.normal(size=(3, 8, 8))
        spike = np.where(rng.random((3, 8, 8)) < 0.05, 5.0, 0.0)
        if spike.any():
            best = max(best, pool_quotient(op, (3, 8, 8), (3, 4, 4), low, low + spike))
    assert 1.3 < best <= constant


@quick
@given(st.integers(0, 2**16), st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.integers(0, 1))
def test_max_pool_constants_count_the_windows_over_an_entry(seed, kernel, stride, dilation, padding):
    size, span = 7, dilation * (kernel - 1) + 1
    if padding > span // 2:
        return
    out = (size + 2 * padding - span) // stride + 1
    op = MaxPool((kernel,) * 2, (stride,) * 2, ((padding, padding),) * 2, (dilation,) * 2)
    constant = operation_constant(op, {}, (1, size, size), (1, out, out))
    most = int(windows(op, (1, size, size)).sum(dim=0).max())
    assert constant == pytest.approx(math.sqrt(most), rel=1e-12)
    rng = np.random.default_rng(seed)
    for _ in range(5):
        low = rng.normal(size=(1, size, size))
        spike = np.where(rng.random(low.shape) < 0.1, 5.0, 0.0)
        if spike.any():
            assert pool_quotient(op, low.shape, (1, out, out), low, low + spike) <= constant * (1.0 + 1e-12)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("size", [2, 3, 10])
def test_softmax_constants(log, size):
    constant = operation_constant(Softmax(log), {}, (size,), (size,))
    assert constant == pytest.approx(math.sqrt(size) if log else 0.5, rel=1e-15)
    network = Network((Node("x", Input(), (), (size,)), Node("s", Softmax(log), (0,), (size,))), {})
    rng = np.random.default_rng(6)
    best = 0.0
    for scale in (0.1, 1.0, 10.0):
        x, step = rng.normal(size=(2, 400, size)) * scale
        x[:100, 2:] -= 30.0  # two candidates, the worst case of softmax
        if log:
            x[:50, 0] += 60.0  # one winner, the worst case of its logarithm
        else:
            step[:100, 2:] = 0.0
        pairs = torch.from_numpy(np.concatenate([x, x + 0.1 * step]))
        image = evaluate(network, pairs)
        quotient = (image[:400] - image[400:]).norm(dim=1) / (pairs[:400] - pairs[400:]).norm(dim=1)
        best = max(best, float(quotient.max()))
    assert constant * 0.8 <= best <= constant * (1.0 + 1e-12)


@quick
@given(st.data(), st.sampled_from(("conv", "average", "pad", "affine", "adaptive")))
def test_constants_are_above_the_norm_of_the_matrix(data, kind):
    rank = data.draw(st.integers(1, 2))
    shape = (data.draw(st.integers(1, 3)), *(data.draw(st.integers(1, 6)) for _ in range(rank)))
    builder = Builder(data.draw, rank, shape, integers=False)
    make = {"average": lambda source: builder.pool(source, maximum=False)}.get(kind) or getattr(builder, kind)
    if make(0) == 0:
        return
    node, weights = builder.nodes[-1], builder.weights
    constant = operation_constant(node.op, weights, shape, node.shape)
    true = np.linalg.norm(lm.operation_matrix(node.op, weights, shape, node.shape).toarray(), 2)
    assert constant >= true * (1.0 - 1e-14)
    if kind in {"conv", "affine"}:
        assert constant <= true * (1.0 + 1e-9)


def test_other_constants():
    rng = np.random.default_rng(7)
    weights = {"w": rng.normal(size=(3, 4)), "s": np.array([0.5, -3.0]), "t": np.zeros(2)}
    dense = operation_constant(Dense("w", None), weights, (5, 4), (5, 3))
    assert dense == pytest.approx(np.linalg.norm(weights["w"], 2), rel=1e-9)
    assert 3.0 <= operation_constant(ChannelAffine("s", "t"), weights, (2, 3), (2, 3)) <= 3.0 * (1.0 + 1e-14)
    assert operation_constant(Reshape(), {}, (2, 3), (6,)) == 1.0
    assert operation_constant(Pad(((1, -1),)), {}, (2, 3), (2, 3)) == 1.0
    pool = AvgPool((2, 2), (2, 2), ((0, 0), (0, 0)))
    assert 0.5 <= operation_constant(pool, {}, (2, 4, 4), (2, 2, 2)) <= 0.5 * (1.0 + 1e-12)
    whole = operation_constant(AdaptiveAvgPool(), {}, (2, 4, 4), (2, 1, 1))
    assert 0.25 <= whole <= 0.25 * (1.0 + 1e-12)
    for op, constant in ((act.leaky_relu(-3.0), 3.0), (act.absolute(), 1.0), (act.sigmoid(), 0.25), (act.relu(), 1.0)):
        assert operation_constant(op, {}, (3,), (3,)) == constant
    assert operation_constant(act.prelu((0.5, -2.0)), {}, (2, 3), (2, 3)) == 2.0
    with pytest.raises(TypeError, match="several inputs"):
        operation_constant(Sum((1.0, 1.0)), {}, (3,), (3,))
    with pytest.raises(TypeError, match="several inputs"):
        operation_constant(Concat(0), {}, (3,), (3,))


@pytest.mark.parametrize("kernel", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("pads", [(3, 3), (0, 4), (5, 1)])
def test_padding_wider_than_the_kernel_does_not_fool_the_torus(kernel, stride, pads):
    """Outputs may then meet on one position of the torus; those read nothing but padding."""
    draw = np.random.default_rng(kernel)
    side = 5
    out = (side + sum(pads) - kernel) // stride + 1
    op = Conv("weight", None, (stride,) * 2, (pads,) * 2, (1, 1))
    weight = draw.standard_normal((2, 3, kernel, kernel))
    matrix = lm.convolution(weight, op, (3, side, side), (2, out, out)).toarray()
    exact = np.linalg.norm(matrix, 2)
    assert exact <= torus_norm(weight, op, (3, side, side)) <= 1.6 * exact


def test_a_large_layer_is_worked_out_once_and_another_anew(monkeypatch):
    rng = np.random.default_rng(8)
    weights = {"w": rng.normal(size=(8, 4, 3, 3))}
    monkeypatch.setattr(layer_norms, "MATRIX_BELOW", 0)
    monkeypatch.setattr(layer_norms, "LARGE", 1)
    monkeypatch.setattr(layer_norms, "_KNOWN", {})
    asked = []
    exact = layer_norms.torus_norm
    monkeypatch.setattr(layer_norms, "torus_norm", lambda *given: asked.append(0) or exact(*given))
    same = Conv("w", None, (1, 1), ((1, 1), (1, 1)), (1, 1))
    first = operation_constant(same, weights, (4, 9, 9), (8, 9, 9))
    assert operation_constant(same, {"w": weights["w"].copy()}, (4, 9, 9), (8, 9, 9)) == first
    assert len(asked) == 1
    others = [
        (same, {"w": np.nextafter(weights["w"], 9.0)}, (4, 9, 9), (8, 9, 9)),
        (same, weights, (4, 10, 9), (8, 10, 9)),
        (Conv("w", None, (2, 1), ((1, 1), (1, 1)), (1, 1)), weights, (4, 9, 9), (8, 5, 9)),
        (Conv("w", None, (1, 1), ((1, 1), (1, 2)), (1, 1)), weights, (4, 9, 9), (8, 9, 10)),
        (Conv("w", None, (1, 1), ((1, 1), (1, 1)), (1, 2)), weights, (4, 9, 9), (8, 9, 7)),
        (Conv("w", None, (1, 1), ((1, 1), (1, 1)), (1, 1), 2), weights, (8, 9, 9), (8, 9, 9)),
    ]
    for count, other in enumerate(others, start=2):
        operation_constant(*other)
        assert len(asked) == count
    monkeypatch.setattr(layer_norms, "MOST", 1)
    operation_constant(same, {"w": -weights["w"]}, (4, 9, 9), (8, 9, 9))
    assert len(layer_norms._KNOWN) == 1
