"""A closed form of multipliers on tori, chosen on a sample of frequencies."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lipray.verify.torus.elimination import eliminate_level
from lipray.verify.torus.groups import Group, frequencies_of
from lipray.verify.torus.layout import SHARE_OF_MEMORY
from lipray.verify.torus.levels import lower_level
from lipray.verify.torus.proof import Setup
from lipray.verify.torus.sweep import TorusProblem, estimated_tops, folded_in, level_entries

COMPLEX = 16
"""Bytes of a complex128."""

MOST_SAMPLED = 3
"""Groups the closed form is chosen on where not all fit: each holds frequencies from all over the finer tori."""


def sample(setup: Setup, memory: int) -> tuple[tuple[Group, int], ...]:
    """Groups to choose the closed form on: all where they are few, otherwise a spread that includes ω = 0."""
    problem = setup.problem
    entries = [folded_in(problem, index) * level_entries(problem, index) for index in range(len(problem.widths))]
    most = max(1, int(memory / SHARE_OF_MEMORY / (COMPLEX * max(entries))))
    most = min(most, max(MOST_SAMPLED, len(setup.groups) // 4))
    if len(problem.torus.sides) == 1:
        most = min(max(1, int(memory / SHARE_OF_MEMORY / (COMPLEX * max(entries)))), len(setup.groups))
    step = len(setup.groups) / min(most, len(setup.groups))
    return tuple(setup.groups[int(i * step)] for i in range(min(most, len(setup.groups))))


def closed_form(problem: TorusProblem, groups: Sequence[tuple[Group, int]]) -> tuple[torch.Tensor, ...]:
    """λ of a closed form, layer by layer, over the frequencies of some groups.

    T = D^(1/4) λmax(D^(-1/4) Q D^(-1/4)) D^(1/4), D the diagonal of the mean of Q over the frequencies: half way
    between ECLipsE-Fast's λmax(Q)·I (Xu & Sivaranjani 2024) and a full scaling by D, and better than either on
    trained networks (by a fifth on a ResNet-18). Feasible on these groups, and on all as long as no scaled shape
    matrix elsewhere is twice as large.
    """
    sides = problem.torus.sides
    frequencies = frequencies_of([group for group, _ in groups], sides)
    shape: torch.Tensor | None = None
    chosen: list[torch.Tensor] = []
    for index in range(len(sides)):
        level = lower_level(problem.network, problem.torus, problem.handed, index, frequencies[index])
        folded = problem.torus.folded(index)
        factor = eliminate_level(level, shape, _chosen, folded=folded, proof=False)
        if factor is None:
            return ()
        shape = factor.gram
        chosen.extend(factor.multipliers)
    return tuple(chosen)


def _chosen(_: int, shape: torch.Tensor) -> torch.Tensor:
    """Give λ = 1 / T of the closed form; 1 for a layer that never moves."""
    diagonal = shape.diagonal(dim1=-2, dim2=-1).real.mean(dim=0)
    diagonal = diagonal.clamp(min=1e-12 * float(diagonal.max()))
    if not bool((diagonal > 0.0).all()):
        return torch.ones(shape.shape[-1], dtype=torch.float64)
    root = diagonal.rsqrt().sqrt().to(shape.dtype)
    top = float(estimated_tops(shape * root[:, None] * root).max()) * 1.0001
    return 1.0 / (top * diagonal.sqrt())
