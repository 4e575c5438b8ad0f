"""Which groups of frequencies an optimiser works on: the few that decide.

Behind a head the groups' shares of Q add up, and most of the sum comes from a few (from ω = 0 alone behind a
global average pool); for an output map only the largest counts. The optimiser works on those and holds the others'
share fixed; its answer is proven on all groups, mixed with the closed form where some refuse it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from lipray.certify.frequency.bundle import in_place
from lipray.certify.frequency.objective import Working
from lipray.verify.torus.layout import SHARE_OF_MEMORY
from lipray.verify.torus.proof import Means, Proven, Setup, perform
from lipray.verify.torus.sweep import group_bytes

COVERED = 0.9
"""Share of the trace of Q that the working groups cover at the start."""

NEAR = 0.5
"""For an output map: groups whose largest eigenvalue is at least this share of the largest."""

WORTHWHILE = 2e9
"""Below this many complex products per round all groups are worked on."""


def choose_working(setup: Setup, known: Proven, means: Means) -> Working:
    """The working groups: the weightiest at the known multipliers."""
    order = np.argsort(-known.loads, kind="stable")
    if round_work(setup) < WORTHWHILE:
        chosen = set(range(len(setup.groups)))
    elif setup.tail is None:
        chosen = {int(i) for i in order if known.loads[i] >= NEAR * known.loads[order[0]]}
    else:
        covered = np.cumsum(known.loads[order])
        chosen = {int(i) for i in order[: 1 + int(np.searchsorted(covered, COVERED * covered[-1]))]}
    groups = tuple(setup.groups[i] for i in sorted(chosen))
    part = replace(setup, groups=groups)
    local = means.spread is in_place
    kept = local and group_bytes(setup.problem, keep=True) * len(groups) <= means.memory / SHARE_OF_MEMORY
    rest: torch.Tensor | None = None
    if known.rows is not None and len(groups) < len(setup.groups):
        torus, _ = setup.split(known.multipliers)
        _, results = perform(part, torus, means, proof=False)
        own = sum(torch.from_numpy(result.gram) for result in results if result.gram is not None)
        # What is left is positive semidefinite but for rounding; the factorisation raises it as needed.
        rest = known.rows - own
    return Working(part, rest, kept and setup.tail is not None)


def round_work(setup: Setup) -> float:
    """Complex multiplications of one round over all groups, roughly."""
    work = 0.0
    for index, widths in enumerate(setup.problem.widths):
        folded = np.prod(setup.problem.torus.sides[index]) / np.prod(setup.problem.torus.sides[-1])
        work += 10.0 * folded * sum(float(width) ** 3 for width in widths)
    return work * len(setup.groups)
