"""Slope intervals hold every difference quotient and are no wider than they must be."""

import math

import mpmath
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from lipray.errors import UsageError
from lipray.model import activations as act

FUNCTIONS = {
    "relu": act.relu(),
    "leaky": act.leaky_relu(0.2),
    "leaky-negative": act.leaky_relu(-1.5),
    "leaky-steep": act.leaky_relu(3.0),
    "prelu": act.prelu([0.3]),
    "elu": act.elu(),
    "elu-steep": act.elu(2.5),
    "elu-flat": act.elu(0.4),
    "elu-negative": act.elu(-0.7),
    "elu-scaled": act.elu(1.3, 0.7, 1.9),
    "selu": act.selu(),
    "celu": act.celu(),
    "celu-wide": act.celu(2.2),
    "silu": act.silu(),
    "gelu": act.gelu(),
    "gelu-tanh": act.gelu("tanh"),
    "tanh": act.tanh(),
    "sigmoid": act.sigmoid(),
    "log-sigmoid": act.log_sigmoid(),
    "softplus": act.softplus(),
    "softplus-sharp": act.softplus(3.5, 30),
    "softplus-negative": act.softplus(-0.8),
    "hardtanh": act.hardtanh(),
    "relu6": act.hardtanh(0.0, 6.0),
    "clamp-min": act.hardtanh(-2.0, math.inf),
    "hardswish": act.hardswish(),
    "hardsigmoid": act.hardsigmoid(),
    "mish": act.mish(),
    "abs": act.absolute(),
}

MODULES = {
    "relu": nn.ReLU(),
    "leaky": nn.LeakyReLU(0.2),
    "leaky-negative": nn.LeakyReLU(-1.5),
    "leaky-steep": nn.LeakyReLU(3.0),
    "elu": nn.ELU(),
    "elu-steep": nn.ELU(2.5),
    "elu-negative": nn.ELU(-0.7),
    "selu": nn.SELU(),
    "celu": nn.CELU(),
    "celu-wide": nn.CELU(2.2),
    "silu": nn.SiLU(),
    "gelu": nn.GELU(),
    "gelu-tanh": nn.GELU("tanh"),
    "tanh": nn.Tanh(),
    "sigmoid": nn.Sigmoid(),
    "log-sigmoid": nn.LogSigmoid(),
    "softplus": nn.Softplus(),
    "softplus-sharp": nn.Softplus(3.5, 30),
    "softplus-negative": nn.Softplus(-0.8),
    "hardtanh": nn.Hardtanh(),
    "relu6": nn.ReLU6(),
    "hardswish": nn.Hardswish(),
    "hardsigmoid": nn.Hardsigmoid(),
    "mish": nn.Mish(),
}


def values(op, points):
    return act.apply_activation(op, torch.tensor(points, dtype=torch.float64)[:, None])[:, 0]


@pytest.mark.parametrize("name", FUNCTIONS)
@settings(max_examples=150, deadline=None)
@given(a=st.floats(-30, 30), step=st.floats(1e-3, 20))
@example(a=2.39, step=0.02)
@example(a=-2.41, step=0.02)
@example(a=0.0, step=0.25)
def test_difference_quotients_lie_inside(name, a, step):
    op = FUNCTIONS[name]
    b = a + step
    fa, fb = values(op, [a, b]).tolist()
    rounding = 4e-16 * (abs(fa) + abs(fb) + abs(a) + 1) / (b - a)
    assert op.lower[0] - rounding <= (fb - fa) / (b - a) <= op.upper[0] + rounding


@pytest.mark.parametrize("name", FUNCTIONS)
def test_interval_is_the_range_of_the_slope(name):
    op = FUNCTIONS[name]
    grid = torch.linspace(-60, 60, 240_001, dtype=torch.float64)
    f = act.apply_activation(op, grid[:, None])[:, 0]
    slopes = (f[1:] - f[:-1]) / (grid[1:] - grid[:-1])
    for bound, seen, outward in ((op.lower[0], slopes.min(), -1), (op.upper[0], slopes.max(), 1)):
        assert (bound - float(seen)) * outward >= -1e-10
        assert (bound - float(seen)) * outward <= 1e-3


