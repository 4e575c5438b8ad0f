"""Matrices of a network's linear operations, on row-major flattened signals.

Every function returns the exact linear part of an operation (biases drop out of differences) as a
``scipy.sparse.csr_array`` in float64, of shape (output size, input size). Weights stored in float16,
bfloat16 or float32 are exact in float64.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import reduce

import numpy as np
import scipy.sparse as sp

from lipray.model import network as net
from lipray.verify.underflow import TINY

UNIT = 2.0**-53
"""Unit roundoff of float64."""


def operation_matrix(
    op: net.Op, weights: Mapping[str, np.ndarray], source: net.Shape, target: net.Shape
) -> sp.csr_array:
    """Matrix of a linear operation with one input.

    Args:
        op: the operation; not an activation, a max-pool, a softmax, or a join.
        weights: the arrays the operation names.
        source: shape of the input signal.
        target: shape of the output signal.

    Raises:
        TypeError: the operation is not linear with a single input.
    """
    match op:
        case net.Conv():
            return convolution(np.asarray(weights[op.weight], dtype=np.float64), op, source, target)
        case net.Dense():
            weight = sp.csr_array(np.asarray(weights[op.weight], dtype=np.float64))
            rows = math.prod(source[:-1])
            return weight if rows == 1 else sp.csr_array(sp.kron(sp.eye_array(rows), weight, format="csr"))
        case net.ChannelAffine():
            scale = np.asarray(weights[op.scale], dtype=np.float64)
            return sp.csr_array(sp.diags_array(np.repeat(scale, math.prod(source[1:]))))
        case net.Pad():
            axes = [_shift(n, m, low) for n, m, (low, _) in zip(source[1:], target[1:], op.padding, strict=True)]
            return _per_channel(source[0], axes)
        case net.AvgPool():
            return average_pool(op, weights, source, target)
        case net.AdaptiveAvgPool():
            return _per_channel(source[0], [_adaptive(n, m) for n, m in zip(source[1:], target[1:], strict=True)])
        case net.Reshape():
            return sp.csr_array(sp.eye_array(math.prod(source)))
        case _:
            raise TypeError(f"{type(op).__name__} is not a linear operation of one signal")


def convolution(weight: np.ndarray, op: net.Conv, source: net.Shape, target: net.Shape) -> sp.csr_array:
    """Matrix of a zero-padded, strided, dilated, grouped cross-correlation over one or two axes."""
    extent, out_extent = source[1:], target[1:]
    outputs, per_group = weight.shape[:2]
    out_per_group = outputs // op.groups
    positions, out_positions = math.prod(extent), math.prod(out_extent)
    out_channel = np.arange(outputs)[:, None, None]
    in_channel = (out_channel // out_per_group) * per_group + np.arange(per_group)[None, :, None]
    rows: list[np.ndarray] = []
    columns: list[np.ndarray] = []
    values: list[np.ndarray] = []
    for offset in itertools.product(*(range(k) for k in weight.shape[2:])):
        reads = [
            np.arange(out) * stride - pad[0] + o * dilation
            for out, stride, pad, o, dilation in zip(
                out_extent, op.stride, op.padding, offset, op.dilation, strict=True
            )
        ]
        inside = [np.flatnonzero((read >= 0) & (read < n)) for read, n in zip(reads, extent, strict=True)]
        if any(index.size == 0 for index in inside):
            continue
        here = _flat(inside, out_extent)
        there = _flat([read[index] for read, index in zip(reads, inside, strict=True)], extent)
        tap = np.moveaxis(weight, (0, 1), (-2, -1))[offset][:, :, None]
        shape = (outputs, per_group, here.size)
        rows.append(np.broadcast_to(out_channel * out_positions + here, shape).ravel())
        columns.append(np.broadcast_to(in_channel * positions + there, shape).ravel())
        values.append(np.broadcast_to(tap, shape).ravel())
    size = (outputs * out_positions, source[0] * positions)
    if not rows:
        return sp.csr_array(size)
    entries = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
    matrix = sp.csr_array(sp.coo_array(entries, shape=size))
    matrix.eliminate_zeros()
    return matrix


def average_pool(
    op: net.AvgPool, weights: Mapping[str, np.ndarray], source: net.Shape, target: net.Shape
) -> sp.csr_array:
    """Matrix of an average pool with its divisor, the same for every channel."""
    dimensions = len(op.kernel)
    kernel = net.Conv("", None, op.stride, op.padding, (1,) * dimensions)
    one = convolution(np.ones((1, 1, *op.kernel)), kernel, (1, *source[1:]), (1, *target[1:]))
    size = math.prod(target[1:])
    divisor = (
        np.full(size, float(math.prod(op.kernel)))
        if op.divisor is None
        else np.broadcast_to(np.asarray(weights[op.divisor], dtype=np.float64), target[1:]).ravel()
    )
    pooled = sp.csr_array(sp.diags_array(1.0 / divisor) @ one)
    return sp.csr_array(sp.kron(sp.eye_array(source[0]), pooled, format="csr"))


def pool_candidates(op: net.MaxPool, axis: int, source: int, target: int) -> tuple[np.ndarray, ...]:
    """For each tap of a max-pool's window along ``axis``: the index read at every output position.

    A tap outside the map never wins; it is replaced by the window's first tap inside the map, which
    leaves the maximum as it is.
    """
    kernel, stride, dilation = op.kernel[axis], op.stride[axis], op.dilation[axis]
    start = np.arange(target) * stride - op.padding[axis][0]
    taps = start[None, :] + np.arange(kernel)[:, None] * dilation
    inside = (taps >= 0) & (taps < source)
    if not inside.any(axis=0).all():
        raise ValueError("a max-pool window lies wholly outside its map")
    first = taps[inside.argmax(axis=0), np.arange(target)]
    return tuple(np.where(inside, taps, first))


def selection(shape: Sequence[int], axis: int, index: np.ndarray) -> sp.csr_array:
    """Matrix that reads positions ``index`` along spatial axis ``axis`` (0 is the first after channels)."""
    factors = [sp.eye_array(n) for n in shape]
    rows = np.arange(index.size)
    factors[axis + 1] = sp.csr_array((np.ones(index.size), (rows, index)), shape=(index.size, shape[axis + 1]))
    return sp.csr_array(reduce(lambda a, b: sp.kron(a, b, format="csr"), factors))


def concatenation(shapes: Sequence[net.Shape], axis: int) -> tuple[sp.csr_array, ...]:
    """One matrix per input that writes it to its place in the concatenation along ``axis``."""
    total = sum(shape[axis] for shape in shapes)
    matrices, start = [], 0
    for shape in shapes:
        target = (*shape[:axis], total, *shape[axis + 1 :])
        index = np.arange(math.prod(target)).reshape(target)
        rows = index[(slice(None),) * axis + (slice(start, start + shape[axis]),)].ravel()
        size = rows.size
        matrices.append(sp.csr_array((np.ones(size), (rows, np.arange(size))), shape=(index.size, size)))
        start += shape[axis]
    return tuple(matrices)


def norm_bound(matrix: sp.csr_array | np.ndarray) -> float:
    """Upper bound of the spectral norm of |matrix|: sqrt(norm_1 norm_inf) (Hölder), rounded outward."""
    absolute = abs(matrix)
    if absolute.size == 0:
        return 0.0
    columns, rows = float(np.max(absolute.sum(axis=0))), float(np.max(absolute.sum(axis=1)))
    slack = 1.0 + 4.0 * UNIT * (sum(matrix.shape) + 4)
    bound = math.sqrt(columns) * math.sqrt(rows) * slack
    if bound >= TINY or columns == 0.0:
        return bound
    # Roots and their slack are far above underflow: the product alone is rounded by it.
    return math.nextafter(math.sqrt(columns) * (math.sqrt(rows) * slack), math.inf)


def _flat(axes: Sequence[np.ndarray], extent: Sequence[int]) -> np.ndarray:
    grid = np.meshgrid(*axes, indexing="ij")
    return np.asarray(np.ravel_multi_index([axis.ravel() for axis in grid], tuple(extent)))


def _per_channel(channels: int, axes: Sequence[sp.csr_array]) -> sp.csr_array:
    return sp.csr_array(reduce(lambda a, b: sp.kron(a, b, format="csr"), [sp.eye_array(channels), *axes]))


def _shift(source: int, target: int, low: int) -> sp.csr_array:
    index = np.arange(source)
    kept = index[(index + low >= 0) & (index + low < target)]
    return sp.csr_array((np.ones(kept.size), (kept + low, kept)), shape=(target, source))


def _adaptive(source: int, target: int) -> sp.csr_array:
    matrix = np.zeros((target, source))
    for position in range(target):
        start, stop = position * source // target, -(-(position + 1) * source // target)
        matrix[position, start:stop] = 1.0 / (stop - start)
    return sp.csr_array(matrix)
