"""Multipliers to start from: the closed form on the torus and in the tail, or another set-up's answer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lipray.certify.frequency.closed_form import closed_form, sample
from lipray.certify.frequency.objective import close
from lipray.verify.torus.proof import Means, Multipliers, Proven, Setup, perform

ROUNDS = 8
"""How often groups that refuse the closed form join those it is chosen on."""


def closed_start(setup: Setup, means: Means) -> Proven | None:
    """The closed form, proven: T = λmax·I per layer, over a sample of groups, and then over those that refuse it too.

    Returns:
        The bound and its multipliers λ; ``None`` if they could not be proven.
    """
    chosen = sample(setup, means.memory)
    known = set(chosen)
    for _ in range(ROUNDS):
        torus = tuple(lam.numpy() for lam in closed_form(setup.problem, chosen))
        if len(torus) != len(setup.problem.sizes):
            return None
        batch, results = perform(setup, torus, means)
        refused = [bundle for bundle, result in zip(batch, results, strict=True) if not result.feasible]
        if not refused:
            return close(setup, torus, results)
        # Always some that were not looked at yet, twice as many every time: the sample may not be refused itself.
        fresh = [group for bundle in refused for group in bundle.groups if group not in known]
        if not fresh:
            return None
        known.update(fresh[:: max(1, len(fresh) // max(2, len(known)))])
        chosen = tuple(group for group in setup.groups if group in known)
    return None


def tied_start(setup: Setup, other: Setup, multipliers: Sequence[np.ndarray], base: Multipliers) -> Multipliers:
    """Another set-up's multipliers for this one: every position of a window takes its channel's.

    Layers are matched by name and order; one without a counterpart takes the closed form's, ``base``.
    """
    given = _by_name(other, multipliers)
    result = []
    for name, size, own in zip(setup.names, setup.sizes, base, strict=True):
        queue = given.get(name, [])
        lam = queue.pop(0) if queue else None
        if lam is None or size % len(lam) or (size < len(lam)):
            result.append(own)
        else:
            result.append(np.repeat(lam, size // len(lam)))
    return tuple(result)


def _by_name(setup: Setup, multipliers: Sequence[np.ndarray]) -> dict[str, list[np.ndarray]]:
    found: dict[str, list[np.ndarray]] = {}
    for name, lam in zip(setup.names, multipliers, strict=True):
        found.setdefault(name, []).append(lam)
    return found
