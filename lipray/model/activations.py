"""Element-wise functions with proven difference-quotient intervals, and their float64 evaluation.

Each constructor returns an ``Activation`` whose ``[lower, upper]`` contains (φ(a) − φ(b))/(a − b) for all
real a ≠ b. For a continuous, piecewise differentiable φ that set is the hull of the values of φ′ (mean
value theorem), so each interval below is the range of a derivative, every end rounded outward where it is
not exact.

Derivations:

- SiLU xσ(x), GELU xΦ(x), GELU-tanh: φ(x) − φ(−x) = x, hence φ′(x) + φ′(−x) = 1 and the interval is
  [1 − s, s] with s = sup φ′. φ′ has one maximum, where φ″ = 0: x·tanh(x/2) = 2 for SiLU, s =
  1.09983932012887; x = √2 for GELU, s = Φ(√2) + √2 Φ′(√2) = 1.12890414518516; x = 1.41850… for GELU-tanh,
  s = 1.12899306865878.
- Mish x·tanh(log(1 + eˣ)): φ′ lies in [−0.112526122389463, 1.08849816125174].
- Tanh (0, 1], sigmoid (0, 1/4], softplus and log-sigmoid (0, 1), from their closed-form derivatives.
- ELU: 1 to the right of 0 and αeˣ to the left, so the hull of {0, 1, α}, whatever the sign of α.

The suprema of the smooth ones are re-proved by interval arithmetic in the tests.

Softplus: torch returns x itself once βx exceeds ``threshold``, a jump of log(1 + e^−threshold)/β that no
Lipschitz constant covers. lipray bounds (and evaluates) the ideal log(1 + exp(βx))/β. At torch's default
threshold of 20 the two differ by at most 2.1e-9/β, relative to the value there 1.1e-10, below the spacing of
float32 numbers; smaller thresholds are refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from lipray.errors import UsageError
from lipray.model.network import Activation

SELU_ALPHA = 1.6732632423543772848170429916717
SELU_SCALE = 1.0507009873554804934193349852946

_SILU_SUP = 1.0998393202
_GELU_SUP = 1.1289041452
_GELU_TANH_SUP = 1.1289930687
_MISH_INF = -0.1125261224
_MISH_SUP = 1.0884981613

MIN_SOFTPLUS_THRESHOLD = 20.0
"""Softplus with a smaller switch to the identity is refused: its jump would not be negligible."""


def relu() -> Activation:
    """max(x, 0): slopes in [0, 1]."""
    return Activation("relu", (0.0,), (1.0,))


def leaky_relu(slope: float) -> Activation:
    """X for x > 0, slope·x otherwise, any real slope."""
    return prelu((slope,))


def prelu(slopes: Sequence[float]) -> Activation:
    """Leaky ReLU with one trained slope per channel (axis 0), or one shared slope."""
    values = tuple(_finite("slope", slope) for slope in slopes)
    return Activation("leaky_relu", tuple(min(v, 1.0) for v in values), tuple(max(v, 1.0) for v in values), values)


def elu(alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Activation:
    """scale·x for x > 0, scale·alpha·(exp(input_scale·x) − 1) otherwise.

    Raises:
        UsageError: when ``input_scale`` is not positive, because the exponential then grows without bound.
    """
    alpha, scale, input_scale = (_finite("ELU parameter", v) for v in (alpha, scale, input_scale))
    if input_scale <= 0:
        raise UsageError("ELU", f"the input scale is {input_scale}, so the function grows exponentially")
    product = scale * alpha * input_scale
    exact = product == 0 or sorted(v == 1 for v in (alpha, scale, input_scale))[1]  # at most one factor is not 1
    ends = (0.0, scale, product) if exact else (0.0, scale, _down(_down(product)), _up(_up(product)))
    return Activation("elu", (min(ends),), (max(ends),), (alpha, scale, input_scale))


def selu() -> Activation:
    """Self-normalising ELU (Klambauer et al. 2017): slopes in [0, 1.7580993…]."""
    return elu(SELU_ALPHA, SELU_SCALE)


def celu(alpha: float = 1.0) -> Activation:
    """max(x, 0) + min(0, alpha·(exp(x/alpha) − 1)): slopes in [0, 1].

    Raises:
        UsageError: when alpha is not positive, because the exponential then grows without bound.
    """
    alpha = _finite("CELU alpha", alpha)
    if alpha <= 0:
        raise UsageError("CELU", f"alpha is {alpha}, so the function grows exponentially")
    return Activation("celu", (0.0,), (1.0,), (alpha,))


def silu() -> Activation:
    """x·sigmoid(x)."""
    return Activation("silu", (_below_one(_SILU_SUP),), (_SILU_SUP,))


def gelu(approximate: str = "none") -> Activation:
    """x·Φ(x) (``"none"``) or its tanh approximation (``"tanh"``)."""
    if approximate == "none":
        return Activation("gelu", (_below_one(_GELU_SUP),), (_GELU_SUP,))
    if approximate == "tanh":
        return Activation("gelu_tanh", (_below_one(_GELU_TANH_SUP),), (_GELU_TANH_SUP,))
    raise UsageError("GELU", f"unknown approximation {approximate!r}")


def tanh() -> Activation:
    """Hyperbolic tangent: slopes in [0, 1]."""
    return Activation("tanh", (0.0,), (1.0,))


def sigmoid() -> Activation:
    """1/(1 + exp(−x)): slopes in [0, 1/4]."""
    return Activation("sigmoid", (0.0,), (0.25,))


def log_sigmoid() -> Activation:
    """−log(1 + exp(−x)): slopes in [0, 1]."""
    return Activation("log_sigmoid", (0.0,), (1.0,))


def softplus(beta: float = 1.0, threshold: float = 20.0) -> Activation:
    """log(1 + exp(beta·x))/beta, the ideal function without torch's switch to x (see the module's docstring).

    Raises:
        UsageError: when beta is 0, or the threshold is below ``MIN_SOFTPLUS_THRESHOLD``.
    """
    beta = _finite("softplus beta", beta)
    if beta == 0:
        raise UsageError("softplus", "beta is 0")
    if not threshold >= MIN_SOFTPLUS_THRESHOLD:
        raise UsageError(
            "softplus",
            f"the threshold is {threshold}, where the function jumps by {math.log1p(math.exp(-threshold)) / beta:.2g}",
            hint=f"A jump has no Lipschitz constant; use a threshold of at least {MIN_SOFTPLUS_THRESHOLD:g}.",
        )
    return Activation("softplus", (0.0,), (1.0,), (beta,))


def hardtanh(minimum: float = -1.0, maximum: float = 1.0) -> Activation:
    """min(max(x, minimum), maximum), ends may be infinite (clamp, ReLU6): slopes in [0, 1]."""
    if math.isnan(minimum) or math.isnan(maximum):
        raise UsageError("hardtanh", "an end is NaN")
    return Activation("hardtanh", (0.0,), (1.0,), (float(minimum), float(maximum)))


def hardswish() -> Activation:
    """x·relu6(x + 3)/6: slopes (2x + 3)/6 on [−3, 3], hence [−1/2, 3/2]."""
    return Activation("hardswish", (-0.5,), (1.5,))


def hardsigmoid() -> Activation:
    """relu6(x + 3)/6: slopes in [0, 1/6]."""
    return Activation("hardsigmoid", (0.0,), (_up(1 / 6),))


def mish() -> Activation:
    """x·tanh(log(1 + exp(x))) (Misra 2019)."""
    return Activation("mish", (_MISH_INF,), (_MISH_SUP,))


def absolute() -> Activation:
    """|x|: slopes in [−1, 1]."""
    return Activation("abs", (-1.0,), (1.0,))


def apply_activation(op: Activation, x: torch.Tensor) -> torch.Tensor:
    """The function's value, differentiable.

    Args:
        op: an activation made by one of the constructors above.
        x: a batch (N, channels, ...) or (N, features).

    Raises:
        UsageError: when the function is unknown.
    """
    function = _FUNCTIONS.get(op.function)
    if function is None:
        raise UsageError("activation", f"unknown function {op.function!r}")
    return function(x, op.parameters)


def _leaky_relu(x: torch.Tensor, slopes: tuple[float, ...]) -> torch.Tensor:
    if len(slopes) == 1:
        return torch.where(x > 0, x, slopes[0] * x)
    weight = torch.tensor(slopes, dtype=x.dtype).reshape(1, -1, *(1 for _ in range(x.ndim - 2)))
    return torch.where(x > 0, x, weight * x)


def _elu(x: torch.Tensor, p: tuple[float, ...]) -> torch.Tensor:
    alpha, scale, input_scale = p
    # The clamp keeps the branch that is not taken from overflowing: its gradient would be inf · 0.
    return torch.where(x > 0, scale * x, scale * alpha * torch.expm1(input_scale * x.clamp(max=0)))


def _softplus(x: torch.Tensor, p: tuple[float, ...]) -> torch.Tensor:
    y = p[0] * x
    return torch.logaddexp(y, torch.zeros_like(y)) / p[0]


_FUNCTIONS: dict[str, Callable[[torch.Tensor, tuple[float, ...]], torch.Tensor]] = {
    "relu": lambda x, _: torch.relu(x),
    "leaky_relu": _leaky_relu,
    "elu": _elu,
    "celu": lambda x, p: torch.nn.functional.celu(x, p[0]),
    "silu": lambda x, _: torch.nn.functional.silu(x),
    "gelu": lambda x, _: torch.nn.functional.gelu(x),
    "gelu_tanh": lambda x, _: torch.nn.functional.gelu(x, approximate="tanh"),
    "tanh": lambda x, _: torch.tanh(x),
    "sigmoid": lambda x, _: torch.sigmoid(x),
    "log_sigmoid": lambda x, _: torch.nn.functional.logsigmoid(x),
    "softplus": _softplus,
    "hardtanh": lambda x, p: torch.clamp(x, p[0], p[1]),
    # torch's own hardsigmoid has a float32 1/6 in its float64 gradient.
    "hardswish": lambda x, _: x * torch.clamp(x + 3, 0, 6) / 6,
    "hardsigmoid": lambda x, _: torch.clamp(x + 3, 0, 6) / 6,
    "mish": lambda x, _: torch.nn.functional.mish(x),
    "abs": lambda x, _: torch.abs(x),
}


def _below_one(sup: float) -> float:
    return _down(1.0 - sup)


def _up(value: float) -> float:
    return math.nextafter(value, math.inf)


def _down(value: float) -> float:
    return math.nextafter(value, -math.inf)


def _finite(what: str, value: float) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise UsageError(what, f"it is {number}")
    return number
