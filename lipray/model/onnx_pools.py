"""ONNX's pools and spatial means as operations of a ``Network``."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from lipray.model.network import AvgPool, MaxPool, Padding
from lipray.model.onnx_step import Converter, Step, extent, reshaped, spatial_rank, window
from lipray.model.onnx_values import LARGEST_SIGNAL, Signal, Value


def _pool_geometry(
    step: Step, x: Signal
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], Padding, Padding, tuple[int, ...]]:
    """Kernel, strides, dilations, the declared padding, the padding that ceil_mode reaches, and the output."""
    rank = spatial_rank(step, x)
    kernel = tuple(step.attributes["kernel_shape"])
    if len(kernel) != rank:
        raise step.refuse(f"its kernel {kernel} does not fit {rank} spatial axes")
    sizes = x.shape[2:]
    strides, dilations, padding = window(step, sizes, kernel)
    reached: list[tuple[int, int]] = []
    spatial: list[int] = []
    for size, pad, k, s, d in zip(sizes, padding, kernel, strides, dilations, strict=True):
        count = extent(size, pad, k, s, d)
        if step.attributes.get("ceil_mode", 0) and step.attributes.get("auto_pad", "NOTSET") == "NOTSET":
            count = -((d * (k - 1) + 1 - size - sum(pad)) // s) + 1
            # A window that would start in the padding after the map is left out.
            count -= (count - 1) * s >= size + pad[0]
        end = (count - 1) * s + d * (k - 1) + 1 - size - pad[0]
        reached.append((pad[0], max(end, pad[1])))
        spatial.append(count)
    if x.shape[1] * math.prod(kernel) * math.prod(spatial) > LARGEST_SIGNAL:
        raise step.refuse(f"its windows {kernel} at {spatial} positions are too many", "The file seems damaged.")
    return kernel, strides, dilations, padding, tuple(reached), tuple(spatial)


def _max_pool(step: Step) -> Value:
    x = step.signal()
    kernel, strides, dilations, declared, padding, spatial = _pool_geometry(step, x)
    if any(max(pair) > d * (k - 1) for pair, k, d in zip(declared, kernel, dilations, strict=True)):
        raise step.refuse("a window lies wholly in the padding", "Use a padding below the kernel's size.")
    return step.builder.emit(step.name, MaxPool(kernel, strides, padding, dilations), (x,), (x.shape[1], *spatial))


def _average_pool(step: Step) -> Value:
    """Windows over the border are divided by the entries that count, one divisor per output position."""
    x = step.signal()
    kernel, strides, dilations, declared, padding, spatial = _pool_geometry(step, x)
    if any(d != 1 for d in dilations):
        raise step.refuse("dilated average pooling is not supported")
    counts = np.ones(())
    include = bool(step.attributes.get("count_include_pad", 0))
    for size, pad, k, s, n in zip(x.shape[2:], declared, kernel, strides, spatial, strict=True):
        start = np.arange(n) * s - pad[0]
        low, high = (-pad[0], size + pad[1]) if include else (0, size)
        counts = np.multiply.outer(counts, np.minimum(start + k, high) - np.maximum(start, low))
    if counts.size == 0 or counts.min() <= 0:
        raise step.refuse("a window lies wholly in the padding", "Use a padding below the kernel's size.")
    whole = bool((counts == math.prod(kernel)).all())
    divisor = None if whole else step.builder.store(f"{step.name}.divisor", counts.astype(np.float64))
    op = AvgPool(kernel, strides, padding, divisor)
    return step.builder.emit(step.name, op, (x,), (x.shape[1], *spatial))


def _global_pool(step: Step) -> Value:
    x = step.signal()
    rank = spatial_rank(step, x)
    kernel, ones, none = x.shape[2:], (1,) * rank, ((0, 0),) * rank
    op = AvgPool(kernel, ones, none) if step.kind == "GlobalAveragePool" else MaxPool(kernel, ones, none, ones)
    return step.builder.emit(step.name, op, (x,), (x.shape[1], *ones))


def _reduce_mean(step: Step) -> Value:
    x = step.signal()
    axes = step.integers(1, "axes")
    if axes is None and step.attributes.get("noop_with_empty_axes", 0):
        return x
    rank = len(x.shape)
    chosen = set(range(rank)) if axes is None else {axis % rank for axis in axes}
    if not chosen <= set(range(2, rank)):
        raise step.refuse("it averages over other axes than the spatial ones")
    spatial_rank(step, x)
    kernel = tuple(size if axis in chosen else 1 for axis, size in enumerate(x.shape))[2:]
    ones, none = (1,) * (rank - 2), ((0, 0),) * (rank - 2)
    left = tuple(1 if axis in chosen else size for axis, size in enumerate(x.shape))[1:]
    y = step.builder.emit(step.name, AvgPool(kernel, ones, none), (x,), left)
    if step.attributes.get("keepdims", 1):
        return y
    return reshaped(step, y, tuple(size for axis, size in enumerate(y.shape) if axis not in chosen))


CONVERTERS: Mapping[str, Converter] = {
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool,
    "MaxPool": _max_pool,
    "ReduceMean": _reduce_mean,
}
"""Converters of the pools."""
