"""A network on tori, level by level: each level in sector form at a batch of frequencies.

A level's input is what the finer level hands over, in parts: one part per map that crosses. Inside a level
every map is a combination of the parts and of the level's activations, v_j = Σ_k B_jk(ω) u_k, exactly as in
``lipray.certify.sector`` but with one small matrix per frequency. A strided convolution or pool is
filtered at full rate on the finer torus, and every branch crosses together, so that the joint shape
matrix of all that crosses goes from torus to torus:  Q(ω') <- s^-D Σ over the aliases of ω' of Γ(ω).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from lipray.certify.frequency import symbols as sy
from lipray.certify.frequency.symbols import Frequencies, Symbol
from lipray.model import network as net
from lipray.partition.torus import Torus

Expression = dict[int, Symbol]
"""A map as a combination of signals: parts of the level's input first, then the level's activations."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One activation layer of a level, slopes in [0, 1]: its pre-activation over parts and earlier layers."""

    name: str
    size: int
    reads: Expression


@dataclass(frozen=True, slots=True)
class Level:
    """A level in sector form at ``count`` frequencies, and what it hands on.

    Sources 0 .. P - 1 are the input's parts, P + j is layer j.
    """

    parts: tuple[int, ...]
    layers: tuple[Layer, ...]
    outputs: tuple[Expression, ...]
    output_sizes: tuple[int, ...]
    count: int

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each activation layer."""
        return tuple(layer.size for layer in self.layers)


def crossings(network: net.Network, torus: Torus) -> tuple[tuple[int, ...], ...]:
    """Per level, the nodes whose (filtered) maps the level hands on; the cut node for the last.

    A node of level m that reads level l < m is filtered at level l and crosses every level from l to m.
    """
    last = len(torus.strides) - 1
    handed: list[list[int]] = [[] for _ in torus.strides]
    for index, node in enumerate(network.nodes[: torus.cut + 1]):
        if node.inputs and torus.level[node.inputs[0]] < torus.level[index]:
            for level in range(torus.level[node.inputs[0]], torus.level[index]):
                handed[level].append(index)
    handed[last].append(torus.cut)
    return tuple(tuple(nodes) for nodes in handed)


def lower_level(
    network: net.Network, torus: Torus, handed: tuple[tuple[int, ...], ...], index: int, frequencies: Frequencies
) -> Level:
    """One level's sector form at a batch of its frequencies.

    Args:
        network: the whole network.
        torus: its layout.
        handed: ``crossings(network, torus)``.
        index: which level.
        frequencies: per axis the indices of the frequencies on this level's torus.
    """
    return _Lowering(network, torus, handed, index, frequencies).run()


class _Lowering:
    def __init__(
        self,
        network: net.Network,
        torus: Torus,
        handed: tuple[tuple[int, ...], ...],
        index: int,
        frequencies: Frequencies,
    ) -> None:
        self.network, self.torus, self.index = network, torus, index
        self.weights: Mapping[str, np.ndarray] = network.weights
        self.frequencies, self.sides = frequencies, torus.sides[index]
        self.count = int(frequencies[0].shape[0])
        self.entering = handed[index - 1] if index else (0,)
        self.leaving = handed[index]
        self.layers: list[Layer] = []
        self.masks: dict[int, Expression] = {}
        self.values: dict[int, Expression] = {}

    def run(self) -> Level:
        parts = tuple(self.network.nodes[i].shape[0] for i in self.entering)
        arrived = {node: {part: sy.identity(parts[part])} for part, node in enumerate(self.entering)}
        outputs: dict[int, Expression] = {}
        for i, node in enumerate(self.network.nodes[: self.torus.cut + 1]):
            if self.torus.level[i] == self.index:
                if i == 0 or (node.inputs and self.torus.level[node.inputs[0]] < self.index):
                    # A node that crossed is filtered already; what is left to do happens at its own rate.
                    self.values[i] = self._after_crossing(i, node, arrived[i])
                else:
                    self.values[i] = self._node(i, node)
            elif i in self.leaving:
                outputs[i] = arrived[i] if i in arrived else self._filter(i, node)
        if self.index == len(self.torus.strides) - 1:
            outputs[self.torus.cut] = self.values[self.torus.cut]
        sizes = tuple(self.network.nodes[i].shape[0] for i in self.leaving)
        return Level(parts, tuple(self.layers), tuple(outputs[i] for i in self.leaving), sizes, self.count)

    def _node(self, index: int, node: net.Node) -> Expression:
        """A node whose input is on this level."""
        return self._after_crossing(index, node, self._filter(index, node))

    def _filter(self, index: int, node: net.Node) -> Expression:
        """All of a node but its stride, and but what happens after the stride."""
        op, inputs = node.op, [self._read(index, i) for i in node.inputs]
        match op:
            case net.Conv():
                weight = np.asarray(self.weights[op.weight])
                return self._apply(sy.convolution(op, weight, self.frequencies, self.sides), inputs[0])
            case net.AvgPool():
                return self._average(op, node.shape[0], inputs[0])
            case net.MaxPool():
                return self._maximum(index, op, node.shape[0], inputs[0])
            case net.ChannelAffine():
                factors = torch.from_numpy(np.array(self.weights[op.scale], dtype=np.float64))
                return self._apply(sy.scaling(factors, rounded=True), inputs[0])
            case net.Pad():
                value = inputs[0]
                for axis, (before, _) in enumerate(op.padding):
                    if before:
                        wave = sy.shift(self.frequencies, self.sides, axis, -before, node.shape[0])
                        value = self._apply(wave, value)
                return value
            case net.Activation():
                return self._activation(index, op, node, inputs[0])
            case net.Sum():
                return self._sum([_scaled(c, e) for c, e in zip(op.coefficients, inputs, strict=True)])
            case net.Concat():
                return self._concatenate(node, inputs)
            case _:
                raise TypeError(f"{type(op).__name__} has no place on a torus")

    def _after_crossing(self, index: int, node: net.Node, value: Expression) -> Expression:
        """Divide an average pool's sums by the number of entries each window has, a number in an interval."""
        op = node.op
        if not isinstance(op, net.AvgPool) or op.divisor is None or index == 0:
            return value
        divisors = np.asarray(self.weights[op.divisor], dtype=np.float64)
        low, high = (np.full(node.shape[0], 1.0 / float(bound)) for bound in (divisors.max(), divisors.min()))
        return self._between(f"{node.name}.divisor", np.nextafter(low, -1.0), np.nextafter(high, 9.0), value)

    def _read(self, reader: int, index: int) -> Expression:
        """A node's map as its reader sees it: through a window mask where the layout says so."""
        if reader not in self.torus.masked:
            return self.values[index]
        if index not in self.masks:
            name = f"{self.network.nodes[index].name}.mask"
            self.masks[index] = self._slope(name, self.values[index], self.network.nodes[index].shape[0])
        return self.masks[index]

    def _apply(self, outer: Symbol, value: Expression) -> Expression:
        return {source: sy.compose(outer, inner) for source, inner in value.items()}

    def _sum(self, values: list[Expression]) -> Expression:
        total: Expression = {}
        for value in values:
            for source, symbol in value.items():
                total[source] = sy.add(total[source], symbol) if source in total else symbol
        return total

    def _concatenate(self, node: net.Node, inputs: list[Expression]) -> Expression:
        placed, start = [], 0
        for source, value in zip(node.inputs, inputs, strict=True):
            placed.append({k: sy.place(symbol, node.shape[0], start, self.count) for k, symbol in value.items()})
            start += self.network.nodes[source].shape[0]
        return self._sum(placed)

    def _slope(self, name: str, value: Expression, size: int) -> Expression:
        """Push u = φ(v), slopes in [0, 1]."""
        if not value:
            return {}
        self.layers.append(Layer(name, size, value))
        source = len(self.entering) + len(self.layers) - 1
        return {source: sy.identity(size)}

    def _activation(self, index: int, op: net.Activation, node: net.Node, value: Expression) -> Expression:
        low, high = (_per_channel(bounds, node.shape[0]) for bounds in (op.lower, op.upper))
        if index in self.torus.widened:
            low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
        return self._between(node.name, low, high, value)

    def _between(self, name: str, low: np.ndarray, high: np.ndarray, value: Expression) -> Expression:
        """Write z = a v + (b - a) u for slopes in [a, b]."""
        width = high - low
        # The width is a rounded difference: one more ulp keeps [a, a + width] a cover of [a, b].
        width = np.where((low == 0.0) | (width == 0.0), width, np.nextafter(width, np.inf))
        terms = []
        if width.any():
            curved = self._slope(name, value, len(low))
            terms.append(curved if (width == 1.0).all() else self._apply(_factors(width), curved))
        if low.any():
            terms.append(self._apply(_factors(low), value))
        return self._sum(terms)

    def _average(self, op: net.AvgPool, channels: int, value: Expression) -> Expression:
        """Sum over each window at full rate, and divide where all windows count the same."""
        taps = op.kernel
        kernel = np.ones((channels, 1, *taps))
        dilation = (1,) * len(taps)
        as_conv = net.Conv("", None, op.stride, op.padding, dilation, channels)
        result = self._apply(sy.convolution(as_conv, kernel, self.frequencies, self.sides), value)
        if op.divisor is not None:
            return result
        share = torch.full((channels,), 1.0 / math.prod(taps), dtype=torch.float64)
        return self._apply(sy.scaling(share, rounded=True), result)

    def _maximum(self, index: int, op: net.MaxPool, channels: int, value: Expression) -> Expression:
        """Separable tree of max(p, q) = q + relu(p - q), one spatial axis after the other."""
        name = self.network.nodes[index].name
        for axis, taps in enumerate(op.kernel):
            offsets = [op.dilation[axis] * a - op.padding[axis][0] for a in range(taps)]
            field = [
                self._apply(sy.shift(self.frequencies, self.sides, axis, offset, channels), value) for offset in offsets
            ]
            turn = 0
            while len(field) > 1:
                winners = []
                for p, q in zip(field[::2], field[1::2], strict=False):
                    label = f"{name}.max{axis}.{turn}"
                    winner = self._slope(label, self._sum([p, _scaled(-1.0, q)]), channels)
                    winners.append(self._sum([q, winner]))
                    turn += 1
                field = winners + (field[-1:] if len(field) % 2 else [])
            value = field[0]
        return value


def _scaled(coefficient: float, value: Expression) -> Expression:
    return {source: sy.scale(coefficient, symbol) for source, symbol in value.items()}


def _factors(values: np.ndarray) -> Symbol:
    return sy.scaling(torch.from_numpy(values), rounded=False)


def _per_channel(bounds: tuple[float, ...], channels: int) -> np.ndarray:
    return np.full(channels, bounds[0]) if len(bounds) == 1 else np.asarray(bounds, dtype=np.float64)
