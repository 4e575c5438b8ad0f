"""What solving a sub-problem will take: an estimate of memory and time, before anything is solved.

The figures steer the planner and the scheduler. They are fits to measurements on two cores, good to a
factor of a few; no bound depends on them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lipray.model.network import (
    Activation,
    AdaptiveAvgPool,
    AvgPool,
    Conv,
    Dense,
    MaxPool,
    Network,
    Node,
)
from lipray.partition.plan import TileWork
from lipray.partition.subproblem import METRIC, Settings
from lipray.verify.tiles import Window, cut_tiles, distinct_tiles, tile_windows

DOUBLE = 8
"""Bytes of a float64."""
COMPLEX = 16
"""Bytes of a complex128."""
FLOPS = 4e10
"""Dense float64 operations per second of two cores."""
OVERHEAD = 0.05
"""Seconds every solve takes."""

INTERIOR_POINT_ORDER = 2600
"""Largest order of the LMI that the ellipsoid method gives to the interior-point method."""
CHAIN_ORDER, THIN = 6000, 8
"""The same for a chain, where each layer reads the one before it, so that its slack is block tridiagonal; and of how
many entries of the whole matrix one is in the elimination at most: first-order steps do for chains short and wide."""
INTERIOR_POINT_MATRICES = 14
"""Matrices of the LMI's order that the interior-point method keeps."""
INTERIOR_POINT_ITERATIONS = 25
CHAIN_ITERATIONS = 35
DENSE_WORK = 8.0
"""Operations of one iteration, in units of the cubed order."""
CHAIN_WORK, CHAIN_PASSES = 0.7, 60.0
"""The same for a chain, and in units of the order times the entries of the elimination (measured)."""

CLOSED_FORM_COPIES = 4
"""Copies of the elimination's entries kept while one set of multipliers is certified (measured)."""
FIRST_ORDER_COPIES = 10
"""The same while the multipliers are improved by first-order steps, which keep the adjoint's entries too."""
FIRST_ORDER_ITERATIONS = 200
ELIMINATION_WORK = 3
"""Operations of one elimination, in units of a layer's neurons times its squared front (measured)."""

METRIC_STEPS = 80
"""Steps that the multipliers of a block's tiles take together, most of the time (measured)."""
STEP_PASSES = 2
"""Eliminations of a tile per step: for its metric, and for its gradient (once where one process does both)."""
METRIC_MATRICES = 6
"""Matrices of the order of a block's input kept while the sum of its tiles' metrics is looked at."""
EIGEN_WORK = 9
"""Operations of a full eigenvalue decomposition, in units of the cubed order."""
FULL_EIGENVALUES = 1200
"""Order up to which all eigenvalues of a matrix to be minimised, such as a sum of metrics, are looked at."""
LANCZOS_WORK = 1
"""The same for the largest eigenvalues of a large matrix, and the factorisation that proves them."""

SDP_SCALE = 5.5e-9
SDP_EXPONENT = 4.8
"""Clarabel through cvxpy, seconds = scale * order ** exponent: order 64 takes 2.5 s, 96 takes 17.9 s."""
SDP_MEMORY = 40
"""Bytes per entry of Clarabel's factor, which grows like (order ** 2 / 2) ** 1.5."""

NORM_WORK = 10
"""Operations of one proven norm, in units of rows times columns times the smaller of them."""
NORM_MATRICES = 3
"""Square matrices kept while the norm of one dense layer is proven."""
SPECTRUM_COPIES = 4
"""Copies of a convolution's frequency responses kept while its norm is bounded."""
SPECTRUM_ENTRIES = 2**24
"""Entries of those responses that are worked on at a time."""


@dataclass(frozen=True, slots=True)
class Cost:
    """An estimate: bytes, seconds on two cores, scalar activations, and the order of the LMI."""

    memory_bytes: int
    seconds: float
    neurons: int
    order: int


@dataclass(frozen=True, slots=True)
class _Elimination:
    """Sizes of the LMI and of its elimination, layer after layer.

    The front of a layer is the layer and all later ones it is coupled to when its turn comes: in a chain the
    next one, with skips all that are still waiting. ``entries`` sums neurons times front, ``work`` neurons
    times squared front.
    """

    neurons: int
    order: int
    entries: int
    work: float
    chain: bool