@pytest.mark.parametrize("name", MODULES)
def test_value_is_torchs_own(name):
    x = torch.linspace(-40, 40, 4001, dtype=torch.float64)[:, None]
    torch.testing.assert_close(act.apply_activation(FUNCTIONS[name], x), MODULES[name](x), rtol=1e-12, atol=3e-9)
    x = torch.linspace(-5, 5, 1001, dtype=torch.float64)[:, None]
    torch.testing.assert_close(act.apply_activation(FUNCTIONS[name], x), MODULES[name](x), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradient_is_finite_and_inside(name):
    op = FUNCTIONS[name]
    x = torch.tensor([[-800.0], [-30], [-1.3], [0.0], [1.3], [30], [800]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(act.apply_activation(op, x).sum(), x)
    assert gradient.isfinite().all()
    assert float(gradient.min()) >= op.lower[0] - 1e-15
    assert float(gradient.max()) <= op.upper[0] + 1e-15


def test_channel_slopes():
    op = act.prelu([0.5, -2.0, 4.0])
    assert op.lower == (0.5, -2.0, 1.0)
    assert op.upper == (1.0, 1.0, 4.0)
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    prelu = nn.PReLU(3).double()
    prelu.weight.data = torch.tensor([0.5, -2.0, 4.0], dtype=torch.float64)
    torch.testing.assert_close(act.apply_activation(op, x), prelu(x).detach())
    vector = x[..., 0, 0]
    torch.testing.assert_close(act.apply_activation(op, vector), prelu(vector).detach())


def _sigmoid_family(x, v, dv, ddv):
    """First and second derivative of x·σ(v(x))."""
    s = 1 / (1 + mpmath.iv.exp(-v))
    ds = s * (1 - s)
    return s + x * ds * dv, 2 * ds * dv + x * (ds * (1 - 2 * s) * dv**2 + ds * ddv)


def _silu(x):
    return _sigmoid_family(x, x, mpmath.iv.mpf(1), mpmath.iv.mpf(0))


def _gelu_tanh(x):
    k, c = 2 * mpmath.iv.sqrt(2 / mpmath.iv.pi), mpmath.iv.mpf("0.044715")
    return _sigmoid_family(x, k * (x + c * x**3), k * (1 + 3 * c * x**2), 6 * k * c * x)


def _mish(x):
    e = mpmath.iv.exp(x)
    s = e / (1 + e)
    t = 1 - 2 / (e * e + 2 * e + 2)  # tanh(log(1 + e))
    dt = (1 - t * t) * s
    return t + x * dt, 2 * dt + x * (-2 * t * dt * s + (1 - t * t) * s * (1 - s))


def _below(derivatives, sign, bound, left, right):
    """Prove sign·φ′ ≤ bound on [left, right] by bisection with the mean value form; False when it fails."""
    pieces = [(left, right)]
    while pieces:
        a, b = pieces.pop()
        middle = (a + b) / 2
        _, curvature = derivatives(mpmath.iv.mpf([a, b]))
        slope, _ = derivatives(mpmath.iv.mpf(middle))
        if (sign * (slope + curvature * mpmath.iv.mpf([a - middle, b - middle]))).b <= bound:
            continue
        if b - a < 1e-9:
            return False
        pieces += [(a, middle), (middle, b)]
    return True


@pytest.mark.parametrize(
    ("op", "derivatives"),
    [(act.silu(), _silu), (act.gelu("tanh"), _gelu_tanh), (act.mish(), _mish)],
)
def test_smooth_intervals_are_proven_by_interval_arithmetic(op, derivatives):
    # Beyond |x| = 30 what separates the slope from 0 or 1 is below 1e-11.
    for sign, bound in ((1, op.upper[0]), (-1, -op.lower[0])):
        assert _below(derivatives, sign, bound, -30.0, 30.0)
        assert not _below(derivatives, sign, bound - 2e-9, -30.0, 30.0)


def test_gelu_interval_is_proven_from_its_extremum():
    # φ″ = (2 − x²)·density, so φ′ is largest at √2. erf(1) from its alternating series: partial sums enclose it.
    iv = mpmath.iv
    terms = [(-1) ** n / (iv.mpf(math.factorial(n)) * (2 * n + 1)) for n in range(25)]
    partial = [sum(terms), sum(terms[:-1])]
    series = iv.mpf([min(p.a for p in partial), max(p.b for p in partial)])
    sup = (1 + 2 * series / iv.sqrt(iv.pi)) / 2 + iv.sqrt(2) * iv.exp(iv.mpf(-1)) / iv.sqrt(2 * iv.pi)
    op = act.gelu()
    assert sup.b <= op.upper[0] <= sup.b + 1e-9
    assert 1 - sup.b - 1e-9 <= op.lower[0] <= (1 - sup).a


@pytest.mark.parametrize(
    "make",
    [
        lambda: act.celu(0.0),
        lambda: act.celu(-1.0),
        lambda: act.elu(1.0, 1.0, -1.0),
        lambda: act.elu(math.inf),
        lambda: act.softplus(0.0),
        lambda: act.softplus(1.0, 5.0),
        lambda: act.softplus(1.0, math.nan),
        lambda: act.leaky_relu(math.nan),
        lambda: act.hardtanh(math.nan, 1.0),
        lambda: act.gelu("fast"),
    ],
)
def test_functions_without_a_bound_are_refused(make):
    with pytest.raises(UsageError):
        make()


def test_scaled_elu_rounds_its_product_outward():
    for alpha, scale, inner in [
        (1.1, 1.3, 0.7),
        (-1.1, 1.3, 0.7),
        (act.SELU_ALPHA, act.SELU_SCALE, 1.0),
        (0.1, 3.0, 1.0),
    ]:
        op = act.elu(alpha, scale, inner)
        with mpmath.workprec(200):
            product = mpmath.mpf(alpha) * mpmath.mpf(scale) * mpmath.mpf(inner)
            assert op.lower[0] <= min(product, 0)
            assert op.upper[0] >= max(product, scale)
    assert act.elu(0.7).upper == (1.0,)
    assert act.elu(1.7).upper == (1.7,)
