"""Where a network's maps lie on a torus: its levels, their sides, and what keeps zero padding exact there.

On a torus every convolution commutes with translation, and zero padding is exact if every layer that reads
outside a map finds zeros there and reads no entry of the map a second time. Three things see to it:

- **Sides.** A layer that reads a map of extent H at -b .. H - 1 + a needs a side of at least H + max(a, b); every
  map needs its extent; the side of a level is the finest side divided by the level's total stride. Every map's
  first entry is at the origin of its torus, so that the phases of joined branches agree.
- **Clean maps.** A map is clean if zero outside its window is among what the relaxation allows. The input is.
  An activation makes its output clean if its slopes include 0 (outside the window, slope 0 is one of the
  allowed behaviours). Channel-wise maps, sums and concatenations keep maps clean; so does a max-pool if every
  position outside its window has a zero among what it may select. A convolution with more than one tap or an average
  pool spills over the border, and a crop leaves the cropped entries behind: these are not clean.
- **Widening and masks.** Where a layer reads outside a map that is not clean, activations are widened to slopes
  [min(a, 0), max(b, 0)] if that makes it clean; otherwise the layer reads the map through a window mask,
  an activation with slopes in [0, 1] (1 inside, 0 outside).

A level ends where the rate changes, and a deep one also at activations that all signals pass through, so that what is
held at a time does not grow with depth. Handing on shape matrices loses nothing (``docs/mathematics.md``, section 10).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

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
    Pad,
    Sum,
)
from lipray.verify.cuts import cut_positions

Sides = tuple[int, ...]

UNSPLIT_CHANNELS = 1200
"""Channels of activations up to which a level stays whole: the interior-point method needs it in one."""
PIECE_ENTRIES = 2**24
"""Complex entries of one level that are worked on at a time."""
SHARE_OF_MEMORY = 4
"""A bundle may use one part in this many of the memory allowed: temporaries come on top."""
DEEP, PIECE = 32, 16
"""A level of more channels of activations than ``DEEP`` times its widest is split, to ``PIECE`` times that each."""


@dataclass(frozen=True, slots=True)
class Torus:
    """The layout of a network's nodes 0 .. ``cut`` on tori.

    ``strides`` and ``sides`` hold, for every level, finest first, the total stride and the side of each axis; the
    pieces of a deep level have the same.
    ``level[i]`` is the level of node i. ``widened`` are activations whose slopes are widened to include 0,
    ``masked`` the nodes that read their input through a window mask.
    """

    cut: int
    strides: tuple[Sides, ...]
    sides: tuple[Sides, ...]
    level: tuple[int, ...]
    widened: frozenset[int]
    masked: frozenset[int]

    @property
    def coarse(self) -> Sides:
        """Sides of the coarsest torus; its frequencies number the independent groups."""
        return self.sides[-1]

    @property
    def tori(self) -> tuple[Sides, ...]:
        """The sides of every torus, finest first, each once."""
        return tuple(sides for sides, _ in itertools.groupby(self.sides))

    def folded(self, index: int) -> int:
        """How many frequencies of a level alias to one of the next."""
        following = self.sides[min(index + 1, len(self.sides) - 1)]
        return math.prod(self.sides[index]) // math.prod(following)


def torus_cuts(network: Network) -> tuple[int, ...]:
    """Nodes after which the torus may be left: one signal crosses, and all before it are maps the torus can carry."""
    end = 0
    for index, node in enumerate(network.nodes):
        if not _carried(node):
            break
        end = index
    return (0, *(k for k in cut_positions(network) if k <= end)) if end else ()


def lay_out(network: Network, cut: int | None = None) -> Torus:
    """Lay nodes 0 .. ``cut`` on tori; by default as many as can be.

    Raises:
        PlanError: the network does not begin with maps, ``cut`` is not one of ``torus_cuts``, or its branches are
            strided in ways that no chain of tori carries.
    """
    cuts = torus_cuts(network)
    if not cuts:
        raise PlanError(
            "frequency",
            f"{network.nodes[min(1, len(network.nodes) - 1)].name} is not a layer on maps, so there is no torus",
            hint="Use the method ellipsoid.",
        )
    if cut is None:
        cut = cuts[-1]
        # A last average pool is a row over the window: as a stride it would only enlarge the torus.
        while isinstance(network.nodes[cut].op, AvgPool) and network.nodes[cut].inputs[0] in cuts:
            cut = network.nodes[cut].inputs[0]
    elif cut not in cuts:
        raise PlanError("--switch", f"the torus cannot be left after node {cut}", hint=f"It can after {list(cuts)}.")
    totals = _total_strides(network, cut)
    strides = _chain(totals)
    level = tuple(strides.index(total) for total in totals)
    strides, level = _split(network, cut, strides, level)
    sides = _sides(network, cut, strides, level)
    widened, masked = _cleaning(network, cut, sides, level)
    return Torus(cut, strides, sides, level, frozenset(widened), frozenset(masked))


def _carried(node: Node) -> bool:
    if len(node.shape) not in (2, 3):
        return False
    match node.op:
        case Input() | Conv() | ChannelAffine() | Pad() | AvgPool() | MaxPool() | Activation():
            return True
        case Sum():
            return True
        case Concat():
            return node.op.axis == 0
        case _:
            return False


def _total_strides(network: Network, cut: int) -> list[Sides]:
    totals: list[Sides] = []
    for node in network.nodes[: cut + 1]:
        if not node.inputs:
            totals.append((1,) * (len(node.shape) - 1))
            continue
        reads = {totals[i] for i in node.inputs}
        if len(reads) > 1:
            raise PlanError(
                "frequency",
                f"{node.name} joins maps of total strides {sorted(reads)}",
                hint="Use the method ellipsoid, or product.",
            )
        total = reads.pop()
        if isinstance(node.op, Conv | AvgPool | MaxPool):
            total = tuple(a * b for a, b in zip(total, node.op.stride, strict=True))
        totals.append(total)
    return totals


def _chain(totals: list[Sides]) -> tuple[Sides, ...]:
    chain = sorted(set(totals), key=lambda total: (math.prod(total), total))
    for finer, coarser in itertools.pairwise(chain):
        if any(b % a for a, b in zip(finer, coarser, strict=True)):
            raise PlanError(
                "frequency",
                f"maps of total strides {finer} and {coarser} stand beside each other, and neither divides the other",
                hint="Use the method ellipsoid, or product.",
            )
    return tuple(chain)


def _split(
    network: Network, cut: int, strides: tuple[Sides, ...], level: tuple[int, ...]
) -> tuple[tuple[Sides, ...], tuple[int, ...]]:
    """Split deep levels at activations that all signals pass through; these belong to the later piece.

    Nothing after such a node reads anything before it, so that it alone is handed on.
    """
    widths = [node.shape[0] if isinstance(node.op, Activation | MaxPool) else 0 for node in network.nodes[: cut + 1]]
    joints = set(cut_positions(network))
    starts: list[int] = []
    for index in range(len(strides)):
        own = [i for i in range(cut + 1) if level[i] == index]
        total, widest = sum(widths[i] for i in own), max(widths[i] for i in own)
        if total <= max(UNSPLIT_CHANNELS, DEEP * widest):
            continue
        size, passed = total / math.ceil(total / (PIECE * widest)), 0
        goal = size
        for i in own:
            passed += widths[i]
            if isinstance(network.nodes[i].op, Activation) and i in joints and goal <= passed < total and i < cut:
                starts.append(i)
                goal = passed + size
    added = [0] * (cut + 1)
    for start in starts:
        for i in range(start, cut + 1):
            added[i] += 1
    split = tuple(known + more for known, more in zip(level, added, strict=True))
    return tuple(strides[known] for _, known in sorted(set(zip(split, level, strict=True)))), split


def _sides(network: Network, cut: int, strides: tuple[Sides, ...], level: tuple[int, ...]) -> tuple[Sides, ...]:
    axes = len(strides[0])
    multiples = [1] * axes
    for index, node in enumerate(network.nodes[: cut + 1]):
        for axis in range(axes):
            total, last = strides[level[index]][axis], strides[-1][axis]
            multiples[axis] = max(multiples[axis], -(-node.shape[axis + 1] * total // last))
        if not isinstance(node.op, Conv | AvgPool | Pad):
            continue
        source = network.nodes[node.inputs[0]]
        for axis in range(axes):
            extent = source.shape[axis + 1]
            low, high = _reads(network, node, axis)
            need = max(extent, extent - min(low, 0), high + 1)
            total, last = strides[level[node.inputs[0]]][axis], strides[-1][axis]
            multiples[axis] = max(multiples[axis], -(-need * total // last))
    return tuple(
        tuple(
            multiple * last // total
            for multiple, last, total in zip(multiples, strides[-1], total_strides, strict=True)
        )
        for total_strides in strides
    )


def _reads(network: Network, node: Node, axis: int) -> tuple[int, int]:
    """Smallest and largest position read along an axis."""
    op, source = node.op, network.nodes[node.inputs[0]]
    extent = source.shape[axis + 1]
    if isinstance(op, Pad):
        before, after = op.padding[axis]
        return -before, extent - 1 + after
    if isinstance(op, Conv):
        span = op.dilation[axis] * (network.weights[op.weight].shape[2 + axis] - 1)
    elif isinstance(op, AvgPool):
        span = op.kernel[axis] - 1
    elif isinstance(op, MaxPool):
        span = op.dilation[axis] * (op.kernel[axis] - 1)
    else:
        return 0, extent - 1
    start = -op.padding[axis][0]
    return start, start + (node.shape[axis + 1] - 1) * op.stride[axis] + span


def reads_outside(network: Network, index: int) -> bool:
    """Whether a node counts on zeros outside its input's window (a max-pool never does)."""
    node = network.nodes[index]
    if not isinstance(node.op, Conv | AvgPool | Pad):
        return False
    source = network.nodes[node.inputs[0]]
    for axis in range(len(node.shape) - 1):
        low, high = _reads(network, node, axis)
        if low < 0 or high >= source.shape[axis + 1]:
            return True
    return False


