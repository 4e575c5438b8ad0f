"""One way to bound a network on tori: where it leaves them, what follows, and how the frequencies are bundled."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lipray.certify.elimination import Blocks
from lipray.certify.frequency.bundle import Bundle
from lipray.certify.frequency.groups import Group, frequencies_of, half_plane
from lipray.certify.frequency.head import find_head
from lipray.certify.frequency.sweep import TorusProblem, entering_channels, kept_entries, level_entries, pose
from lipray.certify.frequency.tail import tail_blocks
from lipray.model.network import Network
from lipray.partition.torus import lay_out
from lipray.partition.torus_cost import SHARE_OF_MEMORY

Multipliers = tuple[np.ndarray, ...]

COMPLEX = 16
"""Bytes of a complex128."""


EFFICIENT = 2**17
"""Entries of a batch of matrices from which on its operations hardly wait for Python (measured)."""


@dataclass(frozen=True, slots=True)
class Setup:
    """The torus part of a network, its independent groups, and the dense tail after its head (``None``: no head).

    ``window``: the torus is left for the window, entry by entry (the hybrid method). Multipliers are those of the
    torus' layers, then those of the tail's.
    """

    network: Network
    window: bool
    problem: TorusProblem
    groups: tuple[tuple[Group, int], ...]
    tail: Blocks | None
    tail_names: tuple[str, ...]

    @property
    def cut(self) -> int:
        """The last node on the torus."""
        return self.problem.torus.cut

    @property
    def sizes(self) -> tuple[int, ...]:
        """Lengths of all multiplier vectors: per channel on the torus, per neuron in the tail."""
        return self.problem.sizes + (() if self.tail is None else self.tail.widths)

    def split(self, multipliers: Sequence[np.ndarray]) -> tuple[Multipliers, Multipliers]:
        """The torus' multipliers and the tail's."""
        count = len(self.problem.sizes)
        return tuple(multipliers[:count]), tuple(multipliers[count:])


def set_up(network: Network, cut: int | None = None, *, window: bool = False) -> Setup:
    """Lay a network out on tori up to ``cut`` (by default as far as they go).

    Raises:
        PlanError: there is no torus for it.
    """
    torus = lay_out(network, cut)
    head = find_head(network, torus, window=window)
    problem = pose(network, torus, head)
    tail, names = (None, ()) if head is None else tail_blocks(network, head.node)
    return Setup(network, window, problem, half_plane(torus.coarse), tail, names)


def bundles(setup: Setup, multipliers: Sequence[np.ndarray], kind: str, *, memory: int, workers: int) -> list[Bundle]:
    """Cut the groups into bundles that fit ``memory`` each, and at least ``workers`` of them where work is plenty."""
    allowed, count = memory / SHARE_OF_MEMORY, len(setup.groups)
    keep = kind == "gradient" and _worth_keeping(setup.problem, allowed / group_bytes(setup.problem, keep=True), count)
    most = max(1, int(allowed / group_bytes(setup.problem, keep=keep)))
    pieces = max(-(-count // most), min(workers, count))
    if workers > 1 and pieces > workers:
        pieces = -(-pieces // workers) * workers
    ends = [round(count * i / min(pieces, count)) for i in range(min(pieces, count) + 1)]
    return [
        Bundle(setup.network, setup.cut, setup.window, setup.groups[a:b], tuple(multipliers), kind, keep=keep)
        for a, b in itertools.pairwise(ends)
        if b > a
    ]


def _worth_keeping(problem: TorusProblem, fitting: float, count: int) -> bool:
    """Whether factors are kept for a gradient, when so many of the ``count`` groups fit one bundle with them.

    Bundles of few small matrices take longer than working the factors out again.
    """
    if fitting >= count:
        return True
    most = max(_folded(problem, index) * max(widths, default=0) ** 2 for index, widths in enumerate(problem.widths))
    return fitting >= 1.0 and int(fitting) * most >= EFFICIENT


def group_bytes(problem: TorusProblem, *, keep: bool) -> float:
    """Bytes that one group of frequencies takes on its way through the torus part (an estimate).

    Without ``keep`` only the shape matrices that enter the levels: ``PIECE_ENTRIES`` bounds what comes on top.
    """
    held = 0.0
    for index in range(len(problem.widths)):
        entering = entering_channels(problem, index) if index else 0
        entries = float(entering**2)
        if keep:
            entries += kept_entries(problem, index) + level_entries(problem, index)
        held += COMPLEX * _folded(problem, index) * entries
    return max(held, 1.0)


def sample(setup: Setup, memory: int) -> tuple[tuple[Group, int], ...]:
    """Groups to choose the closed form on: all where they are few, otherwise a spread that includes ω = 0."""
    problem = setup.problem
    entries = [_folded(problem, index) * level_entries(problem, index) for index in range(len(problem.widths))]
    most = max(1, int(memory / SHARE_OF_MEMORY / (COMPLEX * max(entries))))
    most = min(most, max(MOST_SAMPLED, len(setup.groups) // 4))
    if len(problem.torus.sides) == 1:
        most = min(max(1, int(memory / SHARE_OF_MEMORY / (COMPLEX * max(entries)))), len(setup.groups))
    step = len(setup.groups) / min(most, len(setup.groups))
    return tuple(setup.groups[int(i * step)] for i in range(min(most, len(setup.groups))))


def _folded(problem: TorusProblem, index: int) -> float:
    """Frequencies of a level per group."""
    return math.prod(problem.torus.sides[index]) / math.prod(problem.torus.sides[-1])


MOST_SAMPLED = 3
"""Groups the closed form is chosen on where not all fit: each holds frequencies from all over the finer tori."""


def frequencies(setup: Setup) -> tuple[tuple[torch.Tensor, ...], ...]:
    """All frequencies of every level."""
    return frequencies_of([group for group, _ in setup.groups], setup.problem.torus.sides)
