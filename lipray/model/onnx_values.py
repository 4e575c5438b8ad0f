"""What flows through the ONNX import: constants, signals, and the network under construction.

ONNX has no GELU before opset 20 and no SiLU before 24: exporters write them as products of signals,
which are unbounded operations on their own. Every signal therefore also carries *readings*: its value
as a product of polynomials in an earlier signal or in a known function of one. A product that reads
as a known activation is replaced by it (see ``onnx_patterns``); a signal that has only readings and
no node of its own cannot be used otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from lipray.errors import NonFiniteWeightsError, UnsupportedLayerError
from lipray.model.network import Input, Network, Node, Op, Shape


@dataclass(frozen=True, slots=True)
class Leaf:
    """The value of a node of the network."""

    index: int


@dataclass(frozen=True, slots=True)
class Apply:
    """A known function of a polynomial."""

    function: str
    argument: Poly


@dataclass(frozen=True, slots=True)
class Poly:
    """Sum of ``coefficients[k] * term**k``."""

    term: Leaf | Apply
    coefficients: tuple[float, ...]


Reading = tuple[Poly, ...]
"""A product of polynomials in different terms."""

MAX_READINGS = 8
"""Readings kept per signal; the nearest come first."""


LARGEST_SIGNAL = 1 << 28
"""Entries of the largest signal, padded, or of all windows of a pool; beyond it a file is taken for damaged."""


@dataclass(frozen=True, slots=True)
class Signal:
    """A value that depends on the network's input.

    Attributes:
        name: Of the ONNX node that made it.
        shape: As in ONNX, with the batch dimension, which is 1.
        index: Its node in the network; None if it has no meaning but its readings.
        readings: Its value as products of polynomials.
        why: For a signal without node, why it cannot have one.
    """

    name: str
    shape: Shape
    index: int | None
    readings: tuple[Reading, ...]
    why: str = ""

    def node(self) -> int:
        """The index of its node.

        Raises:
            UnsupportedLayerError: It has none.
        """
        if self.index is None:
            raise UnsupportedLayerError(self.name, self.why, hint=PRODUCT_HINT)
        return self.index


PRODUCT_HINT = (
    "Products and powers of signals have no global Lipschitz constant; only those that spell GELU, SiLU, "
    "hard swish or Mish are recognised."
)


@dataclass(frozen=True, slots=True)
class Constant:
    """An array known at import time."""

    name: str
    array: np.ndarray


Value = Signal | Constant


@dataclass(slots=True)
class Builder:
    """The network under construction. Nodes are only appended; dead ones fall away in ``finish``."""

    nodes: list[Node] = field(default_factory=list)
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    spelt: bool = False
    """Whether an activation was put together from products."""

    def start(self, name: str, shape: Shape) -> Signal:
        """The input; ``shape`` is without the batch dimension."""
        self.nodes.append(Node(name, Input(), (), shape))
        return Signal(name, (1, *shape), 0, (_leaf(0),))

    def emit(self, name: str, op: Op, sources: Sequence[Signal], shape: Shape) -> Signal:
        """Append a node; ``shape`` is without the batch dimension.

        Raises:
            UnsupportedLayerError: The output is empty, or a source has no node.
        """
        if math.prod(shape) <= 0:
            raise UnsupportedLayerError(
                name, f"its output would have shape {shape}", hint="The input is too small for the network."
            )
        if math.prod(shape) > LARGEST_SIGNAL:
            raise UnsupportedLayerError(name, f"its output would have shape {shape}", hint="The file seems damaged.")
        inputs = tuple(source.node() for source in sources)
        self.nodes.append(Node(name, op, inputs, shape))
        index = len(self.nodes) - 1
        return Signal(name, (1, *shape), index, (_leaf(index),))

    def store(self, key: str, array: np.ndarray) -> str:
        """Keep an array under ``key``, or a similar key if that one holds something else.

        Raises:
            NonFiniteWeightsError: It has NaN or infinite entries.
        """
        if not np.isfinite(array).all():
            raise NonFiniteWeightsError(key, "it has NaN or infinite entries")
        plain = np.ascontiguousarray(array)
        free, count = key, 1
        while free in self.weights and not _same(self.weights[free], plain):
            count += 1
            free = f"{key}#{count}"
        self.weights[free] = plain
        return free

    def finish(self, output: Signal) -> Network:
        """The nodes that the output depends on, renumbered, and the arrays as they are."""
        last = output.node()
        needed = {0, last}
        for index in range(last, 0, -1):
            if index in needed:
                needed.update(self.nodes[index].inputs)
        place = {old: new for new, old in enumerate(sorted(needed))}
        nodes = tuple(
            replace(self.nodes[old], inputs=tuple(place[source] for source in self.nodes[old].inputs)) for old in place
        )
        return Network(nodes, dict(self.weights))


def _leaf(index: int) -> Reading:
    return (Poly(Leaf(index), (0.0, 1.0)),)


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
