"""What carrying a network's maps on tori will take: frequencies, memory and time, and where to leave the torus.

The structure of ``lipray.certify.frequency`` is followed symbolically, level by level: which layers a level has,
which blocks of its factor fill, and how many operations and entries each frequency costs. The rates are measured on
two cores and good to a factor of a few; no bound depends on them.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from lipray.model.network import Activation, AvgPool, Conv, MaxPool, Network
from lipray.verify.torus.layout import PIECE_ENTRIES, Torus

Phase = tuple[int, ...]

COMPLEX = 16
"""Bytes of a complex128."""
RATE = 2.7e10
"""Real operations per second of one core inside the recursion, whose matrices are small (measured)."""
LEVEL_SECONDS = 2e-3
"""Seconds that every level costs in every pass, however few its frequencies are."""
CLOSED_FORM_PASSES = 2.0
"""Passes over all frequencies that the closed form takes, its multipliers chosen on some beforehand."""
SAMPLED_GROUPS = 6
ROUND_PASSES = 2.2
"""What a step of the optimiser costs, in passes."""
ROUNDS = 150
"""Steps of an optimiser without a limit, for the estimate only."""
COPIES = 1.2
"""Copies of a level's factor, temporaries counted, while a sweep is in it (measured)."""


@dataclass(frozen=True, slots=True)
class TorusCost:
    """One network on tori: ``groups`` of frequencies, and per group bytes and operations.

    ``sweep_memory`` is what one group takes on its way through all levels, ``memory`` the same for a gradient that
    works the factors out again on its way back, ``kept_memory`` for one that keeps them. ``operations`` are real ones,
    of one pass. ``widths`` are the channels of every level's activation layers.
    """

    groups: int
    widths: tuple[tuple[int, ...], ...]
    sweep_memory: int
    memory: int
    kept_memory: int
    operations: float

    @property
    def pass_seconds(self) -> float:
        """One pass over all frequencies on one core."""
        return self.groups * self.operations / RATE + len(self.widths) * LEVEL_SECONDS

    @property
    def closed_form_seconds(self) -> float:
        """The closed form and its proof on one core."""
        return (CLOSED_FORM_PASSES + min(1.0, SAMPLED_GROUPS / self.groups)) * self.pass_seconds

    @property
    def round_seconds(self) -> float:
        """One step of the optimiser on one core."""
        return ROUND_PASSES * self.pass_seconds


