"""ONNX's convolutions, dense layers, batch norm, and the softmax at the end, as operations of a ``Network``."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lipray.model.network import Conv, Dense, Softmax
from lipray.model.onnx_step import Converter, Step, affine, extent, spatial_rank, window
from lipray.model.onnx_values import Constant, Signal, Value
from lipray.model.refusals import FAINT, underflows


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
    spatial = tuple(map(extent, x.shape[2:], padding, kernel, strides, dilations))
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
    alpha, beta = step.number("alpha", 1.0), step.number("beta", 1.0)
    if alpha != 1.0:
        folded = alpha * weight.astype(np.float64)
        if alpha != 0.0 and underflows(folded, weight):
            raise step.refuse(*FAINT)
        weight = folded
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
    epsilon = step.number("epsilon", 1e-5)
    if not (variance + epsilon > 0).all():
        raise step.refuse("a running variance is not positive", "The checkpoint is damaged.")
    scale = gamma / np.sqrt(variance + epsilon)
    if underflows(scale, gamma):
        raise step.refuse(*FAINT)
    return affine(step, x, scale, beta - mean * scale)


def _softmax(step: Step) -> Value:
    x = step.signal()
    axis = int(step.attributes.get("axis", 1 if step.opset < 13 else -1))
    if len(x.shape) != 2 or axis % 2 != 1:
        raise step.refuse("softmax is supported over the classes of the last layer only")
    return step.builder.emit(step.name, Softmax(log=step.kind == "LogSoftmax"), (x,), x.shape[1:])


CONVERTERS: Mapping[str, Converter] = {
    "BatchNormalization": _batch_norm,
    "Conv": _conv,
    "Gemm": _gemm,
    "LogSoftmax": _softmax,
    "MatMul": _matmul,
    "Softmax": _softmax,
}
"""Converters of the layers with weights, and of softmax."""
