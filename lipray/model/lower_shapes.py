"""Rules for reshaping, slicing, padding, splitting and joining signals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)

from lipray.model.lower_linear import affine, broadcast, map_channels
from lipray.model.lowering import Builder, Rule, Signal
from lipray.model.network import AvgPool, Concat, Pad, Shape
from lipray.model.refusals import refuse_operation
from lipray.model.tracing import BATCH, Constant

_MIXES = "it mixes the inputs of a batch"
_FLATTEN = "Use x.flatten(1) or x.view(x.size(0), -1), and leave the batch axis first."

MAX_PERMUTED = 2048
"""Entries of the axes that are permuted, at most: the matrix that does it has this number squared."""


def batch_first(builder: Builder, shape: Shape) -> Shape:
    """A result's shape without the batch, which must still be its first axis."""
    if not shape or shape[0] != BATCH:
        raise builder.refuse(_MIXES, _FLATTEN)
    return shape[1:]


def axis_of(builder: Builder, x: Signal, dim: int) -> int:
    """The signal's axis for torch's ``dim``, which counts the batch."""
    axis = dim - 1 if dim >= 0 else dim + len(x.shape)
    if axis < 0:
        raise builder.refuse(_MIXES, "Keep operations off the batch axis.")
    return axis


def _view(builder: Builder, shape: Shape, x: Signal, *_: Any, **__: Any) -> Signal:
    return builder.reshape(x, batch_first(builder, shape))


def _same(_builder: Builder, _shape: Shape, x: Signal, *_: Any, **__: Any) -> Signal:
    return x


def _dropout(builder: Builder, _shape: Shape, x: Signal, _probability: float, train: bool) -> Signal:
    if train:
        raise refuse_operation(builder.layer, "native_dropout", None, builder.source)
    return x


def _cast(builder: Builder, _shape: Shape, x: Signal, *_: Any, dtype: Any = None, **__: Any) -> Signal:
    if dtype not in {None, torch.float64}:
        raise builder.refuse(f"it casts a signal to {dtype}", "Remove the cast, or cast to the type of x.")
    return x


def _permute(builder: Builder, shape: Shape, x: Signal, dims: Sequence[int]) -> Signal:
    """A permutation of axes: a reshape when only axes of size one move, else of channels by a 0/1 matrix."""
    rank = len(x.shape) + 1
    moved = [d % rank for d in dims]
    if moved[0] != 0:
        raise builder.refuse(_MIXES, _FLATTEN)
    long_axes = [d for d in moved if d > 0 and x.shape[d - 1] > 1]
    if long_axes == sorted(long_axes):
        return builder.reshape(x, shape[1:])
    last = max(i for i, d in enumerate(moved) if i != d)  # the axes behind it stay where they are
    mixed, kept = x.shape[:last], x.shape[last:]
    size = math.prod(mixed)
    if size > MAX_PERMUTED:
        raise builder.refuse(
            f"it reorders the axes of a signal of shape {x.shape}", "Keep the channels-first order throughout."
        )
    order = torch.arange(size).reshape(mixed).permute([d - 1 for d in moved[1 : last + 1]]).flatten()
    spatial = kept if len(kept) <= 2 else (math.prod(kept),)
    flat = builder.reshape(x, (size, *spatial))
    permuted = map_channels(builder, flat, torch.eye(size, dtype=torch.float64)[order], "permutation")
    return builder.reshape(permuted, shape[1:])


def _transpose(builder: Builder, shape: Shape, x: Signal, dim0: int, dim1: int) -> Signal:
    dims = list(range(len(x.shape) + 1))
    dims[dim0], dims[dim1] = dims[dim1], dims[dim0]
    return _permute(builder, shape, x, dims)


def _expand(builder: Builder, shape: Shape, x: Signal, *_: Any, **__: Any) -> Signal:
    return broadcast(builder, x, batch_first(builder, shape))


