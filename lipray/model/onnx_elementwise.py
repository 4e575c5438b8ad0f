"""ONNX's element-wise operators: activations, constant scales and shifts, and joins of signals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from lipray.errors import UsageError
from lipray.model import activations
from lipray.model.network import Activation, Reshape, Sum
from lipray.model.onnx_patterns import apply_function, multiplied, recognise, scaled, summed
from lipray.model.onnx_step import Converter, Step, affine
from lipray.model.onnx_values import Reading, Signal, Value

_MAKERS: Mapping[str, Callable[[Step], Activation]] = {
    "Abs": lambda _: activations.absolute(),
    "Celu": lambda step: activations.celu(step.number("alpha", 1.0)),
    "Elu": lambda step: activations.elu(step.number("alpha", 1.0)),
    "Gelu": lambda step: activations.gelu(str(step.attributes.get("approximate", "none"))),
    "HardSwish": lambda _: activations.hardswish(),
    "LeakyRelu": lambda step: activations.leaky_relu(step.number("alpha", 0.01)),
    "Mish": lambda _: activations.mish(),
    "Relu": lambda _: activations.relu(),
    "Selu": lambda step: activations.elu(
        step.number("alpha", activations.SELU_ALPHA), step.number("gamma", activations.SELU_SCALE)
    ),
    "Sigmoid": lambda _: activations.sigmoid(),
    "Softplus": lambda _: activations.softplus(),
    "Tanh": lambda _: activations.tanh(),
}

_READ_AS = {"Sigmoid": "sigmoid", "Tanh": "tanh", "Softplus": "softplus"}
"""Activations that are also parts of spelt-out ones."""


def _activate(step: Step, x: Signal, make: Callable[[Step], Activation]) -> Signal:
    try:
        op = make(step)
    except UsageError as error:
        raise step.refuse(f"{error.args[1]}", error.hint) from None
    return step.builder.emit(step.name, op, (x,), x.shape[1:])


def _activation(step: Step) -> Value:
    x = step.signal()
    readings = apply_function(_READ_AS[step.kind], x.readings) if step.kind in _READ_AS else ()
    if x.index is None and readings:
        return _unmade(step, x, readings)
    return _known(_activate(step, x, _MAKERS[step.kind]), readings)


def _known(signal: Signal, readings: tuple[Reading, ...]) -> Signal:
    """A signal with its node and further readings; its own node stays the first of them."""
    return replace(signal, readings=(*signal.readings, *readings))


def _unmade(step: Step, like: Signal, readings: tuple[Reading, ...]) -> Value:
    """The activation that the readings spell, or a signal that waits for the rest of its formula."""
    found = recognise(readings)
    if found is not None:
        index, op = found
        node = step.builder.nodes[index]
        step.builder.spelt = True
        return step.builder.emit(step.name, op, (Signal(node.name, (1, *node.shape), index, ()),), like.shape[1:])
    why = like.why if like.index is None else f"{step.kind} of a signal is no function that lipray bounds"
    name = like.name if like.index is None else f"{step.name} ({step.kind})"
    return Signal(name, like.shape, None, readings, why)


def _erf(step: Step) -> Value:
    x = step.signal()
    return _unmade(step, x, apply_function("erf", x.readings))


def _pow(step: Step) -> Value:
    x = step.signal()
    exponent = step.required(1)
    if exponent.size != 1 or float(np.ravel(exponent)[0]) not in (1.0, 2.0, 3.0):
        raise step.refuse("a power of a signal is not globally Lipschitz")
    power = int(np.ravel(exponent)[0])
    if power == 1:
        return x
    readings = multiplied(x.readings, x.readings)
    if power == 3:
        readings = multiplied(readings, x.readings)
    return _unmade(step, x, readings)


def _prelu(step: Step) -> Value:
    x = step.signal()
    slopes = step.floats(1)
    channels = x.shape[1]
    aligned = (
        slopes.reshape((1,) * (len(x.shape) - slopes.ndim) + slopes.shape) if slopes.ndim <= len(x.shape) else None
    )
    if aligned is None or aligned.size not in (1, channels) or (aligned.size > 1 and aligned.shape[1] != channels):
        raise step.refuse(f"slopes of shape {slopes.shape} are neither one nor one per channel")
    return _activate(step, x, lambda _: activations.prelu([float(value) for value in aligned.ravel()]))


def _hard_sigmoid(step: Step) -> Value:
    """max(0, min(1, alpha x + beta)): a scale and a clamp."""
    x = step.signal()
    alpha, beta = step.number("alpha", 0.2), step.number("beta", 0.5)
    inner = _scale(step, x, np.asarray(alpha), np.asarray(beta), f"{step.name}.scale")
    sixth = abs(alpha * 6 - 1) < 1e-6 and beta == 0.5
    readings = apply_function("hardsigmoid", x.readings) if sixth else ()
    return _known(_activate(step, inner, lambda _: activations.hardtanh(0.0, 1.0)), readings)


def _bound(step: Step, position: int, attribute: str, absent: float) -> float:
    value = step.attributes.get(attribute) if step.opset < 11 else step.constant(position)
    if value is None or np.size(value) == 0:
        return absent
    if np.size(value) != 1:
        raise step.refuse(f"its {attribute} is not one number")
    return float(np.ravel(value)[0])


def _clip(step: Step) -> Value:
    low, high = _bound(step, 1, "min", -math.inf), _bound(step, 2, "max", math.inf)
    return _activate(step, step.signal(), lambda _: activations.hardtanh(low, high))


def _extremum(step: Step) -> Value:
    """Max or Min of one signal and one number: a clamp."""
    signals = [value for value in step.inputs if isinstance(value, Signal)]
    constants = [position for position, value in enumerate(step.inputs) if not isinstance(value, Signal)]
    if len(signals) != 1 or len(constants) != 1 or step.required(constants[0]).size != 1:
        raise step.refuse("only the extremum of one signal and one number is supported")
    number = float(np.ravel(step.required(constants[0]))[0])
    ends = (number, math.inf) if step.kind == "Max" else (-math.inf, number)
    return _activate(step, signals[0], lambda _: activations.hardtanh(*ends))


def _scale(step: Step, x: Signal, scale: np.ndarray, shift: np.ndarray, name: str = "") -> Signal:
    """Scale x + shift with constants that broadcast over x without growing it, in float64."""
    scale, shift = scale.astype(np.float64), shift.astype(np.float64)
    readings: tuple[Reading, ...] = ()
    if scale.size == shift.size == 1:
        readings = scaled(x.readings, float(scale.ravel()[0]), float(shift.ravel()[0]))
        if x.index is None:
            waiting = _unmade(step, x, readings)
            if isinstance(waiting, Signal):
                return waiting
    rank = len(x.shape)
    arrays = []
    for array in (scale, shift):
        if array.ndim > rank or np.broadcast_shapes(array.shape, x.shape) != x.shape:
            raise step.refuse(f"a constant of shape {array.shape} does not fit a signal of shape {x.shape}")
        arrays.append(array.reshape((1,) * (rank - array.ndim) + array.shape))
    if all(size == 1 for array in arrays for size in array.shape[2:]):
        full = [np.broadcast_to(array.reshape(-1), (x.shape[1],)) for array in arrays]
        return _known(affine(step, x, full[0], full[1], name), readings)
    # One number per entry, not per channel: per channel of the flattened signal.
    name = name or step.name
    flat = step.builder.emit(f"{name}.flat", Reshape(), (x,), (math.prod(x.shape),))
    full = [np.broadcast_to(array, x.shape).reshape(-1) for array in arrays]
    y = affine(step, flat, full[0], full[1], name)
    return step.builder.emit(f"{name}.shaped", Reshape(), (y,), x.shape[1:])


def _join(step: Step, sign: float) -> Value:
    a, b = step.signal(0), step.signal(1)
    readings = summed(a.readings, b.readings, sign)
    if a.index is None or b.index is None:
        if readings:
            return _unmade(step, a if a.index is None else b, readings)
        (a if a.index is None else b).node()
    if a.shape != b.shape:
        raise step.refuse(f"signals of shapes {a.shape} and {b.shape} are broadcast; only equal shapes are added")
    return _known(step.builder.emit(step.name, Sum((1.0, sign)), (a, b), a.shape[1:]), readings)


def _add(step: Step) -> Value:
    left, right = step.inputs
    if isinstance(left, Signal) and isinstance(right, Signal):
        return _join(step, 1.0)
    position = 1 if isinstance(left, Signal) else 0
    return _scale(step, step.signal(1 - position), np.ones(()), step.floats(position))


def _sub(step: Step) -> Value:
    left, right = step.inputs
    if isinstance(left, Signal) and isinstance(right, Signal):
        return _join(step, -1.0)
    if isinstance(left, Signal):
        return _scale(step, left, np.ones(()), -step.floats(1).astype(np.float64))
    return _scale(step, step.signal(1), -np.ones(()), step.floats(0))


def _mul(step: Step) -> Value:
    left, right = step.inputs
    if isinstance(left, Signal) and isinstance(right, Signal):
        if left.shape != right.shape:
            raise step.refuse("a product of two signals (a gate) has no global Lipschitz constant")
        waiting = replace(left, name=f"{step.name} ({step.kind})", index=None, why=_PRODUCT)
        return _unmade(step, waiting, multiplied(left.readings, right.readings))
    position = 1 if isinstance(left, Signal) else 0
    return _scale(step, step.signal(1 - position), step.floats(position), np.zeros(()))


_PRODUCT = "a product of two signals has no global Lipschitz constant"


def _div(step: Step) -> Value:
    if isinstance(step.inputs[1], Signal):
        raise step.refuse("dividing by a signal has no global Lipschitz constant")
    divisor = step.floats(1).astype(np.float64)
    if not divisor.all():
        raise step.refuse("it divides by zero")
    return _scale(step, step.signal(), 1.0 / divisor, np.zeros(()))


def _neg(step: Step) -> Value:
    return _scale(step, step.signal(), -np.ones(()), np.zeros(()))


def _sum(step: Step) -> Value:
    signals = [step.signal(position) for position in range(len(step.inputs))]
    if len(signals) == 1:
        return signals[0]
    if any(signal.shape != signals[0].shape for signal in signals):
        raise step.refuse("signals of unequal shapes are broadcast; only equal shapes are added")
    return step.builder.emit(step.name, Sum((1.0,) * len(signals)), signals, signals[0].shape[1:])


CONVERTERS: Mapping[str, Converter] = {
    **dict.fromkeys(_MAKERS, _activation),
    "Add": _add,
    "Clip": _clip,
    "Div": _div,
    "Erf": _erf,
    "HardSigmoid": _hard_sigmoid,
    "Max": _extremum,
    "Min": _extremum,
    "Mul": _mul,
    "Neg": _neg,
    "PRelu": _prelu,
    "Pow": _pow,
    "Sub": _sub,
    "Sum": _sum,
}
"""Converters of the operators that act on each entry alone, or add signals."""
