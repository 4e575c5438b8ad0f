"""ONNX operators as operations of a ``Network``: convolutions, pools, dense layers and shapes.

Each converter takes one ``Step`` and returns its value. The element-wise operators are in
``onnx_elementwise``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lipray.errors import UnsupportedLayerError
from lipray.model.network import AvgPool, ChannelAffine, Concat, Conv, Dense, MaxPool, Pad, Padding, Reshape, Softmax
from lipray.model.onnx_values import Builder, Constant, Signal, Value


@dataclass(frozen=True, slots=True)
class Step:
    """One ONNX node with what its inputs are.

    Attributes:
        kind: Operator type.
        name: Name for errors and for the network's nodes.
        attributes: Attributes as Python values.
        inputs: Values; None for an optional input left out.
        opset: Version of the default operator set.
        builder: The network under construction.
    """

    kind: str
    name: str
    attributes: Mapping[str, Any]
    inputs: tuple[Value | None, ...]
    opset: int
    builder: Builder

    def refuse(self, why: str, hint: str = "") -> UnsupportedLayerError:
        """The error that says this node cannot be imported."""
        fallback = "Replace the layer, or bound the part of the network before or after it."
        return UnsupportedLayerError(f"{self.name} ({self.kind})", why, hint=hint or fallback)

    def signal(self, position: int = 0) -> Signal:
        """An input that must depend on the network's input."""
        value = self.inputs[position] if position < len(self.inputs) else None
        if not isinstance(value, Signal):
            raise self.refuse(f"input {position} is not computed from the network's input")
        return value

    def constant(self, position: int) -> np.ndarray | None:
        """An input that must be a constant; None where it is left out."""
        value = self.inputs[position] if position < len(self.inputs) else None
        if isinstance(value, Signal):
            raise self.refuse(f"input {position} depends on the network's input", "It must be a constant.")
        return None if value is None else value.array

    def required(self, position: int) -> np.ndarray:
        """A constant that may not be left out."""
        value = self.constant(position)
        if value is None:
            raise self.refuse(f"input {position} is missing")
        return value

    def floats(self, position: int) -> np.ndarray:
        """A constant of floating-point weights."""
        value = self.required(position)
        if not np.issubdtype(value.dtype, np.floating):
            raise self.refuse(f"input {position} has type {value.dtype}, not floating point")
        return value

    def integers(self, position: int, attribute: str) -> tuple[int, ...] | None:
        """Integers from an input or, in older operator sets, from the attribute of that name."""
        if attribute in self.attributes:
            given = self.attributes[attribute]
            return tuple(given) if isinstance(given, list | tuple) else (int(given),)
        value = self.constant(position)
        return None if value is None else tuple(int(entry) for entry in np.ravel(value))

    def key(self, position: int, role: str) -> str:
        """A key for the array of an input: its own name, or one made from the node's."""
        value = self.inputs[position]
        return value.name if value is not None and value.name else f"{self.name}.{role}"


Converter = Callable[[Step], Value]


def spatial_rank(step: Step, signal: Signal) -> int:
    """Number of spatial axes, 1 or 2."""
    rank = len(signal.shape) - 2
    if rank not in (1, 2):
        raise step.refuse(f"its input has {rank} spatial axes; one or two are supported")
    return rank


