"""Groups of frequencies through the whole torus part: one map step of a frequency bound.

A sweep takes a bundle of groups and the multipliers of all layers, carries the shape matrices from the
finest torus to the coarsest, and returns what the reducer adds up: the rows' share of Q behind a head, or the largest
eigenvalue of the output map's shape matrices. It depends on its arguments only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lipray.model.network import Network
from lipray.verify.spectral import largest_eigenvalues_bound
from lipray.verify.torus.elimination import eliminate_level
from lipray.verify.torus.groups import Group, frequencies_of
from lipray.verify.torus.head import Head, read
from lipray.verify.torus.layout import PIECE_ENTRIES, Torus
from lipray.verify.torus.levels import Crossing, crossings, lower_level
from lipray.verify.torus.symbols import Frequencies

COMPLEX = 16
"""Bytes of a complex128."""

STAGE_CHANNELS = 600
"""Channels up to which the largest eigenvalue at the end of a level is worked out for the report."""


@dataclass(frozen=True, slots=True)
class TorusProblem:
    """A network's torus part: the layout, what crosses each level, the layers' names and widths, and the head.

    ``names[l]`` and ``widths[l]`` list the activation layers of level l; multipliers are one vector per layer, levels
    in order.
    """

    network: Network
    torus: Torus
    handed: tuple[tuple[Crossing, ...], ...]
    names: tuple[tuple[str, ...], ...]
    widths: tuple[tuple[int, ...], ...]
    head: Head | None

    @property
    def sizes(self) -> tuple[int, ...]:
        """Length of every multiplier vector."""
        return tuple(width for level in self.widths for width in level)


@dataclass(frozen=True, slots=True)
class Share:
    """What a bundle contributes: ``gram`` (R, R) behind a head with the 2-norm of its rounding error, or ``top``.

    ``top`` is at least the largest eigenvalue of the output map's shape matrices. ``loads`` says how much each group
    matters: its trace in ``gram``, or its own largest eigenvalue (an estimate). ``stages``: where proven, the largest
    eigenvalue at the end of every level, the square of a bound of the map up to there (infinite where not worked out).
    """

    gram: torch.Tensor | None
    error: float
    top: float
    loads: torch.Tensor
    stages: tuple[float, ...]


def pose(network: Network, torus: Torus, head: Head | None) -> TorusProblem:
    """Set up the torus part of a network."""
    handed = crossings(network, torus)
    names, widths = [], []
    zero = tuple(torch.zeros(1, dtype=torch.int64) for _ in torus.coarse)
    for index in range(len(torus.sides)):
        level = lower_level(network, torus, handed, index, zero)
        names.append(tuple(layer.name for layer in level.layers))
        widths.append(level.widths)
    return TorusProblem(network, torus, handed, tuple(names), tuple(widths), head)


def sweep(
    problem: TorusProblem,
    groups: Sequence[tuple[Group, int]],
    multipliers: Sequence[torch.Tensor],
    *,
    proof: bool,
) -> Share | None:
    """Carry a bundle through the torus part; ``None`` if the multipliers are not (provably) feasible there.

    Args:
        problem: the torus part.
        groups: coarse frequencies with their counts.
        multipliers: λ of every layer, levels in order.
        proof: whether rounding is included, so that the share is an upper bound.
    """
    per_level = by_level(problem, multipliers)
    sides = problem.torus.sides
    frequencies = frequencies_of([group for group, _ in groups], sides)
    shape: torch.Tensor | None = None
    stages = []
    for index in range(len(sides)):
        carried = carry(problem, index, frequencies, shape, per_level[index], proof=proof)
        if carried is None:
            return None
        shape = carried
        if proof:
            last = index == len(sides) - 1 and problem.head is None
            known = last or shape.shape[-1] <= STAGE_CHANNELS
            stages.append(largest_eigenvalues_bound(shape) if known else math.inf)
    assert shape is not None  # noqa: S101 (there is at least one level)
    counts = torch.tensor([count for _, count in groups], dtype=torch.float64)
    if problem.head is None:
        loads = estimated_tops(shape)
        top = stages[-1] if stages else _estimated_top(shape, loads)
        return Share(None, 0.0, top, loads, tuple(stages))
    gram, error, loads = read(problem.head, shape, counts, frequencies[-1], sides[-1])
    return Share(gram, error, 0.0, loads, tuple(stages))


def by_level(problem: TorusProblem, multipliers: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
    """The multipliers of each level."""
    flat = iter(multipliers)
    return [[next(flat) for _ in level] for level in problem.widths]


def carry(
    problem: TorusProblem,
    index: int,
    frequencies: tuple[Frequencies, ...],
    shape: torch.Tensor | None,
    multipliers: Sequence[torch.Tensor],
    *,
    proof: bool,
) -> torch.Tensor | None:
    """From the shape matrices that enter a level to those that enter the next (leave the torus, for the last)."""
    folded = problem.torus.folded(index)
    own = frequencies[index]
    total = own[0].shape[0] // folded
    step = chunk(problem, index, folded)
    pieces = []
    for start in range(0, total, step):
        part = slice(start * folded, (start + step) * folded)
        level = lower_level(problem.network, problem.torus, problem.handed, index, tuple(axis[part] for axis in own))
        entering = None if shape is None else shape[part]
        factor = eliminate_level(level, entering, multipliers, folded=folded, proof=proof)
        if factor is None:
            return None
        pieces.append(factor.gram)
    return torch.cat(pieces)


def chunk(problem: TorusProblem, index: int, folded: int, *, keep: bool = False) -> int:
    """How many of the next level's frequencies are formed at a time: fewer where a level is deep, or factors stay."""
    entries = level_entries(problem, index) + (kept_entries(problem, index) if keep else 0.0)
    return max(1, int(PIECE_ENTRIES // (entries * folded)))


def kept_entries(problem: TorusProblem, index: int) -> float:
    """Complex entries that the factor of one frequency of a level takes, and what pulling back through it needs."""
    widths = problem.widths[index]
    return sum(4.0 * width * max(widths) for width in widths)


def level_entries(problem: TorusProblem, index: int) -> float:
    """Complex entries one frequency takes while a level is worked on: its maps, the factor's front, the outputs."""
    widths = problem.widths[index]
    entering = entering_channels(problem, index)
    leaving = sum(crossing.channels for crossing in problem.handed[index])
    largest = max([*widths, entering])
    return sum(width * largest for width in widths) + 6.0 * largest**2 + 2.0 * leaving * largest + leaving**2


def group_bytes(problem: TorusProblem, *, keep: bool = False) -> float:
    """Bytes that one group of frequencies takes on its way through the torus part (an estimate).

    Without ``keep`` only the shape matrices that enter the levels: ``PIECE_ENTRIES`` bounds what comes on top.
    """
    held = 0.0
    for index in range(len(problem.widths)):
        entering = entering_channels(problem, index) if index else 0
        entries = float(entering**2)
        if keep:
            entries += kept_entries(problem, index) + level_entries(problem, index)
        held += COMPLEX * folded_in(problem, index) * entries
    return max(held, 1.0)


def folded_in(problem: TorusProblem, index: int) -> float:
    """Frequencies of a level per group."""
    return math.prod(problem.torus.sides[index]) / math.prod(problem.torus.sides[-1])


def entering_channels(problem: TorusProblem, index: int) -> int:
    """Channels of all parts that enter a level."""
    if index == 0:
        return problem.network.nodes[0].shape[0]
    return sum(crossing.channels for crossing in problem.handed[index - 1])


def _estimated_top(shape: torch.Tensor, loads: torch.Tensor) -> float:
    """Estimate the largest eigenvalue of a batch: that of the matrices where it is likely to be."""
    likely = torch.topk(loads, min(2, loads.numel())).indices
    return float(torch.linalg.eigvalsh(shape[likely]).max())


def estimated_tops(shape: torch.Tensor, steps: int = 30) -> torch.Tensor:
    """Estimate the largest eigenvalues of a batch, from below."""
    size = shape.shape[-1]
    if size <= 16:
        # Of a matrix that is Hermitian up to rounding the lower half is read.
        values: torch.Tensor = torch.linalg.eigvalsh(shape)[:, -1]
        return values
    generator = torch.Generator("cpu").manual_seed(0)
    vector = torch.randn(1, size, 1, dtype=torch.float64, generator=generator, device="cpu").to(shape)
    vector = vector.expand(shape.shape[0], -1, -1)
    norm = torch.ones(shape.shape[0], 1, 1, dtype=torch.float64)
    for _ in range(steps):
        vector = shape @ vector
        norm = torch.linalg.vector_norm(vector, dim=1, keepdim=True)
        vector = vector / norm.clamp(min=1e-300)
    return norm[:, 0, 0]