def _cleaning(
    network: Network, cut: int, sides: tuple[Sides, ...], level: tuple[int, ...]
) -> tuple[set[int], set[int]]:
    """Activations to widen and readers to mask."""
    widened: set[int] = set()
    masked: set[int] = set()
    clean: list[bool] = []
    for index, node in enumerate(network.nodes[: cut + 1]):
        if reads_outside(network, index) and not clean[node.inputs[0]]:
            widening = _by_widening(network, node.inputs[0], clean)
            if widening is None:
                masked.add(index)
            else:
                widened |= widening
                for opened in sorted(widening):
                    clean[opened] = True
                for i in range(min(widening) + 1, index):
                    clean[i] = clean[i] or _clean(network, i, clean, sides[level[i]])
        clean.append(_clean(network, index, clean, sides[level[index]]))
    return widened, masked


def _by_widening(network: Network, index: int, clean: list[bool]) -> set[int] | None:
    """The activations whose widening makes a map clean, or ``None`` where that does not help."""
    if clean[index]:
        return set()
    node = network.nodes[index]
    if isinstance(node.op, Activation):
        return {index}
    if isinstance(node.op, Sum | Concat | ChannelAffine) or _pointwise(network, node):
        found: set[int] = set()
        for source in node.inputs:
            part = _by_widening(network, source, clean)
            if part is None:
                return None
            found |= part
        return found
    return None