def window(
    step: Step, sizes: tuple[int, ...], kernel: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...], Padding]:
    """Strides, dilations and padding of a convolution or pool, automatic padding resolved."""
    rank = len(kernel)
    strides = tuple(step.attributes.get("strides", (1,) * rank))
    dilations = tuple(step.attributes.get("dilations", (1,) * rank))
    mode = step.attributes.get("auto_pad", "NOTSET")
    if mode == "NOTSET":
        pads = tuple(step.attributes.get("pads", (0,) * (2 * rank)))
        padding = tuple((pads[axis], pads[axis + rank]) for axis in range(rank)) if len(pads) == 2 * rank else ()
    elif mode == "VALID":
        padding = ((0, 0),) * rank
    elif mode in ("SAME_UPPER", "SAME_LOWER"):
        both: list[tuple[int, int]] = []
        for size, k, s, d in zip(sizes, kernel, strides, dilations, strict=True):
            total = max((math.ceil(size / s) - 1) * s + d * (k - 1) + 1 - size, 0)
            small, large = total // 2, total - total // 2
            both.append((small, large) if mode == "SAME_UPPER" else (large, small))
        padding = tuple(both)
    else:
        raise step.refuse(f"auto_pad {mode!r} is unknown")
    if not len(strides) == len(dilations) == len(padding) == len(sizes) == rank:
        raise step.refuse("its strides, dilations or pads do not fit the number of spatial axes")
    if min(strides) < 1 or min(dilations) < 1 or min(kernel) < 1 or min(min(pair) for pair in padding) < 0:
        raise step.refuse("its kernel, strides and dilations must be positive and its pads not negative")
    return strides, dilations, padding


def _out(size: int, pad: tuple[int, int], kernel: int, stride: int, dilation: int) -> int:
    return (size + sum(pad) - dilation * (kernel - 1) - 1) // stride + 1


def _conv(step: Step) -> Value:
    x = step.signal()
    rank = spatial_rank(step, x)
    weight = step.floats(1)
    groups = int(step.attributes.get("group", 1))
    if weight.ndim != rank + 2 or groups < 1 or weight.shape[1] * groups != x.shape[1] or weight.shape[0] % groups:
        raise step.refuse(f"a weight of shape {weight.shape} in {groups} group(s) does not fit {x.shape[1]} channels")
    kernel = weight.shape[2:]
    strides, dilations, padding = window(step, x.shape[2:], kernel)
    bias = step.floats(2) if step.constant(2) is not None else None
    if bias is not None and bias.shape != weight.shape[:1]:
        raise step.refuse(f"a bias of shape {bias.shape} does not fit {weight.shape[0]} channels")
    keys = (
        step.builder.store(step.key(1, "weight"), weight),
        None if bias is None else step.builder.store(step.key(2, "bias"), bias),
    )
    spatial = tuple(map(_out, x.shape[2:], padding, kernel, strides, dilations))
    op = Conv(keys[0], keys[1], strides, padding, dilations, groups)
    return step.builder.emit(step.name, op, (x,), (weight.shape[0], *spatial))


def _gemm(step: Step) -> Value:
    x = step.signal()
    if len(x.shape) != 2 or step.attributes.get("transA", 0):
        raise step.refuse("only a vector per input can be multiplied by the matrix")
    matrix = step.floats(1)
    return _dense(step, x, matrix if step.attributes.get("transB", 0) else matrix.T)


def _matmul(step: Step) -> Value:
    if isinstance(step.inputs[0], Constant):
        raise step.refuse("the constant matrix is on the left", "Write it on the right, as exporters do.")
    if isinstance(step.inputs[1], Signal):
        raise step.refuse("it multiplies two signals, which has no global Lipschitz constant (attention)")
    matrix = step.floats(1)
    if matrix.ndim != 2:
        raise step.refuse(f"the constant has {matrix.ndim} axes; a matrix is supported")
    return _dense(step, step.signal(), matrix.T)


def _dense(step: Step, x: Signal, weight: np.ndarray) -> Value:
    if weight.ndim != 2 or len(x.shape) < 2 or weight.shape[1] != x.shape[-1]:
        raise step.refuse(f"a matrix of shape {weight.shape} does not fit {x.shape[-1]} features")
    alpha, beta = float(step.attributes.get("alpha", 1.0)), float(step.attributes.get("beta", 1.0))
    if alpha != 1.0:
        weight = alpha * weight.astype(np.float64)
    bias = None
    if step.kind == "Gemm" and step.constant(2) is not None:
        given = step.floats(2)
        if given.size not in (1, weight.shape[0]) or (given.ndim > 0 and given.shape[-1] not in (1, weight.shape[0])):
            raise step.refuse(f"a bias of shape {given.shape} does not fit {weight.shape[0]} outputs")
        bias = np.broadcast_to(np.ravel(given), (weight.shape[0],))
        bias = bias if beta == 1.0 else beta * bias.astype(np.float64)
    key = step.builder.store(step.key(1, "weight"), weight)
    bias_key = None if bias is None else step.builder.store(step.key(2, "bias"), bias)
    return step.builder.emit(step.name, Dense(key, bias_key), (x,), (*x.shape[1:-1], weight.shape[0]))


