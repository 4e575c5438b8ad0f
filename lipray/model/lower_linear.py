"""Rules for convolutions, dense layers, batch norm, and sums and multiples of signals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lipray.model.lowering import Builder, Rule, Signal, check_finite
from lipray.model.network import ChannelAffine, Conv, Dense, Shape, Sum
from lipray.model.refusals import EVAL_HINT, FAINT, underflows
from lipray.model.tracing import BATCH, Constant

_TWO_SIGNALS = "it multiplies two signals, so it is not globally Lipschitz"
_CUT = "Bound the parts before and after it on their own, or replace the gate."


def spread(values: int | Sequence[int], axes: int) -> tuple[int, ...]:
    """One number per spatial axis, from one number or a list."""
    items = [values] if isinstance(values, int) else list(values)
    return tuple(int(v) for v in (items * axes if len(items) == 1 else items))


def _conv(
    builder: Builder,
    shape: Shape,
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Signal:
    if not (isinstance(x, Signal) and isinstance(weight, Constant) and not isinstance(bias, Signal)):
        raise builder.refuse(f"its weight depends on the input: {_TWO_SIGNALS}", _CUT)
    kernel = weight.value.shape[2:]
    axes = len(kernel)
    if len(x.shape) != axes + 1:
        raise builder.refuse(f"it takes the batch for channels: the signal has shape {x.shape}", "Add a channel axis.")
    dilation = spread(dilation, axes)
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        pairs = tuple((total // 2, total - total // 2) for total in totals)
    else:
        pairs = tuple((p, p) for p in spread(0 if padding == "valid" else padding, axes))
    op = Conv(
        builder.array(weight),
        None if bias is None else builder.array(bias, "bias"),
        spread(stride, axes),
        pairs,
        dilation,
        int(groups),
    )
    return builder.add(op, [x], shape[1:])


def _linear(builder: Builder, shape: Shape, x: Any, weight: Any, bias: Any = None) -> Signal:
    if not (isinstance(x, Signal) and isinstance(weight, Constant) and not isinstance(bias, Signal)):
        raise builder.refuse(f"its weight depends on the input: {_TWO_SIGNALS}", _CUT)
    key = builder.array(weight)
    return builder.add(Dense(key, None if bias is None else builder.array(bias, "bias")), [x], shape[1:])


def _matmul(builder: Builder, shape: Shape, a: Any, b: Any) -> Signal:
    if isinstance(a, Signal) and isinstance(b, Signal):
        raise builder.refuse(_TWO_SIGNALS, _CUT)
    if isinstance(a, Signal) and b.value.ndim == 2:
        return builder.add(Dense(builder.array(b.value.T), None), [a], (*a.shape[:-1], b.value.shape[1]))
    if isinstance(a, Signal) and b.value.ndim == 1:
        column = builder.add(Dense(builder.array(b.value[None]), None), [a], (*a.shape[:-1], 1))
        return builder.reshape(column, shape[1:])
    if isinstance(b, Signal) and a.value.ndim == 2 and len(b.shape) == 2:
        return map_channels(builder, b, a.value)
    raise builder.refuse("lipray cannot express this matrix product", "Use torch.nn.Linear or a convolution.")


def _addmm(builder: Builder, shape: Shape, bias: Any, a: Any, b: Any, *, beta: float = 1, alpha: float = 1) -> Signal:
    product = _matmul(builder, shape, a, b)
    return _add(builder, shape, _scaled(builder, product, alpha), bias, alpha=beta)


def map_channels(builder: Builder, x: Signal, matrix: torch.Tensor, suffix: str = "weight") -> Signal:
    """The linear map ``matrix`` (out, in) along axis 0, the same at every position."""
    key = builder.array(
        matrix if len(x.shape) == 1 else matrix.reshape(*matrix.shape, *(1,) * (len(x.shape) - 1)), suffix
    )
    if len(x.shape) == 1:
        return builder.add(Dense(key, None), [x], matrix.shape[:1])
    axes = len(x.shape) - 1
    if axes > 2:
        raise builder.refuse(f"a signal of shape {x.shape} has more than two spatial axes")
    op = Conv(key, None, (1,) * axes, ((0, 0),) * axes, (1,) * axes)
    return builder.add(op, [x], (matrix.shape[0], *x.shape[1:]))


def _batch_norm(
    builder: Builder,
    _shape: Shape,
    x: Any,
    weight: Any,
    bias: Any,
    mean: Any,
    var: Any,
    training: bool,
    _momentum: float,
    eps: float,
    *_: Any,
) -> Signal:
    if training or not (isinstance(mean, Constant) and isinstance(var, Constant)):
        raise builder.refuse("BatchNorm uses the statistics of the batch", EVAL_HINT)
    gamma = torch.ones_like(var.value) if weight is None else weight.value
    beta = torch.zeros_like(var.value) if bias is None else bias.value
    scale = gamma / torch.sqrt(var.value + eps)
    check_finite(f"{builder.layer}.running_var (1/sqrt(var + eps))", scale.numpy())
    if underflows(scale.numpy(), gamma.numpy()):
        raise builder.refuse(*FAINT)
    shift = beta - mean.value * scale
    op = ChannelAffine(builder.array(scale, "scale"), builder.array(shift, "shift"))
    return builder.add(op, [x], x.shape)


def _native_batch_norm(builder: Builder, shape: Shape, *args: Any) -> tuple[Signal, None, None]:
    return _batch_norm(builder, shape, *args[:5], False, *args[5:]), None, None


def _number(value: Any) -> torch.Tensor:
    """A constant operand as a float64 tensor."""
    if isinstance(value, Constant):
        return value.value.to(torch.float64)
    return torch.tensor(value, dtype=torch.float64)


def _per_input(builder: Builder, x: Signal, constant: torch.Tensor) -> torch.Tensor:
    """A constant without its batch axis; it must be the same for every input of the batch."""
    if constant.ndim <= len(x.shape):
        return constant
    if constant.ndim > len(x.shape) + 1 or constant.shape[0] not in {1, BATCH} or (constant != constant[:1]).any():
        raise builder.refuse(
            f"a constant of shape {tuple(constant.shape)} gives each input of the batch another value",
            "Constants must broadcast over the batch.",
        )
    return constant[0]


def affine(builder: Builder, x: Signal, scale: torch.Tensor, shift: torch.Tensor, *, rounded: bool = False) -> Signal:
    """scale·x + shift with constants that broadcast against the signal, in the simplest operation that holds it.

    ``rounded``: the scale is a quotient. A ``ChannelAffine``'s numbers are known to be rounded, a sum's are exact.
    """
    scale, shift = _per_input(builder, x, scale), _per_input(builder, x, shift)
    wanted = np.broadcast_shapes(x.shape, tuple(scale.shape), tuple(shift.shape))
    x = broadcast(builder, x, wanted)
    uniform = bool((scale == scale.flatten()[0]).all())
    exact = not rounded or abs(math.frexp(float(scale.flatten()[0]))[0]) == 0.5
    if uniform and exact and not shift.any():
        factor = float(scale.flatten()[0])
        check_finite(f"{builder.layer}.scale", scale.flatten()[:1].numpy())
        return x if factor == 1 else builder.add(Sum((factor,)), [x], x.shape)
    rank = len(x.shape)
    per_channel = all(c.ndim < rank or c.shape[1:].numel() == 1 for c in (scale, shift)) and all(
        c.ndim == rank or c.numel() == 1 for c in (scale, shift)
    )
    shape = x.shape[:1] if per_channel else x.shape
    full = [c.reshape(c.shape[0] if c.ndim == rank else 1) if per_channel else c for c in (scale, shift)]
    arrays = [torch.broadcast_to(c, shape).flatten() for c in full]
    op = ChannelAffine(builder.array(arrays[0], "scale"), builder.array(arrays[1], "shift"))
    if per_channel:
        return builder.add(op, [x], x.shape)
    flat = builder.reshape(x, (math.prod(x.shape),))
    return builder.reshape(builder.add(op, [flat], flat.shape), x.shape)


def broadcast(builder: Builder, x: Signal, shape: Sequence[int]) -> Signal:
    """The signal repeated along axes of size one until it has the given shape, by dense maps of ones."""
    shape = tuple(int(n) for n in shape)
    if x.shape == shape:
        return x
    x = builder.reshape(x, (1,) * (len(shape) - len(x.shape)) + x.shape)
    for axis, (have, want) in enumerate(zip(x.shape, shape, strict=True)):
        if have == want:
            continue
        current = x.shape
        before, after = math.prod(current[:axis]), math.prod(current[axis + 1 :])
        ones = torch.ones(want, 1, dtype=torch.float64)
        if after == 1:
            x = builder.reshape(x, (before, 1))
            x = builder.add(Dense(builder.array(ones, "ones"), None), [x], (before, want))
        elif before == 1:
            x = map_channels(builder, builder.reshape(x, (1, *current[axis + 1 :])), ones, "ones")
        else:
            raise builder.refuse(f"a signal of shape {current} is repeated along its axis {axis}")
        x = builder.reshape(x, (*current[:axis], want, *current[axis + 1 :]))
    return x


def combine(builder: Builder, shape: Shape, a: Signal, b: Signal, alpha: float, beta: float) -> Signal:
    """alpha·a + beta·b for two signals."""
    a, b = (broadcast(builder, s, shape[1:]) for s in (a, b))
    return builder.add(Sum((float(alpha), float(beta))), [a, b], shape[1:])


def _one() -> torch.Tensor:
    return torch.ones((), dtype=torch.float64)


def _add(builder: Builder, shape: Shape, a: Any, b: Any, *, alpha: float = 1) -> Signal:
    if isinstance(a, Signal) and isinstance(b, Signal):
        return combine(builder, shape, a, b, 1.0, alpha)
    if isinstance(a, Signal):
        return affine(builder, a, _one(), alpha * _number(b))
    return affine(builder, b, alpha * _one(), _number(a))


def _sub(builder: Builder, shape: Shape, a: Any, b: Any, *, alpha: float = 1) -> Signal:
    return _add(builder, shape, a, b, alpha=-alpha)


def _rsub(builder: Builder, shape: Shape, a: Any, b: Any, alpha: float = 1) -> Signal:
    return _add(builder, shape, b, a, alpha=-alpha)


def _mul(builder: Builder, _shape: Shape, a: Any, b: Any) -> Signal:
    if isinstance(a, Signal) and isinstance(b, Signal):
        raise builder.refuse(f"a gate or product: {_TWO_SIGNALS}", _CUT)
    signal, constant = (a, b) if isinstance(a, Signal) else (b, a)
    return affine(builder, signal, _number(constant), torch.zeros((), dtype=torch.float64))


def _div(builder: Builder, _shape: Shape, a: Any, b: Any, *, rounding_mode: str | None = None) -> Signal:
    if isinstance(b, Signal):
        raise builder.refuse("it divides by a signal, so it is not globally Lipschitz", _CUT)
    if rounding_mode is not None:
        raise builder.refuse("rounding jumps, so it is not Lipschitz")
    divisor = _number(b)
    check_finite(f"{builder.layer}.divisor", (1 / divisor).numpy())
    return affine(builder, a, 1 / divisor, torch.zeros((), dtype=torch.float64), rounded=True)


def _scaled(builder: Builder, x: Signal, factor: float) -> Signal:
    return x if factor == 1 else builder.add(Sum((float(factor),)), [x], x.shape)


def _neg(builder: Builder, _shape: Shape, x: Signal) -> Signal:
    return _scaled(builder, x, -1.0)


RULES: dict[str, Rule] = {
    "conv1d": _conv,
    "conv2d": _conv,
    "linear": _linear,
    "matmul": _matmul,
    "mm": _matmul,
    "bmm": _matmul,
    "addmm": _addmm,
    "batch_norm": _batch_norm,
    "_native_batch_norm_legit_no_training": _native_batch_norm,
    "add": _add,
    "sub": _sub,
    "rsub": _rsub,
    "mul": _mul,
    "div": _div,
    "neg": _neg,
}