def crop(builder: Builder, x: Signal, axis: int, start: int, stop: int, step: int = 1) -> Signal:
    """Entries start, start + step, … below ``stop`` along an axis."""
    size = x.shape[axis]
    if (start, stop, step) == (0, size, 1):
        return x
    if axis == 0 and len(x.shape) <= 3:
        kept = torch.eye(size, dtype=torch.float64)[start:stop:step]
        return map_channels(builder, x, kept, "selection")
    # An axis after the first is spatial: crop by negative padding, then take every step-th entry.
    shape, axes = x.shape, len(x.shape) - 1
    if axes > 2:
        x = builder.reshape(x, (math.prod(shape[:axis]), size, math.prod(shape[axis + 1 :])))
        axis, axes = 1, 2
    padding = tuple((-start, stop - size) if a == axis - 1 else (0, 0) for a in range(axes))
    cropped = (*x.shape[:axis], stop - start, *x.shape[axis + 1 :])
    x = builder.add(Pad(padding), [x], cropped) if (start, stop) != (0, size) else x
    if step > 1:
        stride = tuple(step if a == axis - 1 else 1 for a in range(axes))
        count = len(range(start, stop, step))
        strided = (*x.shape[:axis], count, *x.shape[axis + 1 :])
        op = AvgPool((1,) * axes, stride, ((0, 0),) * axes)
        before = builder.nodes[x.index]
        if isinstance(before.op, AvgPool) and before.op == AvgPool(op.kernel, before.op.stride, op.padding):
            # x[:, :, ::2, ::2] is one subsampling, not two
            op = AvgPool(op.kernel, tuple(a * b for a, b in zip(stride, before.op.stride, strict=True)), op.padding)
            x = Signal(before.inputs[0], builder.nodes[before.inputs[0]].shape)
        x = builder.add(op, [x], strided)
    return x