def _batch_norm(step: Step) -> Value:
    """Scale and shift in float64: γ / sqrt(σ² + ε) and β − μ γ / sqrt(σ² + ε)."""
    x = step.signal()
    if step.attributes.get("training_mode", 0):
        raise step.refuse("batch norm in train mode depends on the other images", "Export the model in eval mode.")
    gamma, beta, mean, variance = (step.floats(position).astype(np.float64) for position in (1, 2, 3, 4))
    if len(x.shape) < 2 or any(entry.shape != x.shape[1:2] for entry in (gamma, beta, mean, variance)):
        raise step.refuse("its parameters do not have one entry per channel")
    epsilon = float(step.attributes.get("epsilon", 1e-5))
    if not (variance + epsilon > 0).all():
        raise step.refuse("a running variance is not positive", "The checkpoint is damaged.")
    scale = gamma / np.sqrt(variance + epsilon)
    return affine(step, x, scale, beta - mean * scale)


def affine(step: Step, x: Signal, scale: np.ndarray, shift: np.ndarray, name: str = "") -> Signal:
    """Emit scale x + shift with one entry per channel (axis 1 of the ONNX shape)."""
    name = name or step.name
    keys = (step.builder.store(f"{name}.scale", scale), step.builder.store(f"{name}.shift", shift))
    return step.builder.emit(name, ChannelAffine(*keys), (x,), x.shape[1:])


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
        count = _out(size, pad, k, s, d)
        if step.attributes.get("ceil_mode", 0) and step.attributes.get("auto_pad", "NOTSET") == "NOTSET":
            count = -((d * (k - 1) + 1 - size - sum(pad)) // s) + 1
            # A window that would start in the padding after the map is left out.
            count -= (count - 1) * s >= size + pad[0]
        end = (count - 1) * s + d * (k - 1) + 1 - size - pad[0]
        reached.append((pad[0], max(end, pad[1])))
        spatial.append(count)
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


def reshaped(step: Step, x: Signal, shape: tuple[int, ...]) -> Value:
    """The same numbers in the same order under an ONNX shape, whose first size must stay the batch's 1."""
    if math.prod(shape) != math.prod(x.shape) or min(shape, default=1) < 1:
        raise step.refuse(
            f"{x.shape} cannot become {shape}", "Export the model with batch size 1 or a free batch size."
        )
    if shape == x.shape:
        return x
    if len(shape) < 2 or shape[0] != 1:
        raise step.refuse(f"the shape {shape} loses the batch dimension")
    return step.builder.emit(step.name, Reshape(), (x,), shape[1:])


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


def _softmax(step: Step) -> Value:
    x = step.signal()
    axis = int(step.attributes.get("axis", 1 if step.opset < 13 else -1))
    if len(x.shape) != 2 or axis % 2 != 1:
        raise step.refuse("softmax is supported over the classes of the last layer only")
    return step.builder.emit(step.name, Softmax(log=step.kind == "LogSoftmax"), (x,), x.shape[1:])


def _same(step: Step) -> Value:
    return step.signal()


def _dropout(step: Step) -> Value:
    training = step.constant(2)
    if training is not None and bool(np.ravel(training)[0]):
        raise step.refuse("dropout in train mode is random", "Export the model in eval mode.")
    return step.signal()


CONVERTERS: Mapping[str, Converter] = {
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Concat": _concat,
    "Conv": _conv,
    "Dropout": _dropout,
    "Flatten": _flatten,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool,
    "Identity": _same,
    "LogSoftmax": _softmax,
    "MatMul": _matmul,
    "MaxPool": _max_pool,
    "Pad": _pad,
    "ReduceMean": _reduce_mean,
    "Reshape": _reshape,
    "Softmax": _softmax,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
"""Converters of the operators that are linear, pool or change shapes."""
