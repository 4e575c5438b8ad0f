"""What carrying a network's maps on tori will take: frequencies, memory and time, and where to leave the torus.

The structure of ``lipray.certify.frequency`` is followed symbolically, level by level: which layers a level has,
which blocks of its factor fill, and how many operations and entries each frequency costs. The rates are measured on
two cores and good to a factor of a few; no bound depends on them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lipray.model.network import Activation, AvgPool, Conv, MaxPool, Network
from lipray.partition.torus import Torus

COMPLEX = 16
"""Bytes of a complex128."""
RATE = 1.8e10
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
COPIES = 2.0
"""Copies of a level's factor, temporaries counted, while a sweep is in it (measured)."""


@dataclass(frozen=True, slots=True)
class TorusCost:
    """One network on tori: ``groups`` of frequencies, and per group bytes and operations.

    ``sweep_memory`` is what one group takes on its way through all levels, ``memory`` the same with what a gradient
    keeps. ``operations`` are real ones, of one pass.
    """

    groups: int
    levels: int
    sweep_memory: int
    memory: int
    operations: float

    @property
    def pass_seconds(self) -> float:
        """One pass over all frequencies on one core."""
        return self.groups * self.operations / RATE + self.levels * LEVEL_SECONDS

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
    operations, peak, kept, entering = 0.0, 0.0, 0.0, 0.0
    for index, frequencies in enumerate(aliases):
        level = _level(network, torus, index)
        following = aliases[index + 1] if index + 1 < len(aliases) else frequencies
        leaving = float(level.leaving**2 * following)
        symbols, entries = frequencies * level.symbols, frequencies * level.entries
        operations += frequencies * level.operations
        peak = max(peak, entering + COPIES * entries + symbols + leaving)
        kept += entries + symbols + leaving
        entering = leaving
    return TorusCost(
        groups=(coarse + own_negative) // 2,
        levels=len(torus.sides),
        sweep_memory=math.ceil(COMPLEX * peak),
        memory=math.ceil(COMPLEX * kept),
        operations=operations,
    )


@dataclass(frozen=True, slots=True)
class _Level:
    """One frequency of one level: entries of the factor and of the symbols, operations, channels that leave."""

    entries: float
    symbols: float
    operations: float
    leaving: int


def _level(network: Network, torus: Torus, index: int) -> _Level:
    """Count one frequency of a level as ``lipray.certify.frequency.elimination`` works it."""
    walk = _Walk(network, torus, index)
    walk.run()
    parts, layers = walk.parts, walk.layers
    width, depth = sum(parts), len(layers)
    first = index == 0
    sizes = [*(size for size, _ in layers), sum(walk.leaving)]
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
    return _Level(entries, float(walk.symbols), operations, sum(walk.leaving))


class _Walk:
    """The layers of a level and what they read, as sets of sources: the parts that enter first, then the layers."""

    def __init__(self, network: Network, torus: Torus, index: int) -> None:
        self.network, self.torus, self.index = network, torus, index
        handed = _crossings(network, torus)
        self.entering = handed[index - 1] if index else (0,)
        self.handed = handed[index]
        self.parts = [network.nodes[i].shape[0] for i in self.entering]
        self.leaving = [network.nodes[i].shape[0] for i in self.handed]
        self.layers: list[tuple[int, frozenset[int]]] = []
        self.outputs: list[frozenset[int]] = []
        self.symbols = 0
        self.values: dict[int, frozenset[int]] = {}
        self.masks: dict[int, frozenset[int]] = {}

    def run(self) -> None:
        """Walk the nodes of the level."""
        arrived = {node: frozenset({part}) for part, node in enumerate(self.entering)}
        outputs: dict[int, frozenset[int]] = {}
        last = self.index == len(self.torus.strides) - 1
        for i, node in enumerate(self.network.nodes[: self.torus.cut + 1]):
            if self.torus.level[i] == self.index:
                crossed = i == 0 or (node.inputs and self.torus.level[node.inputs[0]] < self.index)
                value = arrived[i] if crossed else self._filter(i)
                if isinstance(node.op, AvgPool) and node.op.divisor is not None and i:
                    value |= self._layer(node.shape[0], value)
                self.values[i] = value
            elif i in self.handed:
                outputs[i] = arrived[i] if i in arrived else self._filter(i)
        if last:
            outputs[self.torus.cut] = self.values[self.torus.cut]
        self.outputs = [outputs[i] for i in self.handed]

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
            for taps in node.op.kernel:
                entrants = taps
                while entrants > 1:
                    for _ in range(entrants // 2):
                        value |= self._layer(channels, value)
                    entrants -= entrants // 2
            return value
        if isinstance(node.op, Conv):
            self.symbols += channels * self.network.nodes[node.inputs[0]].shape[0]
        return value

    def _layer(self, size: int, value: frozenset[int]) -> frozenset[int]:
        self.layers.append((size, value))
        return frozenset({len(self.parts) + len(self.layers) - 1})

    def _read(self, reader: int, index: int) -> frozenset[int]:
        if reader not in self.torus.masked:
            return self.values[index]
        if index not in self.masks:
            self.masks[index] = self._layer(self.network.nodes[index].shape[0], self.values[index])
        return self.masks[index]


def _crossings(network: Network, torus: Torus) -> list[tuple[int, ...]]:
    """Per level the nodes whose filtered maps go on to the next torus; the cut node for the last."""
    handed: list[list[int]] = [[] for _ in torus.strides]
    for index, node in enumerate(network.nodes[: torus.cut + 1]):
        if node.inputs and torus.level[node.inputs[0]] < torus.level[index]:
            for level in range(torus.level[node.inputs[0]], torus.level[index]):
                handed[level].append(index)
    handed[-1].append(torus.cut)
    return [tuple(nodes) for nodes in handed]