def _slice(
    builder: Builder, shape: Shape, x: Signal, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Signal:
    sizes = (BATCH, *x.shape)
    first, last, step = slice(start, end, step).indices(sizes[dim])
    if dim % len(sizes) == 0 and (first, last, step) == (0, BATCH, 1):
        return x
    axis = axis_of(builder, x, dim)
    return builder.reshape(crop(builder, x, axis, first, max(first, last), step), shape[1:])


def _select(builder: Builder, shape: Shape, x: Signal, dim: int, index: int) -> Signal:
    axis = axis_of(builder, x, dim)
    index %= x.shape[axis]
    return builder.reshape(crop(builder, x, axis, index, index + 1), shape[1:])


def _split(builder: Builder, _shape: Shape, x: Signal, sizes: int | Sequence[int], dim: int = 0) -> list[Signal]:
    axis = axis_of(builder, x, dim)
    total = x.shape[axis]
    if isinstance(sizes, int):
        sizes = [min(sizes, total - start) for start in range(0, total, sizes)]
    parts, start = [], 0
    for size in sizes:
        part = crop(builder, x, axis, start, start + size)
        parts.append(builder.reshape(part, (*x.shape[:axis], size, *x.shape[axis + 1 :])))
        start += size
    return parts


def _chunk(builder: Builder, shape: Shape, x: Signal, chunks: int, dim: int = 0) -> list[Signal]:
    return _split(builder, shape, x, -(-x.shape[axis_of(builder, x, dim)] // chunks), dim)


def _unbind(builder: Builder, shape: Shape, x: Signal, dim: int = 0) -> list[Signal]:
    axis = axis_of(builder, x, dim)
    left = (*x.shape[:axis], *x.shape[axis + 1 :])
    return [builder.reshape(part, left) for part in _split(builder, shape, x, 1, dim)]


def pad_axis(builder: Builder, x: Signal, axis: int, before: int, after: int) -> Signal:
    """Zeros added before and after one axis; negative numbers crop."""
    if before == after == 0:
        return x
    if axis == 0 and len(x.shape) <= 3:
        return map_channels(
            builder, x, F.pad(torch.eye(x.shape[0], dtype=torch.float64), (0, 0, before, after)), "embedding"
        )
    if len(x.shape) > 3:
        raise builder.refuse(f"it pads a signal of shape {x.shape}")
    padding = tuple((before, after) if a == axis - 1 else (0, 0) for a in range(len(x.shape) - 1))
    return builder.add(Pad(padding), [x], (*x.shape[:axis], x.shape[axis] + before + after, *x.shape[axis + 1 :]))


def _pad(
    builder: Builder, shape: Shape, x: Signal, pad: Sequence[int], mode: str = "constant", value: Any = 0.0
) -> Signal:
    if mode != "constant":
        raise builder.refuse(f"padding mode {mode!r} is not implemented", "Use zero padding.")
    pairs = [(int(pad[i]), int(pad[i + 1])) for i in range(0, len(pad), 2)]
    if len(pairs) > len(x.shape) and any(pairs[len(x.shape)]):
        raise builder.refuse(_MIXES, "Keep operations off the batch axis.")
    by_axis = dict(zip(range(len(x.shape) - 1, -1, -1), pairs, strict=False))
    blank = torch.zeros(x.shape, dtype=torch.float64)
    y = x
    if 1 <= len(x.shape) - 1 <= 2:
        spatial = tuple(by_axis.get(axis, (0, 0)) for axis in range(1, len(x.shape)))
        if any(any(pair) for pair in spatial):
            grown = tuple(n + sum(pair) for n, pair in zip(x.shape[1:], spatial, strict=True))
            y = builder.add(Pad(spatial), [y], (x.shape[0], *grown))
        y = pad_axis(builder, y, 0, *by_axis.get(0, (0, 0)))
    else:
        for axis, (before, after) in by_axis.items():
            y = pad_axis(builder, y, axis, before, after)
    if value:
        border = F.pad(blank, [n for axis in sorted(by_axis, reverse=True) for n in by_axis[axis]], value=float(value))
        y = affine(builder, y, torch.ones((), dtype=torch.float64), border)
    return builder.reshape(y, shape[1:])


def _cat(builder: Builder, shape: Shape, parts: Sequence[Any], dim: int = 0) -> Signal:
    rank = len(shape) - 1
    axis = dim - 1 if dim >= 0 else dim + rank
    if axis < 0:
        raise builder.refuse(_MIXES, "Keep operations off the batch axis.")
    where = [i for i, part in enumerate(parts) if isinstance(part, Signal)]
    inner = parts[where[0] : where[-1] + 1]
    if any(not isinstance(part, Signal) for part in inner):
        raise builder.refuse("a constant is concatenated between two signals", "Put constants first or last.")
    joined = inner[0]
    if len(inner) > 1:
        size = sum(part.shape[axis] for part in inner)
        joined = builder.add(Concat(axis), inner, (*joined.shape[:axis], size, *joined.shape[axis + 1 :]))
    before, after = (_constants(group) for group in (parts[: where[0]], parts[where[-1] + 1 :]))
    sizes = [sum(c.shape[dim] for c in group) for group in (before, after)]
    joined = pad_axis(builder, joined, axis, sizes[0], sizes[1])
    if any(c.any() for c in (*before, *after)):
        blank = torch.zeros(BATCH, *inner[0].shape, dtype=torch.float64)
        blanks = [torch.zeros_like(blank).narrow(axis + 1, 0, 1).expand(*_with(blank.shape, axis + 1, part.shape[axis]))
                  for part in inner]  # fmt: skip
        joined = affine(
            builder, joined, torch.ones((), dtype=torch.float64), torch.cat([*before, *blanks, *after], dim=axis + 1)
        )
    return builder.reshape(joined, shape[1:])


def _with(shape: Sequence[int], axis: int, size: int) -> list[int]:
    return [size if a == axis else n for a, n in enumerate(shape)]


def _constants(parts: Sequence[Any]) -> list[torch.Tensor]:
    return [part.value.to(torch.float64) for part in parts if isinstance(part, Constant)]


def _stack(builder: Builder, shape: Shape, parts: Sequence[Any], dim: int = 0) -> Signal:
    axis = dim - 1 if dim >= 0 else dim + len(shape) - 1
    if axis < 0:
        raise builder.refuse(_MIXES, "Keep operations off the batch axis.")
    if not all(isinstance(part, Signal) for part in parts):
        raise builder.refuse("a constant is stacked with signals")
    rows = [builder.reshape(part, (*part.shape[:axis], 1, *part.shape[axis:])) for part in parts]
    return builder.add(Concat(axis), rows, shape[1:])


RULES: dict[str, Rule] = {
    **dict.fromkeys(
        ("view", "_unsafe_view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as"), _view
    ),
    **dict.fromkeys(("clone", "alias", "detach", "contiguous", "lift_fresh_copy"), _same),
    **dict.fromkeys(("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"), _dropout),
    "_to_copy": _cast,
    "permute": _permute,
    "transpose": _transpose,
    "expand": _expand,
    "slice": _slice,
    "select": _select,
    "split": _split,
    "split_with_sizes": _split,
    "chunk": _chunk,
    "unbind": _unbind,
    "pad": _pad,
    "constant_pad_nd": lambda builder, shape, x, pad, value=0.0: _pad(builder, shape, x, pad, "constant", value),
    "cat": _cat,
    "stack": _stack,
}
