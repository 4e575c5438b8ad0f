"""One task of one round: a bundle of frequency groups through the torus part, for given multipliers.

The optimiser's step is one map over bundles and one reduce. A bundle is a value and its result depends
on nothing else, so that a lost worker costs one bundle of one round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from lipray.certify.frequency.elimination import LevelFactor, eliminate_level
from lipray.certify.frequency.gradient import pull_back_level
from lipray.certify.frequency.groups import Group, aliases, frequencies_of
from lipray.certify.frequency.head import find_head, pull_back, read
from lipray.certify.frequency.levels import Level, lower_level
from lipray.certify.frequency.sweep import TorusProblem, by_level, pose, sweep
from lipray.model.network import Network
from lipray.partition.torus import lay_out

KEPT_SLICES = 1e-10
"""Share of the largest weight below which a frequency is left out of a gradient."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """Groups of frequencies, and what is asked of them.

    ``kind``: "bound" for a share with rounding included, "value" without, "gradient" for the derivative too.
    ``directions`` (R, r), behind a head, weighs the rows' shape matrix by D Dᵀ. For an output map the objective is
    Σ tr(Γ(ω) / reference)^power.
    """

    network: Network
    cut: int
    window: bool
    groups: tuple[tuple[Group, int], ...]
    multipliers: tuple[np.ndarray, ...]
    kind: str
    directions: np.ndarray | None = None
    power: float = 1.0
    reference: float = 1.0
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class BundleResult:
    """What a bundle contributes; ``feasible`` is false where M is not (provably) positive definite.

    ``gram`` (R, R) and ``error`` behind a head; ``top`` and ``total`` for an output map; ``gradient`` in λ, stacked.
    """

    feasible: bool
    gram: np.ndarray | None = None
    error: float = 0.0
    top: float = 0.0
    total: float = 0.0
    gradient: np.ndarray | None = None


Spread = Callable[[Sequence[Bundle]], Sequence[BundleResult | None]]
"""Performs bundles somewhere, results in order; ``None`` for one that was lost for good."""


def in_place(bundles: Sequence[Bundle]) -> list[BundleResult | None]:
    """Perform bundles one after the other, here."""
    return [perform_bundle(bundle) for bundle in bundles]


def perform_bundle(bundle: Bundle) -> BundleResult:
    """Do the work of one bundle."""
    problem = _problem(bundle.network, bundle.cut, bundle.window)
    multipliers = [torch.from_numpy(np.asarray(lam, dtype=np.float64)) for lam in bundle.multipliers]
    if bundle.kind == "gradient":
        return _with_gradient(bundle, problem, multipliers)
    share = sweep(problem, bundle.groups, multipliers, proof=bundle.kind == "bound")
    if share is None:
        return BundleResult(feasible=False)
    gram = None if share.gram is None else share.gram.numpy()
    return BundleResult(True, gram, share.error, share.top)


class _ById:
    """A network hashed by identity, for the cache of what is derived from it."""

    __slots__ = ("network",)

    def __init__(self, network: Network) -> None:
        self.network = network

    def __hash__(self) -> int:
        return id(self.network)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ById) and other.network is self.network


def _problem(network: Network, cut: int, window: bool) -> TorusProblem:  # noqa: FBT001 (a cache key)
    return _posed(_ById(network), cut, window)


@lru_cache(maxsize=4)
def _posed(key: _ById, cut: int, window: bool) -> TorusProblem:  # noqa: FBT001 (a cache key)
    torus = lay_out(key.network, cut)
    return pose(key.network, torus, find_head(key.network, torus, window=window))


def _with_gradient(bundle: Bundle, problem: TorusProblem, multipliers: list[torch.Tensor]) -> BundleResult:
    sides = problem.torus.sides
    per_level = by_level(problem, multipliers)
    frequencies = frequencies_of([group for group, _ in bundle.groups], sides)
    kept: list[tuple[Level, LevelFactor, torch.Tensor | None, int]] = []
    shape: torch.Tensor | None = None
    for index in range(len(sides)):
        level = lower_level(problem.network, problem.torus, problem.handed, index, frequencies[index])
        folded = aliases(sides[index], sides[index + 1]) if index + 1 < len(sides) else 1
        factor = eliminate_level(level, shape, per_level[index], folded=folded, proof=False, keep=True)
        if factor is None:
            return BundleResult(feasible=False)
        kept.append((level, factor, shape, folded))
        shape = factor.gram
    assert shape is not None  # noqa: S101 (there is at least one level)
    gram, top, total = None, 0.0, 0.0
    if problem.head is not None:
        assert bundle.directions is not None  # noqa: S101 (the caller's part)
        counts = torch.tensor([count for _, count in bundle.groups], dtype=torch.float64)
        gram = read(problem.head, shape, counts, frequencies[-1], sides[-1])[0].numpy()
        directions = pull_back(problem.head, torch.from_numpy(bundle.directions), frequencies[-1], sides[-1])
        directions = directions * counts.sqrt()[:, None, None]
    else:
        values, vectors = torch.linalg.eigh(shape)
        top = float(values.max())
        relative = (values / bundle.reference).clamp(min=0.0)
        total = float((relative**bundle.power).sum())
        weights = bundle.power * relative ** (bundle.power - 1.0) / bundle.reference
        strong = weights > KEPT_SLICES * float(weights.max())
        columns = max(1, int(strong.sum(dim=1).max()))
        directions = vectors[:, :, -columns:] * weights[:, None, -columns:].sqrt()
    pieces: list[list[torch.Tensor]] = []
    for level, factor, entered, folded in reversed(kept):
        gradients, directions = pull_back_level(level, factor, entered, directions, folded)
        pieces.insert(0, gradients)
    flat = [part for gradients in pieces for part in gradients]
    gradient = torch.cat(flat).numpy() if flat else np.zeros(0)
    return BundleResult(True, gram, 0.0, top, total, gradient)