def interior_seconds(order: int, entries: int, *, chain: bool) -> float:
    """Seconds that the interior-point method is expected to take.

    Args:
        order: of the LMI.
        entries: neurons times front, summed over the layers; only a chain's matter.
        chain: whether each layer reads the one before it only.
    """
    if not chain:
        return INTERIOR_POINT_ITERATIONS * DENSE_WORK * float(order) ** 3 / FLOPS
    return CHAIN_ITERATIONS * (CHAIN_WORK * float(order) ** 3 + CHAIN_PASSES * order * float(entries)) / FLOPS


def interior_fits(order: int, entries: int, *, chain: bool) -> bool:
    """Whether the ellipsoid method gives an LMI to the interior-point method; see ``interior_seconds``."""
    return order <= INTERIOR_POINT_ORDER or (chain and order <= CHAIN_ORDER and THIN * entries <= order**2)


def estimate_cost(network: Network, method: str, settings: Settings) -> Cost:
    """Estimate memory (bytes) and time (seconds) of one solve; see the module for how far to trust it.

    The order of the LMI is n_0 + sum n_i over all activation layers of the sector form, n_0 no larger
    than the layers that read the input (a wider input is replaced by a square factor), and a maximum pool
    counted as the relu's of its separable tournament. Interior-point methods cost the cubed order per
    iteration; the closed form and first-order steps cost one elimination each.
    """
    if method == METRIC:
        return tiles_together(network, tile_windows(network.output_shape, settings.tiles), settings)[0]
    sizes = _elimination(network)
    order = sizes.order
    if method == "product":
        memory, seconds = _product(network)
    elif method == "sdp":
        memory = SDP_MEMORY * (order**2 / 2) ** 1.5
        seconds = OVERHEAD + SDP_SCALE * float(order) ** SDP_EXPONENT
    elif settings.iterations != 0 and interior_fits(order, sizes.entries, chain=sizes.chain):
        memory = float(INTERIOR_POINT_MATRICES * DOUBLE * order**2)
        seconds = OVERHEAD + interior_seconds(order, sizes.entries, chain=sizes.chain)
    else:
        copies = CLOSED_FORM_COPIES if settings.iterations == 0 else FIRST_ORDER_COPIES
        passes = FIRST_ORDER_ITERATIONS if settings.iterations is None else settings.iterations + 1
        memory = float(DOUBLE * copies * sizes.entries)
        seconds = OVERHEAD + passes * ELIMINATION_WORK * sizes.work / FLOPS
    if settings.time_limit is not None:
        seconds = min(seconds, OVERHEAD + settings.time_limit)
    return Cost(memory_bytes=math.ceil(memory), seconds=seconds, neurons=sizes.neurons, order=order)


def tiles_together(network: Network, windows: Sequence[Window], settings: Settings) -> tuple[Cost, TileWork]:
    """A block solved by its tiles together: an elimination per distinct tile and step, and the sum of the metrics.

    Args:
        network: the block.
        windows: of its output map, one per tile.
        settings: of the problem.

    Returns:
        What all of it takes where one process does it, and what a round takes.
    """
    tiles = distinct_tiles(cut_tiles(network, windows))
    parts = [_elimination(tile.network) for tile in tiles]
    size, fields = network.nodes[0].size, [tile.network.nodes[0].size for tile in tiles]
    work = sum(
        ELIMINATION_WORK * (part.work + field**2 * part.neurons) for part, field in zip(parts, fields, strict=True)
    )
    steps = METRIC_STEPS if settings.iterations is None else settings.iterations
    largest = max(part.entries for part in parts)
    reduction = (EIGEN_WORK if size <= FULL_EIGENVALUES else LANCZOS_WORK) * float(size) ** 3
    entries = FIRST_ORDER_COPIES * largest + 2 * sum(field**2 for field in fields) + METRIC_MATRICES * size**2
    once, step = work / FLOPS, (STEP_PASSES * work + reduction) / FLOPS
    closed = OVERHEAD + once + reduction / FLOPS
    seconds = closed + steps * step
    if settings.time_limit is not None:
        seconds = min(seconds, OVERHEAD + settings.time_limit)
    neurons = sum(part.neurons * len(tile.tiles) for part, tile in zip(parts, tiles, strict=True))
    cost = Cost(DOUBLE * entries, seconds, neurons, max(part.order for part in parts))
    each = DOUBLE * (FIRST_ORDER_COPIES * largest + 2 * max(fields) ** 2)
    return cost, TileWork(
        groups=len(tiles),
        group_memory=each,
        pass_seconds=once,
        round_seconds=step,
        closed_form_seconds=closed,
        tiles=len(windows),
    )


