"""Rules for pooling and for means, sums and maxima over axes of a signal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from lipray.model.lower_activations import RULES as ELEMENTWISE
from lipray.model.lower_linear import spread
from lipray.model.lower_shapes import axis_of
from lipray.model.lowering import UNUSABLE, Builder, Rule, Signal
from lipray.model.network import AdaptiveAvgPool, AvgPool, MaxPool, Padding, Shape, Sum


def _window(
    x: Signal, out: Shape, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Padding:
    """Zeros before and after each axis so that exactly ``out`` windows fit (ceil mode reaches beyond the padding)."""
    pairs = []
    for n, m, k, s, p, d in zip(x.shape[1:], out, kernel, stride, padding, dilation, strict=True):
        end = (m - 1) * s + d * (k - 1) + 1 - p  # one past the last position read
        pairs.append((int(p), max(int(p), int(end - n))))
    return tuple(pairs)


def _per_map(axes: int, rule: Rule) -> Rule:
    """A pool over ``axes`` axes; a signal without a channel axis is a map of one channel."""

    def wrapped(builder: Builder, shape: Shape, x: Signal, *args: Any, **kwargs: Any) -> Any:
        if len(x.shape) == axes:
            x = builder.reshape(x, (1, *x.shape))
            result = rule(builder, (shape[0], 1, *shape[1:]) if shape else (), x, *args, **kwargs)
            pooled, *rest = result if isinstance(result, tuple) else (result,)
            pooled = builder.reshape(pooled, pooled.shape[1:])
            return (pooled, *rest) if rest else pooled
        if len(x.shape) != axes + 1:
            raise builder.refuse(f"it pools a signal of shape {x.shape}")
        return rule(builder, shape, x, *args, **kwargs)

    return wrapped


def _avg_pool(
    builder: Builder,
    shape: Shape,
    x: Signal,
    kernel_size: Any,
    stride: Any = (),
    padding: Any = 0,
    _ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Signal:
    axes = len(x.shape) - 1
    kernel, padding = spread(kernel_size, axes), spread(padding, axes)
    stride = spread(stride, axes) if stride or stride == 0 else kernel
    out = shape[2:]
    pairs = _window(x, out, kernel, stride, padding, (1,) * axes)
    if divisor_override is not None:
        divisor = torch.full(out, float(divisor_override), dtype=torch.float64)
    else:
        # Positions that count: the map, or the map with its nominal padding (never what ceil mode adds).
        counts = []
        for n, m, k, s, p in zip(x.shape[1:], out, kernel, stride, padding, strict=True):
            low, high = (-p, n + p) if count_include_pad else (0, n)
            starts = [i * s - p for i in range(m)]
            counts.append(torch.tensor([min(a + k, high) - max(a, low) for a in starts], dtype=torch.float64))
        divisor = counts[0] if axes == 1 else counts[0][:, None] * counts[1][None, :]
    if divisor.eq(math.prod(kernel)).all():
        return builder.add(AvgPool(kernel, stride, pairs), [x], shape[1:])
    return builder.add(AvgPool(kernel, stride, pairs, builder.array(divisor, "divisor")), [x], shape[1:])


def _max_pool(
    builder: Builder,
    shape: Shape,
    x: Signal,
    kernel_size: Any,
    stride: Any = (),
    padding: Any = 0,
    dilation: Any = 1,
    _ceil_mode: bool = False,
) -> Signal:
    axes = len(x.shape) - 1
    kernel, padding, dilation = spread(kernel_size, axes), spread(padding, axes), spread(dilation, axes)
    stride = spread(stride, axes) if stride or stride == 0 else kernel
    pairs = _window(x, shape[2:], kernel, stride, padding, dilation)
    for n, m, k, s, p, d in zip(x.shape[1:], shape[2:], kernel, stride, padding, dilation, strict=True):
        if any(all(not 0 <= i * s - p + j * d < n for j in range(k)) for i in range(m)):
            raise builder.refuse("a pooling window lies wholly in the padding, so its maximum is minus infinity")
    return builder.add(MaxPool(kernel, stride, pairs, dilation), [x], shape[1:])


def _max_pool_pair(builder: Builder, shape: Shape, x: Signal, *args: Any, **kwargs: Any) -> tuple[Signal, object]:
    """Max pooling that also returns indices; the indices jump, so they may not be used."""
    del shape
    axes = len(x.shape) - 1
    blank = torch.zeros(1, *x.shape)
    function = torch.nn.functional.max_pool1d if axes == 1 else torch.nn.functional.max_pool2d
    return _max_pool(builder, (1, *function(blank, *args, **kwargs).shape[1:]), x, *args, **kwargs), UNUSABLE


def _adaptive_avg(builder: Builder, shape: Shape, x: Signal, *_: Any) -> Signal:
    out = shape[2:]
    sizes = x.shape[1:]
    if out == sizes:
        return x
    if all(n % m == 0 for n, m in zip(sizes, out, strict=True)):
        kernel = tuple(n // m for n, m in zip(sizes, out, strict=True))
        return builder.add(AvgPool(kernel, kernel, ((0, 0),) * len(out)), [x], shape[1:])
    return builder.add(AdaptiveAvgPool(), [x], shape[1:])


def _adaptive_max(builder: Builder, _shape: Shape, x: Signal, output_size: Any) -> tuple[Signal, object]:
    sizes = x.shape[1:]
    out = spread(output_size, len(sizes))
    if any(n % m for n, m in zip(sizes, out, strict=True)):
        raise builder.refuse(
            f"a map of {sizes} does not divide into {out} windows", "Choose an output size that divides the map."
        )
    kernel = tuple(n // m for n, m in zip(sizes, out, strict=True))
    op = MaxPool(kernel, kernel, ((0, 0),) * len(out), (1,) * len(out))
    return builder.add(op, [x], (x.shape[0], *out)), UNUSABLE


def _axes(builder: Builder, x: Signal, dim: Any) -> tuple[int, int]:
    """First and one past the last of the reduced axes, which must be neighbours."""
    if dim is None or (isinstance(dim, Sequence) and not dim):
        raise builder.refuse("it reduces over the batch", "Name the axes, such as x.mean((2, 3)).")
    axes = sorted({axis_of(builder, x, d) for d in ([dim] if isinstance(dim, int) else dim)})
    if axes != list(range(axes[0], axes[-1] + 1)):
        raise builder.refuse(f"it reduces over axes {axes}, which are not neighbours")
    return axes[0], axes[-1] + 1


def _blocks(builder: Builder, x: Signal, start: int, stop: int) -> tuple[Signal, tuple[int, ...]]:
    """The signal as a map, and the window on it that covers the axes from start to stop."""
    if start >= 1 and len(x.shape) <= 3:
        return x, tuple(x.shape[a] if start <= a < stop else 1 for a in range(1, len(x.shape)))
    before, middle, after = (math.prod(s) for s in (x.shape[:start], x.shape[start:stop], x.shape[stop:]))
    return builder.reshape(x, (before, middle, after)), (middle, 1)


def _reduce(builder: Builder, shape: Shape, x: Signal, dim: Any, kind: str) -> Signal:
    if not isinstance(dim, int) and set(dim or ()) == set():
        _axes(builder, x, None)
    start, stop = _axes(builder, x, dim)
    image, kernel = _blocks(builder, x, start, stop)
    out = (image.shape[0], *(n // k for n, k in zip(image.shape[1:], kernel, strict=True)))
    none = ((0, 0),) * len(kernel)
    if kind == "max":
        y = builder.add(MaxPool(kernel, kernel, none, (1,) * len(kernel)), [image], out)
    else:
        key = builder.array(torch.ones(out[1:], dtype=torch.float64), "divisor") if kind == "sum" else None
        y = builder.add(AvgPool(kernel, kernel, none, key), [image], out)
    return builder.reshape(y, shape[1:])


def _mean(builder: Builder, shape: Shape, x: Signal, dim: Any = None, *_: Any, **__: Any) -> Signal:
    return _reduce(builder, shape, x, dim, "mean")


def _sum(builder: Builder, shape: Shape, x: Signal, dim: Any = None, *_: Any, **__: Any) -> Signal:
    return _reduce(builder, shape, x, dim, "sum")


def _amax(builder: Builder, shape: Shape, x: Signal, dim: Any = (), *_: Any, **__: Any) -> Signal:
    return _reduce(builder, shape, x, dim, "max")


def _max(builder: Builder, shape: Shape, x: Any, other: Any = None, keepdim: bool = False) -> Any:
    """torch.max in its three forms: of all entries (refused), along an axis, and of two signals."""
    if isinstance(other, Signal) or not isinstance(x, Signal):
        return ELEMENTWISE["maximum"](builder, shape, x, other)
    if not isinstance(other, int):
        raise builder.refuse("it reduces over the batch", "Name the axes, such as x.amax((2, 3)).")
    axis = axis_of(builder, x, other)
    left = (1,) if keepdim else ()
    return _reduce(builder, (0, *x.shape[:axis], *left, *x.shape[axis + 1 :]), x, other, "max"), UNUSABLE


def _min(builder: Builder, shape: Shape, x: Any, other: Any = None, keepdim: bool = False) -> Any:
    if isinstance(other, Signal) or not isinstance(x, Signal):
        return ELEMENTWISE["minimum"](builder, shape, x, other)
    negative = builder.add(Sum((-1.0,)), [x], x.shape)
    result, _ = _max(builder, shape, negative, other, keepdim)
    return builder.add(Sum((-1.0,)), [result], result.shape), UNUSABLE


RULES: dict[str, Rule] = {
    "avg_pool1d": _per_map(1, _avg_pool),
    "avg_pool2d": _per_map(2, _avg_pool),
    "max_pool1d": _per_map(1, _max_pool),
    "max_pool2d": _per_map(2, _max_pool),
    "max_pool2d_with_indices": _per_map(2, _max_pool_pair),
    "max_pool1d_with_indices": _per_map(1, _max_pool_pair),
    "adaptive_avg_pool1d": _per_map(1, _adaptive_avg),
    "adaptive_avg_pool2d": _per_map(2, _adaptive_avg),
    "adaptive_max_pool1d": _per_map(1, _adaptive_max),
    "adaptive_max_pool2d": _per_map(2, _adaptive_max),
    "mean": _mean,
    "sum": _sum,
    "amax": _amax,
    "max": _max,
    "min": _min,
}
