"""A network on tori, level by level: each level in sector form at a batch of frequencies.

A level's input is what the finer level hands over, in parts: one part per map that crosses. Inside a level
every map is a combination of the parts and of the level's activations, v_j = Σ_k B_jk(ω) u_k, exactly as in
``lipray.verify.sector`` but with one small matrix per frequency. A strided convolution or average pool is
filtered at full rate on the finer torus; what a strided max-pool reads crosses in its s^D phases x[s i + φ], and
the maxima are taken on the coarser torus (taken at full rate, every entry would be a candidate of windows that
the stride then drops, which costs a factor of s^(D/2)). All that crosses does so together, so that its joint shape
matrix goes from torus to torus:  Q(ω') <- s^-D Σ over the aliases of ω' of Γ(ω).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from lipray.model import network as net
from lipray.verify.torus import symbols as sy
from lipray.verify.torus.layout import Torus
from lipray.verify.torus.symbols import Frequencies, Symbol

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

    Sources 0 .. P - 1 are the input's parts, P + j is layer j. ``waves[i]`` (F, phases) has e^{iω·φ} for an output that
    is handed on in its phases x[s i + φ], one part each; it is ``None`` for one handed on as it is.
    """

    parts: tuple[int, ...]
    layers: tuple[Layer, ...]
    outputs: tuple[Expression, ...]
    output_sizes: tuple[int, ...]
    waves: tuple[torch.Tensor | None, ...]
    count: int

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each activation layer."""
        return tuple(layer.size for layer in self.layers)


@dataclass(frozen=True, slots=True)
class Crossing:
    """A map handed from level to level: a node's, filtered, or for a strided max-pool one phase of what it reads."""

    node: int
    phase: tuple[int, ...] | None
    channels: int


def crossings(network: net.Network, torus: Torus) -> tuple[tuple[Crossing, ...], ...]:
    """Per level, what it hands on; the cut node's map for the last.

    A node of level m that reads level l < m crosses every level from l to m.
    """
    handed: list[list[Crossing]] = [[] for _ in torus.strides]
    for index, node in enumerate(network.nodes[: torus.cut + 1]):
        if node.inputs and torus.level[node.inputs[0]] < torus.level[index]:
            phases: list[tuple[int, ...] | None] = [None]
            if isinstance(node.op, net.MaxPool):
                phases = list(itertools.product(*(range(step) for step in node.op.stride)))
            for level in range(torus.level[node.inputs[0]], torus.level[index]):
                handed[level].extend(Crossing(index, phase, node.shape[0]) for phase in phases)
    handed[-1].append(Crossing(torus.cut, None, network.nodes[torus.cut].shape[0]))
    return tuple(tuple(crossing) for crossing in handed)


