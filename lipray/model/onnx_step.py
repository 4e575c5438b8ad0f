"""One ONNX node on its way into a ``Network``, and what the converters of all kinds share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lipray.errors import UnsupportedLayerError
from lipray.model.network import ChannelAffine, Padding, Reshape
from lipray.model.onnx_values import LARGEST_SIGNAL, Builder, Signal, Value


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

    def number(self, attribute: str, default: float) -> float:
        """An attribute, which ONNX stores in float32; so are the standard's defaults."""
        return float(np.float32(self.attributes.get(attribute, default)))

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
    if math.prod(size + sum(pair) for size, pair in zip(sizes, padding, strict=True)) > LARGEST_SIGNAL:
        raise step.refuse(f"its padding {padding} makes the map too large", "The file seems damaged.")
    return strides, dilations, padding


def extent(size: int, pad: tuple[int, int], kernel: int, stride: int, dilation: int) -> int:
    """Number of windows that fit along one axis."""
    return (size + sum(pad) - dilation * (kernel - 1) - 1) // stride + 1


def affine(step: Step, x: Signal, scale: np.ndarray, shift: np.ndarray, name: str = "") -> Signal:
    """Emit scale x + shift with one entry per channel (axis 1 of the ONNX shape)."""
    name = name or step.name
    keys = (step.builder.store(f"{name}.scale", scale), step.builder.store(f"{name}.shift", shift))
    return step.builder.emit(name, ChannelAffine(*keys), (x,), x.shape[1:])


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
