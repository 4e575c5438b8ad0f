"""The typed graph every stage works on: nodes with operations, and the arrays they name.

A ``Network`` is a value. Its nodes are in topological order, node 0 is the one input, the last node
is the one output. Shapes are those of a single input, without the batch dimension, channels first:
``(channels, height, width)``, ``(channels, length)`` or ``(features,)``. Operations name their arrays
by key, so that many networks (the tiles of one block) share one ``weights`` mapping.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import numpy as np

Shape = tuple[int, ...]
Padding = tuple[tuple[int, int], ...]
"""Zeros added before and after each spatial axis; negative numbers crop."""


@dataclass(frozen=True, slots=True)
class Input:
    """The network's input."""


@dataclass(frozen=True, slots=True)
class Conv:
    """Cross-correlation over one or two spatial axes; ``weight`` is (out, in / groups, k...)."""

    weight: str
    bias: str | None
    stride: tuple[int, ...]
    padding: Padding
    dilation: tuple[int, ...]
    groups: int = 1


@dataclass(frozen=True, slots=True)
class Dense:
    """y = weight x + bias along the last axis; ``weight`` is (out, in)."""

    weight: str
    bias: str | None


@dataclass(frozen=True, slots=True)
class ChannelAffine:
    """y = scale x + shift along axis 0 (batch norm in eval mode, input normalisation)."""

    scale: str
    shift: str


@dataclass(frozen=True, slots=True)
class Pad:
    """Zeros added around (or, negative, cropped from) the spatial axes, the axes after the first."""

    padding: Padding


@dataclass(frozen=True, slots=True)
class AvgPool:
    """Sum over each window divided by ``divisor``: an array over output positions, or the window's size."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: Padding
    divisor: str | None = None


@dataclass(frozen=True, slots=True)
class AdaptiveAvgPool:
    """torch's adaptive average pool where the windows are of unequal size; output size is the node's shape."""


@dataclass(frozen=True, slots=True)
class MaxPool:
    """Maximum over each window; positions outside the map never win (padding by minus infinity)."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: Padding
    dilation: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Activation:
    """An element-wise function whose difference quotients lie in [lower, upper], outward-rounded.

    ``lower`` and ``upper`` have length 1, or one entry per channel (axis 0). ``parameters`` are what
    ``lipray.model.activations`` needs to evaluate the function.
    """

    function: str
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    parameters: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Softmax:
    """Softmax (1/2-Lipschitz) or log-softmax (sqrt(K)-Lipschitz) over a vector; last node only."""

    log: bool


@dataclass(frozen=True, slots=True)
class Sum:
    """Sum of the inputs, of equal shapes, with fixed coefficients (residual join)."""

    coefficients: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Concat:
    """Concatenation of the inputs along ``axis``."""

    axis: int


@dataclass(frozen=True, slots=True)
class Reshape:
    """The same numbers in the same (row-major) order under the node's shape (flatten, view)."""


Op = (
    Input
    | Conv
    | Dense
    | ChannelAffine
    | Pad
    | AvgPool
    | AdaptiveAvgPool
    | MaxPool
    | Activation
    | Softmax
    | Sum
    | Concat
    | Reshape
)


@dataclass(frozen=True, slots=True)
class Node:
    """One signal: its qualified name, how it is made, from which earlier nodes, and its shape."""

    name: str
    op: Op
    inputs: tuple[int, ...]
    shape: Shape

    @property
    def size(self) -> int:
        """Number of entries of the signal."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Network:
    """A feed-forward network: nodes in topological order and the arrays their operations name."""

    nodes: tuple[Node, ...]
    weights: Mapping[str, np.ndarray] = field(repr=False)

    @property
    def input_shape(self) -> Shape:
        """Shape of the input, without the batch dimension."""
        return self.nodes[0].shape

    @property
    def output_shape(self) -> Shape:
        """Shape of the output, without the batch dimension."""
        return self.nodes[-1].shape

    @property
    def neurons(self) -> int:
        """Number of scalar activations."""
        return sum(node.size for node in self.nodes if isinstance(node.op, Activation))

    def content_hash(self) -> str:
        """SHA-256 over structure and the arrays that are used; names of nodes and keys do not count."""
        digest = hashlib.sha256(b"lipray network 1")
        seen: dict[str, str] = {}
        for node in self.nodes:
            digest.update(f"\n{type(node.op).__name__} {node.inputs} {node.shape}".encode())
            for item in fields(node.op):
                value = getattr(node.op, item.name)
                if item.name in ARRAY_FIELDS and value is not None:
                    if value not in seen:
                        seen[value] = _array_hash(self.weights[value])
                    value = seen[value]
                digest.update(f" {item.name}={value!r}".encode())
        return digest.hexdigest()


ARRAY_FIELDS = frozenset({"weight", "bias", "scale", "shift", "divisor"})
"""Fields of operations that are keys into ``Network.weights``."""


def array_keys(network: Network) -> tuple[str, ...]:
    """Keys of the arrays the network's operations use, each once, in order of first use."""
    keys: dict[str, None] = {}
    for node in network.nodes:
        for item in fields(node.op):
            value = getattr(node.op, item.name)
            if item.name in ARRAY_FIELDS and value is not None:
                keys[value] = None
    return tuple(keys)


def _array_hash(array: np.ndarray) -> str:
    plain = np.ascontiguousarray(array)
    digest = hashlib.sha256(f"{plain.dtype.str} {plain.shape}".encode())
    digest.update(plain.tobytes())
    return digest.hexdigest()
