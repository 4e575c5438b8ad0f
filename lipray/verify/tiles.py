"""Cuts in space: tiles of a block's output map, each with the receptive field it depends on.

A tile's network is the block restricted to one window of its output. Windows are found by walking
backwards through the block, axis by axis. Where a signal is read by several operations (a residual
join) the hull of what they read is kept, and a crop (``Pad`` with negative numbers) stands before an
operation that needs less. Padding appears in a tile only where its window meets the border of the map, so
that interior tiles are identical networks.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lipray.errors import PlanError
from lipray.model.network import (
    Activation,
    AvgPool,
    ChannelAffine,
    Concat,
    Conv,
    Input,
    MaxPool,
    Network,
    Node,
    Op,
    Pad,
    Reshape,
    Sum,
)

Window = tuple[tuple[int, int], ...]
"""Half-open index range per spatial axis of a map."""

Interval = tuple[int, int]
"""Half-open range of positions on one axis."""


@dataclass(frozen=True, slots=True)
class CutTile:
    """A tile: its window of the output map, its receptive field, and the map from field to window."""

    output: Window
    field: Window
    network: Network


@dataclass(frozen=True, slots=True)
class Distinct:
    """Tiles of a block that are one and the same network: the network, and which tiles they are."""

    network: Network
    tiles: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Reach:
    """How an operation reads one axis: output a reads a * stride - before + dilation * (0 .. kernel - 1)."""

    stride: int
    dilation: int
    kernel: int
    before: int

    @property
    def first_inside(self) -> int:
        """The first output whose last reading is at position 0 or later; may be negative."""
        return -(-(self.before - self.dilation * (self.kernel - 1)) // self.stride)

    def span(self, window: Interval) -> Interval:
        """Hull of the positions the outputs of a window read, outside the map included."""
        low = window[0] * self.stride - self.before
        return low, (window[1] - 1) * self.stride - self.before + self.dilation * (self.kernel - 1) + 1


@dataclass(frozen=True, slots=True)
class _Step:
    """One node of a tile on one axis: its length, crops of its inputs, its padding, its divisor's range."""

    length: int
    crops: tuple[Interval, ...]
    padding: Interval
    divisor: Interval | None


@dataclass(frozen=True, slots=True)
class _AxisPlan:
    """A tile on one axis, free of absolute positions (but for divisors): equal for translates."""

    steps: tuple[_Step | None, ...]
    trim: Interval


def is_tileable(block: Network) -> bool:
    """Whether the block maps a spatial map to a spatial map by operations that act locally in space."""
    rank = len(block.input_shape)
    if rank < 2:
        return False
    for node in block.nodes:
        if len(node.shape) != rank:
            return False
        if node.inputs and not _touches(block, node):
            return False
        match node.op:
            case Input() | Conv() | AvgPool() | MaxPool() | Pad() | ChannelAffine() | Activation() | Sum():
                pass
            case Concat(axis=0):
                pass
            case Reshape() if node.shape == block.nodes[node.inputs[0]].shape:
                pass
            case _:
                return False
    return True


