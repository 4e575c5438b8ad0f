"""ONNX's operators that move or drop entries without computing: shapes, padding, joins, identities."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from lipray.model.network import Concat, Pad
from lipray.model.onnx_step import Converter, Step, reshaped, spatial_rank
from lipray.model.onnx_values import Value


def _flatten(step: Step) -> Value:
    x = step.signal()
    axis = int(step.attributes.get("axis", 1))
    axis = axis + len(x.shape) if axis < 0 else axis
    return reshaped(step, x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))


def _reshape(step: Step) -> Value:
    x = step.signal()
    given = step.integers(1, "shape")
    if given is None:
        raise step.refuse("its shape is missing")
    keep = not step.attributes.get("allowzero", 0)
    if keep and any(size == 0 and axis >= len(x.shape) for axis, size in enumerate(given)):
        raise step.refuse(f"the shape {given} does not fit {x.shape}")
    sizes = [x.shape[axis] if size == 0 and keep else size for axis, size in enumerate(given)]
    if sizes.count(-1) == 1:
        known = -math.prod(sizes)
        if known > 0 and math.prod(x.shape) % known == 0:
            sizes[sizes.index(-1)] = math.prod(x.shape) // known
    return reshaped(step, x, tuple(sizes))


def _squeeze(step: Step) -> Value:
    x = step.signal()
    axes = step.integers(1, "axes")
    rank = len(x.shape)
    # Without axes all sizes of 1 go, the batch's too: reshaped then says so.
    chosen = {axis % rank for axis in axes} if axes is not None else {i for i, size in enumerate(x.shape) if size == 1}
    if any(x.shape[axis] != 1 for axis in chosen):
        raise step.refuse(f"axes {sorted(chosen)} of {x.shape} are not all of size 1")
    return reshaped(step, x, tuple(size for axis, size in enumerate(x.shape) if axis not in chosen))


def _unsqueeze(step: Step) -> Value:
    x = step.signal()
    axes = step.integers(1, "axes") or ()
    rank = len(x.shape) + len(axes)
    chosen = {axis % rank for axis in axes}
    rest = iter(x.shape)
    return reshaped(step, x, tuple(1 if axis in chosen else next(rest) for axis in range(rank)))


def _transpose(step: Step) -> Value:
    x = step.signal()
    order = tuple(step.attributes.get("perm", range(len(x.shape) - 1, -1, -1)))
    moved = [axis for axis in order if x.shape[axis] != 1]
    if moved != sorted(moved):
        raise step.refuse("it reorders axes", "Export the model in channels-first order.")
    return reshaped(step, x, tuple(x.shape[axis] for axis in order))


def _pad(step: Step) -> Value:
    x = step.signal()
    mode = step.attributes.get("mode", "constant")
    if mode != "constant":
        raise step.refuse(f"padding mode {mode!r} is not supported", "Only zero padding is.")
    value = step.attributes.get("value") if step.opset < 11 else step.constant(2)
    if value is not None and np.size(value) and float(np.ravel(value)[0]) != 0.0:
        raise step.refuse("it pads with another value than zero")
    given = step.integers(1, "pads" if step.opset < 11 else "")
    axes = step.integers(3, "")
    rank = len(x.shape)
    chosen = tuple(range(rank)) if axes is None else tuple(axis % rank for axis in axes)
    if given is None or len(given) != 2 * len(chosen):
        raise step.refuse("its pads do not fit the number of axes")
    pads = dict.fromkeys(range(rank), (0, 0))
    for position, axis in enumerate(chosen):
        pads[axis] = (given[position], given[position + len(chosen)])
    if any(pads[axis] != (0, 0) for axis in (0, 1)[:rank]):
        raise step.refuse("it pads the batch or the channels; only spatial axes are supported")
    padding = tuple(pads[axis] for axis in range(2, rank))
    if all(pair == (0, 0) for pair in padding):
        return x
    spatial_rank(step, x)
    spatial = tuple(size + sum(pair) for size, pair in zip(x.shape[2:], padding, strict=True))
    if any(size + min(pair) <= 0 for size, pair in zip(x.shape[2:], padding, strict=True)):
        raise step.refuse("it crops everything")
    return step.builder.emit(step.name, Pad(padding), (x,), (x.shape[1], *spatial))


def _concat(step: Step) -> Value:
    signals = [step.signal(position) for position in range(len(step.inputs))]
    rank = len(signals[0].shape)
    axis = int(step.attributes["axis"]) % rank
    if axis == 0:
        raise step.refuse("it joins along the batch")
    shapes = [signal.shape for signal in signals]
    if any(shape[:axis] + shape[axis + 1 :] != shapes[0][:axis] + shapes[0][axis + 1 :] for shape in shapes):
        raise step.refuse(f"shapes {shapes} cannot be joined along axis {axis}")
    if len(signals) == 1:
        return signals[0]
    total = sum(shape[axis] for shape in shapes)
    shape = (*shapes[0][:axis], total, *shapes[0][axis + 1 :])
    return step.builder.emit(step.name, Concat(axis - 1), signals, shape[1:])


def _same(step: Step) -> Value:
    return step.signal()


def _dropout(step: Step) -> Value:
    training = step.constant(2)
    if training is not None and bool(np.ravel(training)[0]):
        raise step.refuse("dropout in train mode is random", "Export the model in eval mode.")
    return step.signal()


CONVERTERS: Mapping[str, Converter] = {
    "Concat": _concat,
    "Dropout": _dropout,
    "Flatten": _flatten,
    "Identity": _same,
    "Pad": _pad,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
"""Converters of the operators on shapes."""
