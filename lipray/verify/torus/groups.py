"""Groups of frequencies that alias together: the independent sub-problems of a network on tori.

A frequency of the coarsest torus and all finer ones that alias to it form a group; no two groups meet
before the dense tail. Since the weights are real, Q(-ω) is the conjugate of Q(ω): half of the coarse frequencies
are enough, those that are their own negative counted once and the others twice.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from lipray.verify.torus.layout import Sides
from lipray.verify.torus.symbols import Frequencies

Group = tuple[int, ...]
"""Indices of a coarse frequency, one per axis."""


def half_plane(sides: Sides) -> tuple[tuple[Group, int], ...]:
    """The coarse frequencies up to sign, and how often each counts."""
    chosen: dict[Group, int] = {}
    for index in itertools.product(*(range(side) for side in sides)):
        negative = tuple(-k % side for k, side in zip(index, sides, strict=True))
        if negative not in chosen:
            chosen[index] = 1
        elif negative != index:
            chosen[negative] = 2
    return tuple(chosen.items())


def frequencies_of(groups: Sequence[Group], sides: Sequence[Sides]) -> tuple[Frequencies, ...]:
    """The groups' frequencies on every level, finest first.

    Those that alias to one frequency of the next level stand next to each other.
    """
    axes = range(len(sides[-1]))
    index = [torch.tensor([group[axis] for group in groups], dtype=torch.int64) for axis in axes]
    levels = [tuple(index)]
    for finer, coarser in zip(reversed(sides[:-1]), reversed(sides[1:]), strict=True):
        shifts = list(itertools.product(*(range(a // b) for a, b in zip(finer, coarser, strict=True))))
        index = [
            (index[axis][:, None] + coarser[axis] * torch.tensor([s[axis] for s in shifts])).reshape(-1)
            for axis in axes
        ]
        levels.append(tuple(index))
    return tuple(reversed(levels))