def tile_windows(shape: Sequence[int], factor: int) -> tuple[Window, ...]:
    """Windows of p nearly equal parts per spatial axis (fewer where an axis is shorter), row-major.

    Args:
        shape: of the output map, channels first.
        factor: p.
    """
    axes = []
    for size in shape[1:]:
        parts = min(factor, size)
        edges = [size * part // parts for part in range(parts + 1)]
        axes.append(tuple(itertools.pairwise(edges)))
    return tuple(itertools.product(*axes))


def tile_block(block: Network, factor: int) -> tuple[tuple[Window, Window, Network], ...]:
    """Cut the output map of a block into p tiles per spatial axis.

    Args:
        block: the block's network.
        factor: p; an axis with fewer positions is cut into its positions.

    Returns:
        Per tile its output window, its receptive field (within the block's input map), and the network
        that maps the field to the window. The windows cover the output once. A block that cannot be
        tiled, or p = 1, gives one tile: the block itself, with empty windows.

    Raises:
        PlanError: p is below 1 or larger than the map's longest side.
    """
    if factor < 1:
        raise PlanError(
            "--partition-factor", f"{factor} is not a number of tiles", hint="Give 1 or more tiles per axis."
        )
    if not is_tileable(block) or factor == 1:
        return (((), (), block),)
    longest = max(block.output_shape[1:])
    if factor > longest:
        raise PlanError(
            "--partition-factor",
            f"{factor} is larger than the map of block output {block.nodes[-1].name!r}, {longest} positions long",
            hint=f"Give at most {longest}.",
        )
    tiles = cut_tiles(block, tile_windows(block.output_shape, factor))
    return tuple((tile.output, tile.field, tile.network) for tile in tiles)


def cut_tiles(block: Network, windows: Sequence[Window]) -> tuple[CutTile, ...]:
    """Tiles for given output windows of a tileable block; translates share one ``Network`` object."""
    axes: dict[tuple[int, Interval], tuple[_AxisPlan, Interval]] = {}
    networks: dict[tuple[_AxisPlan, ...], Network] = {}
    tiles = []
    for window in windows:
        plans = []
        for axis, interval in enumerate(window):
            if (axis, interval) not in axes:
                axes[axis, interval] = _plan_axis(block, axis, interval)
            plans.append(axes[axis, interval])
        signature = tuple(plan for plan, _ in plans)
        if signature not in networks:
            networks[signature] = _build(block, signature)
        tiles.append(CutTile(output=window, field=tuple(field for _, field in plans), network=networks[signature]))
    return tuple(tiles)


def distinct_tiles(tiles: Sequence[CutTile]) -> tuple[Distinct, ...]:
    """Those of a block's tiles that differ, in the order of their first appearance."""
    copies: dict[int, list[int]] = {}
    for number, tile in enumerate(tiles):
        copies.setdefault(id(tile.network), []).append(number)  # translates share one object
    return tuple(Distinct(tiles[own[0]].network, tuple(own)) for own in copies.values())


def _reach(block: Network, op: Op, axis: int) -> _Reach:
    match op:
        case Conv():
            kernel = block.weights[op.weight].shape[axis + 2]
            return _Reach(op.stride[axis], op.dilation[axis], kernel, op.padding[axis][0])
        case MaxPool():
            return _Reach(op.stride[axis], op.dilation[axis], op.kernel[axis], op.padding[axis][0])
        case AvgPool():
            return _Reach(op.stride[axis], 1, op.kernel[axis], op.padding[axis][0])
        case Pad():
            return _Reach(1, 1, 1, op.padding[axis][0])
        case _:
            return _Reach(1, 1, 1, 0)


def _touches(block: Network, node: Node) -> bool:
    """Whether on every axis some output of the node reads a position of the map, and not padding only."""
    for axis in range(len(node.shape) - 1):
        reach = _reach(block, node.op, axis)
        first = max(reach.first_inside, 0)
        size = block.nodes[node.inputs[0]].shape[axis + 1]
        if first >= node.shape[axis + 1] or reach.span((first, first + 1))[0] >= size:
            return False
    return True


def _plan_axis(block: Network, axis: int, output: Interval) -> tuple[_AxisPlan, Interval]:
    """Walk backwards along one axis: the window of every signal, then the crops and paddings."""
    nodes = block.nodes
    reaches = [_reach(block, node.op, axis) for node in nodes]
    windows: list[Interval | None] = [None] * len(nodes)
    windows[-1] = output
    for index in range(len(nodes) - 1, 0, -1):
        window = windows[index]
        if window is None:
            continue
        node = nodes[index]
        size = nodes[node.inputs[0]].shape[axis + 1]
        window = _touching(reaches[index], window, size)
        windows[index] = window
        read = _clip(reaches[index].span(window), size)
        for source in node.inputs:
            known = windows[source]
            windows[source] = read if known is None else (min(known[0], read[0]), max(known[1], read[1]))
    steps = tuple(_step(block, axis, index, reaches[index], windows) for index in range(len(nodes)))
    last = windows[-1] or output
    field = windows[0] or (0, 1)
    return _AxisPlan(steps, (output[0] - last[0], last[1] - output[1])), field


def _touching(reach: _Reach, window: Interval, size: int) -> Interval:
    """The window, widened (it is cropped later) until one of its outputs reads a position of the map.

    Such an output exists on either side, because the block is tileable.
    """
    low, high = reach.span(window)
    if high <= 0:
        return window[0], reach.first_inside + 1
    if low >= size:
        return (size - 1 + reach.before) // reach.stride, window[1]
    return window


def _clip(span: Interval, size: int) -> Interval:
    return max(span[0], 0), min(span[1], size)


def _step(block: Network, axis: int, index: int, reach: _Reach, windows: Sequence[Interval | None]) -> _Step | None:
    node, window = block.nodes[index], windows[index]
    if window is None:
        return None
    crops = []
    padding = (0, 0)
    for source in node.inputs:
        low, high = reach.span(window)
        read = _clip((low, high), block.nodes[source].shape[axis + 1])
        kept = windows[source] or read
        crops.append((read[0] - kept[0], kept[1] - read[1]))
        padding = (read[0] - low, high - read[1])
    has_divisor = isinstance(node.op, AvgPool) and node.op.divisor is not None
    return _Step(
        length=window[1] - window[0],
        crops=tuple(crops),
        padding=padding,
        divisor=window if has_divisor else None,
    )


def _build(block: Network, plans: tuple[_AxisPlan, ...]) -> Network:
    """The tile's network from its plan on every axis."""
    derived: dict[str, np.ndarray] = {}
    nodes: list[Node] = []
    places: dict[int, int] = {}
    cropped: dict[tuple[int, Window], int] = {}

    def crop(place: int, amounts: Window) -> int:
        if not any(itertools.chain.from_iterable(amounts)):
            return place
        if (place, amounts) not in cropped:
            source = nodes[place]
            spatial = (size - sum(pair) for size, pair in zip(source.shape[1:], amounts, strict=True))
            op = Pad(tuple((-before, -after) for before, after in amounts))
            nodes.append(Node(f"{source.name}.crop", op, (place,), (source.shape[0], *spatial)))
            cropped[place, amounts] = len(nodes) - 1
        return cropped[place, amounts]

    for index, node in enumerate(block.nodes):
        steps = [step for step in (plan.steps[index] for plan in plans) if step is not None]
        if not steps:
            continue
        inputs = tuple(
            crop(places[source], tuple(step.crops[number] for step in steps))
            for number, source in enumerate(node.inputs)
        )
        op = _narrow(node.op, steps, block.weights, derived)
        nodes.append(Node(node.name, op, inputs, (node.shape[0], *(step.length for step in steps))))
        places[index] = len(nodes) - 1
    crop(places[len(block.nodes) - 1], tuple(plan.trim for plan in plans))
    weights = ChainMap(derived, block.weights) if derived else block.weights  # type: ignore[arg-type]  # only read
    return Network(nodes=tuple(nodes), weights=weights)


def _narrow(op: Op, steps: Sequence[_Step], weights: Mapping[str, np.ndarray], derived: dict[str, np.ndarray]) -> Op:
    """The operation on a tile: its padding, and its slice of a divisor array."""
    padding = tuple(step.padding for step in steps)
    match op:
        case Conv() | MaxPool() | Pad():
            return replace(op, padding=padding)
        case AvgPool(divisor=None):
            return replace(op, padding=padding)
        case AvgPool(divisor=str(key)):
            ranges = tuple(slice(*step.divisor) for step in steps if step.divisor is not None)
            part = np.ascontiguousarray(weights[key][ranges])
            name = f"{key}#{hashlib.sha256(repr(part.shape).encode() + part.tobytes()).hexdigest()[:32]}"
            derived[name] = part
            return replace(op, padding=padding, divisor=name)
        case _:
            return op
