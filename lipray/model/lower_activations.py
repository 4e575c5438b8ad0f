"""Rules for element-wise functions, softmax, and the maximum of two signals."""

from __future__ import annotations

import math
from typing import Any

import torch

from lipray.errors import UsageError
from lipray.model import activations
from lipray.model.lower_linear import affine, combine
from lipray.model.lowering import Builder, Rule, Signal
from lipray.model.network import Activation, Shape, Softmax
from lipray.model.refusals import EVAL_HINT
from lipray.model.tracing import Constant


def _activate(builder: Builder, x: Signal, op: Activation) -> Signal:
    return builder.add(op, [x], x.shape)


def _plain(make: Any) -> Rule:
    """A rule for an activation whose parameters are the operation's remaining arguments."""

    def rule(builder: Builder, _shape: Shape, x: Signal, *args: float, **kwargs: Any) -> Signal:
        try:
            op = make(*args, **kwargs)
        except UsageError as error:
            raise builder.refuse(": ".join(map(str, error.args)), error.hint) from error
        return _activate(builder, x, op)

    return rule


def _prelu(builder: Builder, _shape: Shape, x: Signal, weight: Any) -> Signal:
    if not isinstance(weight, Constant):
        raise builder.refuse("its slopes depend on the input, so it multiplies two signals")
    return _activate(builder, x, activations.prelu([float(v) for v in weight.value.flatten()]))


def _rrelu(
    builder: Builder,
    _shape: Shape,
    x: Signal,
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
    **_: Any,
) -> Signal:
    if training:
        raise builder.refuse("its slope is random in training mode", EVAL_HINT)
    return _activate(builder, x, activations.leaky_relu((lower + upper) / 2))


def _clamp(builder: Builder, _shape: Shape, x: Signal, min: Any = None, max: Any = None) -> Signal:  # noqa: A002  (torch's names)
    low = -math.inf if min is None else _number(builder, min)
    high = math.inf if max is None else _number(builder, max)
    relu = low == 0 and high == math.inf
    return _activate(builder, x, activations.relu() if relu else activations.hardtanh(low, high))


def _clamp_max(builder: Builder, shape: Shape, x: Signal, max: Any) -> Signal:  # noqa: A002
    return _clamp(builder, shape, x, None, max)


def _threshold(builder: Builder, shape: Shape, x: Signal, threshold: float, value: float) -> Signal:
    if threshold != value:
        raise builder.refuse("it jumps at its threshold, so it is not Lipschitz", "Use value = threshold.")
    return _clamp(builder, shape, x, threshold)


def _number(builder: Builder, value: Any) -> float:
    if isinstance(value, Constant) and value.value.numel() == 1:
        return float(value.value)
    if isinstance(value, int | float):
        return float(value)
    raise builder.refuse("its limits are tensors", "Clamp to numbers.")


def _softmax(log: bool) -> Rule:
    def rule(builder: Builder, _shape: Shape, x: Signal, dim: int, *_: Any, **__: Any) -> Signal:
        if len(x.shape) != 1 or dim not in {1, -1}:
            raise builder.refuse(
                f"softmax over axis {dim} of a signal of shape {x.shape}; only a vector is supported",
                "Bound the part before the softmax.",
            )
        return builder.add(Softmax(log), [x], x.shape)

    return rule


def _extremum(sign: float) -> Rule:
    """max(a, b) = b + relu(a − b) and min(a, b) = b − relu(b − a)."""

    def rule(builder: Builder, shape: Shape, a: Any, b: Any) -> Signal:
        if not isinstance(b, Signal):
            a, b = b, a  # now a may be the constant
        if isinstance(a, Signal):
            difference = combine(builder, shape, a, b, sign, -sign)
            return combine(builder, shape, b, _activate(builder, difference, activations.relu()), 1.0, sign)
        constant = a.value if isinstance(a, Constant) else torch.tensor(float(a), dtype=torch.float64)
        excess = affine(builder, b, torch.tensor(sign, dtype=torch.float64), -sign * constant)
        rectified = _activate(builder, excess, activations.relu())
        return affine(builder, rectified, torch.tensor(sign, dtype=torch.float64), constant)

    return rule


def _relu6(builder: Builder, _shape: Shape, x: Signal) -> Signal:
    return _activate(builder, x, activations.hardtanh(0.0, 6.0))


def _gelu(builder: Builder, _shape: Shape, x: Signal, approximate: str = "none") -> Signal:
    return _activate(builder, x, activations.gelu(approximate))


def _leaky_relu(builder: Builder, _shape: Shape, x: Signal, negative_slope: float = 0.01) -> Signal:
    return _activate(builder, x, activations.leaky_relu(negative_slope))


RULES: dict[str, Rule] = {
    "relu": _plain(activations.relu),
    "relu6": _relu6,
    "leaky_relu": _leaky_relu,
    "prelu": _prelu,
    "_prelu_kernel": _prelu,
    "rrelu": _rrelu,
    "elu": _plain(activations.elu),
    "selu": _plain(activations.selu),
    "celu": _plain(activations.celu),
    "silu": _plain(activations.silu),
    "gelu": _gelu,
    "tanh": _plain(activations.tanh),
    "sigmoid": _plain(activations.sigmoid),
    "log_sigmoid": _plain(activations.log_sigmoid),
    "softplus": _plain(activations.softplus),
    "hardtanh": _plain(lambda min_val=-1.0, max_val=1.0: activations.hardtanh(min_val, max_val)),
    "hardswish": _plain(activations.hardswish),
    "hardsigmoid": _plain(activations.hardsigmoid),
    "mish": _plain(activations.mish),
    "abs": _plain(activations.absolute),
    "clamp": _clamp,
    "clamp_min": _clamp,
    "clamp_max": _clamp_max,
    "threshold": _threshold,
    "softmax": _softmax(log=False),
    "_softmax": _softmax(log=False),
    "log_softmax": _softmax(log=True),
    "_log_softmax": _softmax(log=True),
    "maximum": _extremum(1.0),
    "minimum": _extremum(-1.0),
}
