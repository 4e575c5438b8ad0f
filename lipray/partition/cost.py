"""What solving a sub-problem will take: an estimate of memory and time, before anything is solved.

The figures steer the planner and the scheduler. They are fits to measurements on two cores, good to a
factor of a few; no bound depends on them.
"""

from __future__ import annotations

import math
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
from lipray.partition.subproblem import Settings

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
INTERIOR_POINT_MATRICES = 14
"""Matrices of the LMI's order that the interior-point method keeps."""
INTERIOR_POINT_ITERATIONS = 25

FIRST_ORDER_MATRICES = 4
"""Matrices of the frontier's order kept per activation layer by the recursion and its adjoint."""
FIRST_ORDER_ITERATIONS = 200
RECURSION_WORK = 10
"""Operations per layer of one pass of the recursion, in units of the cubed frontier."""

SDP_SCALE = 5.5e-9
SDP_EXPONENT = 4.8
"""Clarabel through cvxpy, seconds = scale * order ** exponent: order 64 takes 2.5 s, 96 takes 17.9 s."""
SDP_MEMORY = 40
"""Bytes per entry of Clarabel's factor, which grows like (order ** 2 / 2) ** 1.5."""

NORM_MATRICES = 3
"""Square matrices kept while the norm of one dense layer is proven."""
SPECTRUM_COPIES = 2
"""Copies of a convolution's frequency responses kept while its norm is bounded."""


@dataclass(frozen=True, slots=True)
class Cost:
    """An estimate: bytes, seconds on two cores, scalar activations, and the order of the LMI."""

    memory_bytes: int
    seconds: float
    neurons: int
    order: int


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Sizes of the sector form: the sum of its layers, how many, and the largest frontier."""

    inputs: int
    neurons: int
    layers: int
    frontier: int


def estimate_cost(network: Network, method: str, settings: Settings) -> Cost:
    """Estimate memory (bytes) and time (seconds) of one solve; see the module for how far to trust it.

    The order is N = n_0 + sum n_i: the input and all activation layers of the sector form, a maximum
    pool counted as the relu's of its separable tournament. Interior-point methods cost N ** 3 per
    iteration, the recursion m ** 3 per layer with m the largest frontier, that is, the signals that
    must be kept at one time.
    """
    sizes = _sizes(network)
    order = sizes.inputs + sizes.neurons
    if method == "product":
        memory, seconds = _product(network)
    elif method == "sdp":
        memory = SDP_MEMORY * (order**2 / 2) ** 1.5
        seconds = OVERHEAD + SDP_SCALE * float(order) ** SDP_EXPONENT
    elif settings.iterations != 0 and order <= INTERIOR_POINT_ORDER:
        memory = float(INTERIOR_POINT_MATRICES * DOUBLE * order**2)
        seconds = OVERHEAD + INTERIOR_POINT_ITERATIONS * DOUBLE * float(order) ** 3 / FLOPS
    else:
        passes = FIRST_ORDER_ITERATIONS if settings.iterations is None else settings.iterations + 1
        memory = float(DOUBLE * FIRST_ORDER_MATRICES * sizes.frontier**2 * (sizes.layers + 2))
        seconds = OVERHEAD + passes * RECURSION_WORK * float(sizes.frontier) ** 3 * (sizes.layers + 1) / FLOPS
    if settings.time_limit is not None:
        seconds = min(seconds, OVERHEAD + settings.time_limit)
    return Cost(memory_bytes=math.ceil(memory), seconds=seconds, neurons=sizes.neurons, order=order)


def fits(network: Network, method: str, settings: Settings) -> bool:
    """Whether the estimated memory is within the settings' memory."""
    return estimate_cost(network, method, settings).memory_bytes <= settings.memory


def _sizes(network: Network) -> _Sizes:
    """Walk the graph once: which input or activation each signal depends on linearly, and until when."""
    sources: list[frozenset[int]] = []
    sizes: dict[int, int] = {0: network.nodes[0].size}
    peaks: dict[int, int] = {}
    layers = 0
    last_use: dict[int, int] = {}
    for index, node in enumerate(network.nodes):
        read = frozenset[int]().union(*(sources[i] for i in node.inputs))
        stages = _stages(network, node)
        if index == 0:
            sources.append(frozenset({0}))
            continue
        if stages:
            last_use.update(dict.fromkeys(read, index))
            # Within a tournament a level's winners replace its entrants; the first level is the widest.
            peaks[index] = max(stages)
            sizes[index] = node.size if isinstance(node.op, MaxPool) else stages[0]
            layers += len(stages)
            sources.append(frozenset({index}))
        else:
            sources.append(read)
    end = len(network.nodes)
    last_use.update(dict.fromkeys(sources[-1], end))
    peaks[end] = 0
    frontier = max(
        peak + sum(size for i, size in sizes.items() if i < index <= last_use.get(i, 0))
        for index, peak in peaks.items()
    )
    frontier = max(frontier, network.nodes[-1].size)
    neurons = sum(sum(_stages(network, node)) for node in network.nodes)
    return _Sizes(inputs=sizes[0], neurons=neurons, layers=layers, frontier=frontier)


def _stages(network: Network, node: Node) -> tuple[int, ...]:
    """Sizes of the activation layers a node stands for: one, a tournament's levels, or none."""
    if isinstance(node.op, Activation):
        return (node.size,)
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
                layer = min(layer, float(SPECTRUM_COPIES * COMPLEX * channels * positions))
                work = min(work, float(channels) * min(source.shape[0], node.shape[0]) * positions)
            else:
                # An average pool acts on each channel alone, so one channel's matrix is enough.
                channels = source.shape[0]
                layer, work = layer / channels**2, work / channels**3
        memory = max(memory, layer)
        seconds += RECURSION_WORK * work / FLOPS
    return memory + DOUBLE * (network.nodes[0].size + network.nodes[-1].size), seconds