def fits(network: Network, method: str, settings: Settings) -> bool:
    """Whether the estimated memory is within the settings' memory."""
    return estimate_cost(network, method, settings).memory_bytes <= settings.memory


def _elimination(network: Network) -> _Elimination:
    """Lower the network symbolically: signals with their sizes and who reads them, then count the fill."""
    sizes = [network.nodes[0].size]
    readers: list[set[int]] = [set()]
    values: list[frozenset[int]] = [frozenset({0})]

    def signal(size: int, read: frozenset[int]) -> int:
        sizes.append(size)
        readers.append(set())
        for source in read:
            readers[source].add(len(sizes) - 1)
        return len(sizes) - 1

    for node in network.nodes[1:]:
        value = frozenset[int]().union(*(values[i] for i in node.inputs))
        if isinstance(node.op, Activation):
            straight = any(node.op.lower)
            if node.op.lower != node.op.upper:
                curved = frozenset({signal(node.size, value)})
                # z = lower v + (upper - lower) u reads on through v where the smallest slope is not 0.
                value = value | curved if straight else curved
        elif isinstance(node.op, MaxPool):
            # max(a, b) = b + relu(a - b): what the pool reads is still read after it.
            for size in _tournament(network, node):
                value |= {signal(size, value)}
        values.append(value)
    neurons = sum(sizes[1:])
    order = min(sizes[0], sum(sizes[i] for i in readers[0]) or network.nodes[-1].size) + neurons
    signal(network.nodes[-1].size, values[-1])
    entries, work = 0, 0.0
    chain = all(later <= {index + 1} for index, later in enumerate(readers))
    coupled = readers
    for index, later in enumerate(coupled):
        for other in later:
            coupled[other] |= {i for i in later if i > other}
        if index:
            front = sizes[index] + sum(sizes[i] for i in later)
            entries += sizes[index] * front
            work += sizes[index] * float(front) ** 2
    return _Elimination(neurons=neurons, order=order, entries=entries, work=work, chain=chain)


def _tournament(network: Network, node: Node) -> tuple[int, ...]:
    """Numbers of relu's in the levels of a maximum pool's separable tournament."""
    if not isinstance(node.op, MaxPool):
        return ()
    op = node.op
    levels: list[int] = []
    current = list(network.nodes[node.inputs[0]].shape)
    for axis in reversed(range(len(op.kernel))):
        current[axis + 1] = node.shape[axis + 1]
        entrants = op.kernel[axis]
        while entrants > 1:
            levels.append(math.prod(current) * (entrants // 2))
            entrants = (entrants + 1) // 2
    return tuple(levels)


def _product(network: Network) -> tuple[float, float]:
    """Bytes of the largest layer norm, and seconds of all of them."""
    memory = 0.0
    seconds = OVERHEAD
    for node in network.nodes:
        if not isinstance(node.op, Conv | Dense | AvgPool | AdaptiveAvgPool):
            continue
        source = network.nodes[node.inputs[0]]
        if isinstance(node.op, Dense):
            rows, columns = network.weights[node.op.weight].shape
            side = min(rows, columns)
            layer, work = float(NORM_MATRICES * DOUBLE * side**2), float(rows) * columns * side
        else:
            side = min(node.size, source.size)
            layer, work = float(NORM_MATRICES * DOUBLE * side**2), float(node.size) * source.size * side
            if isinstance(node.op, Conv):
                positions = math.prod(source.shape[1:])
                channels = source.shape[0] * node.shape[0]
                entries = max(min(channels * positions, SPECTRUM_ENTRIES), channels)
                layer = min(layer, float(SPECTRUM_COPIES * COMPLEX * entries))
                work = min(work, float(channels) * min(source.shape[0], node.shape[0]) * positions)
            else:
                # An average pool acts on each channel alone, so one channel's matrix is enough.
                channels = source.shape[0]
                layer, work = layer / channels**2, work / channels**3
        memory = max(memory, layer)
        seconds += NORM_WORK * work / FLOPS
    return memory + DOUBLE * (network.nodes[0].size + network.nodes[-1].size), seconds