def torus_cost(network: Network, torus: Torus) -> TorusCost:
    """Follow one group of frequencies through the levels."""
    coarse = math.prod(torus.coarse)
    own_negative = math.prod(2 if side % 2 == 0 else 1 for side in torus.coarse)
    aliases = [math.prod(sides) // coarse for sides in torus.sides]
    operations, peak, largest, held, kept, entering = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    widths = []
    for index, frequencies in enumerate(aliases):
        level = _level(network, torus, index)
        widths.append(level.widths)
        leaving = float(level.leaving**2 * frequencies // torus.folded(index))
        whole = frequencies * (COPIES * level.entries + level.symbols)
        # A sweep goes through a level in pieces, which no frequency that aliases is left out of.
        worked = min(whole, max(PIECE_ENTRIES, whole * torus.folded(index) / frequencies))
        operations += frequencies * level.operations
        peak = max(peak, entering + worked + leaving)
        largest = max(largest, worked)
        held += leaving
        kept += frequencies * (level.entries + level.symbols) + leaving
        entering = leaving
    return TorusCost(
        groups=(coarse + own_negative) // 2,
        widths=tuple(widths),
        sweep_memory=math.ceil(COMPLEX * peak),
        memory=math.ceil(COMPLEX * (held + largest)),
        kept_memory=math.ceil(COMPLEX * kept),
        operations=operations,
    )


@dataclass(frozen=True, slots=True)
class _Level:
    """One frequency of one level: entries of the factor and of the symbols, operations, channels that leave."""

    widths: tuple[int, ...]
    entries: float
    symbols: float
    operations: float
    leaving: int


def _level(network: Network, torus: Torus, index: int) -> _Level:
    """Count one frequency of a level as ``lipray.verify.torus.elimination`` works it."""
    walk = _Walk(network, torus, index)
    walk.run()
    parts, layers = walk.parts, walk.layers
    width, depth = sum(parts), len(layers)
    first = index == 0
    sizes = [*(size for size, _ in layers), sum(walk.heights)]
    reads = [*(reads for _, reads in layers), frozenset[int]().union(*walk.outputs)]
    filled: list[set[int]] = []
    entries, operations = float(width**2), 0.0
    for j, (size, own) in enumerate(zip(sizes, reads, strict=True)):
        row = {source - len(parts) for source in own if source >= len(parts)}
        touches = any(source < len(parts) for source in own)
        for k in range(min(j, depth)):
            if (row & filled[k]) or (touches and any(source < len(parts) for source in reads[k])):
                row.add(k)
        if touches:
            operations += 0.0 if first else 8.0 * size * width**2
            operations += 8.0 * size * width * sum(sizes[k] for k in (*row, j))
        for k in row:
            inner = sum(sizes[i] for i in row if i < k and i in filled[k])
            operations += 8.0 * size * inner * sizes[k] + 4.0 * size * sizes[k] ** 2
            entries += size * sizes[k]
        operations += 8.0 * size**2 * (sum(sizes[k] for k in row) + size / 3.0)
        entries += size**2
        row.add(j)
        filled.append(row)
    return _Level(tuple(size for size, _ in layers), entries, float(walk.symbols), operations, sum(walk.leaving))


class _Walk:
    """The layers of a level and what they read, as sets of sources: the parts that enter first, then the layers."""

    def __init__(self, network: Network, torus: Torus, index: int) -> None:
        self.network, self.torus, self.index = network, torus, index
        handed = _crossings(network, torus)
        self.entering = handed[index - 1] if index else ((0, None),)
        self.handed = handed[index]
        self.parts = [network.nodes[node].shape[0] for node, _ in self.entering]
        self.leaving = [network.nodes[node].shape[0] for node, _ in self.handed]
        self.layers: list[tuple[int, frozenset[int]]] = []
        self.outputs: list[frozenset[int]] = []
        self.heights: list[int] = []
        self.symbols = 0
        self.values: dict[int, frozenset[int]] = {}
        self.masks: dict[int, frozenset[int]] = {}

    def run(self) -> None:
        """Walk the nodes of the level."""
        arrived = {crossing: frozenset({part}) for part, crossing in enumerate(self.entering)}
        for i, node in enumerate(self.network.nodes[: self.torus.cut + 1]):
            if self.torus.level[i] != self.index:
                continue
            if i and self.torus.level[node.inputs[0]] == self.index:
                value = self._filter(i)
            elif i and isinstance(node.op, MaxPool):
                phases = {phase: arrived[n, phase] for n, phase in self.entering if n == i and phase is not None}
                value = self._maximum(node.op, node.shape[0], phases)
            else:
                value = arrived[i, None]
            if isinstance(node.op, AvgPool) and node.op.divisor is not None and i:
                divisors = self.network.weights[node.op.divisor]
                value = value | self._layer(node.shape[0], value) if divisors.min() < divisors.max() else value
            self.values[i] = value
        phased: set[int] = set()
        for index, phase in self.handed:
            channels = self.network.nodes[index].shape[0]
            if (index, phase) in arrived:
                self.outputs.append(arrived[index, phase])
            elif phase is not None:
                # All phases come from one map, which is handed on once.
                if index in phased:
                    continue
                phased.add(index)
                self.outputs.append(self._read(index, self.network.nodes[index].inputs[0]))
            else:
                self.outputs.append(
                    self.values[index] if self.torus.level[index] == self.index else self._filter(index)
                )
            self.heights.append(channels)

    def _filter(self, index: int) -> frozenset[int]:
        node = self.network.nodes[index]
        value = frozenset[int]().union(*(self._read(index, i) for i in node.inputs))
        channels = node.shape[0]
        if isinstance(node.op, Activation):
            if node.op.lower != node.op.upper or index in self.torus.widened:
                curved = self._layer(channels, value)
                return curved | value if any(low != 0.0 for low in node.op.lower) else curved
            return value
        if isinstance(node.op, MaxPool):
            return self._maximum(node.op, channels, {(0,) * len(node.op.kernel): value})
        if isinstance(node.op, Conv):
            self.symbols += channels * self.network.nodes[node.inputs[0]].shape[0]
        return value

    def _maximum(self, op: MaxPool, channels: int, phases: dict[Phase, frozenset[int]]) -> frozenset[int]:
        """A separable tournament, one axis after the other, over the phases of what is read."""
        for axis, (taps, step) in enumerate(zip(op.kernel, op.stride, strict=True)):
            reduced: dict[Phase, frozenset[int]] = {}
            for rest in sorted({phase[1:] for phase in phases}):
                offsets = (op.dilation[axis] * tap - op.padding[axis][0] for tap in range(taps))
                field = [phases[offset % step, *rest] for offset in offsets]
                while len(field) > 1:
                    rounds = [q | self._layer(channels, p | q) for p, q in zip(field[::2], field[1::2], strict=False)]
                    field = rounds + (field[-1:] if len(field) % 2 else [])
                reduced[rest] = field[0]
            phases = reduced
        return phases[()]

    def _layer(self, size: int, value: frozenset[int]) -> frozenset[int]:
        if not value:
            return value
        self.layers.append((size, value))
        return frozenset({len(self.parts) + len(self.layers) - 1})

    def _read(self, reader: int, index: int) -> frozenset[int]:
        if reader not in self.torus.masked:
            return self.values[index]
        if index not in self.masks:
            self.masks[index] = self._layer(self.network.nodes[index].shape[0], self.values[index])
        return self.masks[index]


def _crossings(network: Network, torus: Torus) -> list[tuple[tuple[int, Phase | None], ...]]:
    """Per level what goes on to the next torus: filtered maps, and what strided max-pools read, in its phases."""
    handed: list[list[tuple[int, Phase | None]]] = [[] for _ in torus.strides]
    for index, node in enumerate(network.nodes[: torus.cut + 1]):
        if node.inputs and torus.level[node.inputs[0]] < torus.level[index]:
            phases: list[Phase | None] = [None]
            if isinstance(node.op, MaxPool):
                phases = list(itertools.product(*(range(step) for step in node.op.stride)))
            for level in range(torus.level[node.inputs[0]], torus.level[index]):
                handed[level].extend((index, phase) for phase in phases)
    handed[-1].append((torus.cut, None))
    return [tuple(crossing) for crossing in handed]