def lower_level(
    network: net.Network, torus: Torus, handed: tuple[tuple[Crossing, ...], ...], index: int, frequencies: Frequencies
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
        handed: tuple[tuple[Crossing, ...], ...],
        index: int,
        frequencies: Frequencies,
    ) -> None:
        self.network, self.torus, self.index = network, torus, index
        self.weights: Mapping[str, np.ndarray] = network.weights
        self.frequencies, self.sides = frequencies, torus.sides[index]
        self.count = int(frequencies[0].shape[0])
        self.entering = handed[index - 1] if index else (Crossing(0, None, network.nodes[0].shape[0]),)
        self.leaving = handed[index]
        self.layers: list[Layer] = []
        self.masks: dict[int, Expression] = {}
        self.values: dict[int, Expression] = {}

    def run(self) -> Level:
        parts = tuple(crossing.channels for crossing in self.entering)
        arrived = {crossing: {part: sy.identity(parts[part])} for part, crossing in enumerate(self.entering)}
        for i, node in enumerate(self.network.nodes[: self.torus.cut + 1]):
            if self.torus.level[i] != self.index:
                continue
            if i and self.torus.level[node.inputs[0]] == self.index:
                self.values[i] = self._after_crossing(i, node, self._filter(i, node))
            elif i and isinstance(node.op, net.MaxPool):
                phases = {c.phase: arrived[c] for c in self.entering if c.node == i and c.phase is not None}
                self.values[i] = self._maximum(i, node.op, node.shape[0], phases)
            else:
                # A node that crossed is filtered already; what is left to do happens at its own rate.
                self.values[i] = self._after_crossing(i, node, arrived[Crossing(i, None, node.shape[0])])
        outputs: list[Expression] = []
        sizes: list[int] = []
        waves: list[torch.Tensor | None] = []
        for key, group in itertools.groupby(self.leaving, lambda c: (c.node, c.phase is not None and c not in arrived)):
            crossings = list(group)
            phased = key[1]
            if phased:
                outputs.append(self._read(key[0], self.network.nodes[key[0]].inputs[0]))
                waves.append(torch.stack([self._wave(crossing) for crossing in crossings], dim=1))
                sizes.append(crossings[0].channels)
                continue
            for crossing in crossings:
                # What a later level reads passes through; the cut's own map may have arrived only filtered.
                passing = crossing in arrived and self.torus.level[crossing.node] != self.index
                outputs.append(arrived[crossing] if passing else self._leave(crossing.node))
                waves.append(None)
                sizes.append(crossing.channels)
        return Level(parts, tuple(self.layers), tuple(outputs), tuple(sizes), tuple(waves), self.count)

    def _leave(self, index: int) -> Expression:
        """What is handed on: the cut's map, or a filtered map."""
        if self.torus.level[index] == self.index:
            return self.values[index]
        return self._filter(index, self.network.nodes[index])

    def _wave(self, crossing: Crossing) -> torch.Tensor:
        """e^{iω·φ} of a phase, (F,)."""
        wave = torch.ones(self.count, dtype=torch.complex128)
        for axis, offset in enumerate(crossing.phase or ()):
            wave = wave * sy.turns(self.frequencies[axis], self.sides[axis], offset)
        return wave

    def _shifted(self, axis: int, offset: int, channels: int, value: Expression) -> Expression:
        if offset == 0:
            return value
        return self._apply(sy.shift(self.frequencies, self.sides, axis, offset, channels), value)

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
                whole = (0,) * len(op.kernel)
                return self._maximum(index, op, node.shape[0], {whole: inputs[0]})
            case net.ChannelAffine():
                factors = sy.on_device(self.weights[op.scale])
                return self._apply(sy.scaling(factors, rounded=True), inputs[0])
            case net.Pad():
                value = inputs[0]
                for axis, (before, _) in enumerate(op.padding):
                    value = self._shifted(axis, -before, node.shape[0], value)
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
        shares = 1.0 / np.asarray(self.weights[op.divisor], dtype=np.float64)
        if shares.min() == shares.max():
            share = sy.on_device(np.full(node.shape[0], shares.max()))
            return self._apply(sy.scaling(share, rounded=True), value)
        # Quotients are rounded: one more ulp on either side.
        low = np.full(node.shape[0], np.nextafter(shares.min(), -np.inf))
        high = np.full(node.shape[0], np.nextafter(shares.max(), np.inf))
        return self._between(f"{node.name}.divisor", low, high, value)

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

    def _maximum(
        self, index: int, op: net.MaxPool, channels: int, phases: dict[tuple[int, ...], Expression]
    ) -> Expression:
        """Separable tree of max(p, q) = q + relu(p - q) over the phases, one spatial axis after the other."""
        name = self.network.nodes[index].name
        for axis, (taps, step) in enumerate(zip(op.kernel, op.stride, strict=True)):
            reduced: dict[tuple[int, ...], Expression] = {}
            for rest in sorted({phase[1:] for phase in phases}):
                field = []
                for tap in range(taps):
                    # x[s i + offset] is phase (offset mod s) at position i + floor(offset / s).
                    turn, phase = divmod(op.dilation[axis] * tap - op.padding[axis][0], step)
                    field.append(self._shifted(axis, turn, channels, phases[phase, *rest]))
                label = f"{name}.max{axis}" + "".join(f".{offset}" for offset in rest if len(phases) > step)
                reduced[rest] = self._winner(label, field, channels)
            phases = reduced
        return phases[()]

    def _winner(self, label: str, field: list[Expression], channels: int) -> Expression:
        turn = 0
        while len(field) > 1:
            winners = []
            for p, q in zip(field[::2], field[1::2], strict=False):
                winner = self._slope(f"{label}.{turn}", self._sum([p, _scaled(-1.0, q)]), channels)
                winners.append(self._sum([q, winner]))
                turn += 1
            field = winners + (field[-1:] if len(field) % 2 else [])
        return field[0]


def _scaled(coefficient: float, value: Expression) -> Expression:
    return {source: sy.scale(coefficient, symbol) for source, symbol in value.items()}


def _factors(values: np.ndarray) -> Symbol:
    return sy.scaling(sy.on_device(values), rounded=False)


def _per_channel(bounds: tuple[float, ...], channels: int) -> np.ndarray:
    return np.full(channels, bounds[0]) if len(bounds) == 1 else np.asarray(bounds, dtype=np.float64)
