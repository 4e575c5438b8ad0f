"""Multipliers to start from: the closed form on the torus and in the tail, or another set-up's answer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from lipray.certify import elimination
from lipray.certify.frequency.objective import LostBundle, Means
from lipray.certify.frequency.setup import Multipliers, Setup, bundles, sample
from lipray.certify.frequency.sweep import closed_form
from lipray.certify.frequency.tail import factor_of, with_input


def closed_start(setup: Setup, means: Means) -> Multipliers | None:
    """λ of the closed form: T = λmax·I per layer, over a sample of groups, then over those that refuse it too."""
    chosen = sample(setup, means.memory)
    known = set(chosen)
    for _ in range(4):
        torus = tuple(lam.numpy() for lam in closed_form(setup.problem, chosen))
        if len(torus) != len(setup.problem.sizes):
            return None
        if setup.tail is None and len(chosen) == len(setup.groups):
            return torus
        batch = bundles(setup, torus, "value", memory=means.memory, workers=means.workers)
        results = means.spread(batch)
        if any(result is None for result in results):
            raise LostBundle("bundles were lost while the closed form was chosen")
        refused = [bundle for bundle, result in zip(batch, results, strict=True) if result and not result.feasible]
        if not refused:
            break
        known |= {bundle.groups[len(bundle.groups) // 2] for bundle in refused[:2]}
        chosen = tuple(group for group in setup.groups if group in known)
    else:
        return None
    if setup.tail is None:
        return torus
    gram = sum(torch.from_numpy(result.gram) for result in results if result and result.gram is not None)
    assert isinstance(gram, torch.Tensor)  # noqa: S101 (a head gives grams)
    tail = elimination.closed_form(with_input(setup.tail, factor_of(gram, 0.0), proof=False))
    return (*torus, *tail) if len(tail) == setup.tail.depth else None


def tied_start(setup: Setup, other: Setup, multipliers: Sequence[np.ndarray], base: Multipliers) -> Multipliers:
    """Another set-up's multipliers for this one: every position of a window takes its channel's.

    Layers are matched by name and order; one without a counterpart takes the closed form's, ``base``.
    """
    given = _by_name(other, multipliers)
    result = []
    for name, size, own in zip(_names(setup), setup.sizes, base, strict=True):
        queue = given.get(name, [])
        lam = queue.pop(0) if queue else None
        if lam is None or size % len(lam) or (size < len(lam)):
            result.append(own)
        else:
            result.append(np.repeat(lam, size // len(lam)))
    return tuple(result)


def _names(setup: Setup) -> tuple[str, ...]:
    return (*(name for level in setup.problem.names for name in level), *setup.tail_names)


def _by_name(setup: Setup, multipliers: Sequence[np.ndarray]) -> dict[str, list[np.ndarray]]:
    found: dict[str, list[np.ndarray]] = {}
    for name, lam in zip(_names(setup), multipliers, strict=True):
        found.setdefault(name, []).append(lam)
    return found