def _pointwise(network: Network, node: Node) -> bool:
    """Whether a convolution has one tap and reads nothing outside its input."""
    if not isinstance(node.op, Conv):
        return False
    axes = range(len(node.shape) - 1)
    return (
        math.prod(network.weights[node.op.weight].shape[2:]) == 1
        and not any(pad for pair in node.op.padding for pad in pair)
        # Every position the stride keeps beyond the window must read beyond the input.
        and all(node.shape[a + 1] * node.op.stride[a] >= network.nodes[node.inputs[0]].shape[a + 1] for a in axes)
    )


def _clean(network: Network, index: int, clean: list[bool], sides: Sides) -> bool:
    node = network.nodes[index]
    reads = [clean[i] for i in node.inputs]
    match node.op:
        case Input():
            return True
        case Activation():
            contains_zero = max(node.op.lower) <= 0.0 <= min(node.op.upper)
            return contains_zero or reads[0]
        case Sum() | Concat() | ChannelAffine():
            return all(reads)
        case Pad():
            return reads[0] and all(a >= 0 and b >= 0 for a, b in node.op.padding)
        case Conv():
            return reads[0] and _pointwise(network, node)
        case MaxPool():
            return reads[0] and _selects_zero(network, node, sides)
        case _:
            return False


def _selects_zero(network: Network, node: Node, sides: Sides) -> bool:
    """Whether a max-pool has a position outside its input's window to select wherever it stands outside its own."""
    op, source = node.op, network.nodes[node.inputs[0]]
    if not isinstance(op, MaxPool):
        return False
    for axis, (side, stride) in enumerate(zip(sides, op.stride, strict=True)):
        fine, extent = side * stride, source.shape[axis + 1]
        for position in range(node.shape[axis + 1], side):
            start = position * stride - op.padding[axis][0]
            reads = ((start + op.dilation[axis] * tap) % fine for tap in range(op.kernel[axis]))
            if not any(read >= extent for read in reads):
                return False
    return True
