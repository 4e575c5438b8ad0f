"""One task of one round: a bundle of frequency groups through the torus part, for given multipliers.

The optimiser's step is one map over bundles and one reduce. A bundle is a value and its result depends
on nothing else, so that a lost worker costs one bundle of one round.
"""

from __future__ import annotations

import contextlib
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
from lipray.certify.frequency.symbols import Frequencies, on_device
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
    ``loads`` and ``stages`` are those of ``lipray.certify.frequency.sweep.Share``.
    """

    feasible: bool
    gram: np.ndarray | None = None
    error: float = 0.0
    top: float = 0.0
    total: float = 0.0
    gradient: np.ndarray | None = None
    loads: np.ndarray | None = None
    stages: tuple[float, ...] = ()


Spread = Callable[[Sequence[Bundle]], Sequence[BundleResult | None]]
"""Performs bundles somewhere, results in order; ``None`` for one that was lost for good."""


def in_place(bundles: Sequence[Bundle]) -> list[BundleResult | None]:
    """Perform bundles one after the other, here."""
    return [perform_bundle(bundle) for bundle in bundles]


def perform_bundle(bundle: Bundle) -> BundleResult:
    """Do the work of one bundle, on its device."""
    # The context costs some time at every call of torch, so that it is only entered where it does something.
    with contextlib.nullcontext() if bundle.device == "cpu" else torch.device(bundle.device):
        return _perform(bundle)


def _perform(bundle: Bundle) -> BundleResult:
    if bundle.kind == "gradient":
        return _with_gradient(bundle)
    problem = _problem(bundle)
    multipliers = [on_device(lam) for lam in bundle.multipliers]
    share = sweep(problem, bundle.groups, multipliers, proof=bundle.kind == "bound")
    if share is None:
        return BundleResult(feasible=False)
    gram = None if share.gram is None else share.gram.cpu().numpy()
    return BundleResult(True, gram, share.error, share.top, loads=share.loads.cpu().numpy(), stages=share.stages)


class _ById:
    """A network hashed by identity, for the cache of what is derived from it."""

    __slots__ = ("network",)

    def __init__(self, network: Network) -> None:
        self.network = network

    def __hash__(self) -> int:
        return id(self.network)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ById) and other.network is self.network


def _problem(bundle: Bundle) -> TorusProblem:
    return _posed(_ById(bundle.network), bundle.cut, bundle.window, bundle.device)


@lru_cache(maxsize=4)
def _posed(key: _ById, cut: int, window: bool, device: str) -> TorusProblem:  # noqa: ARG001 (a cache key)
    torus = lay_out(key.network, cut)
    return pose(key.network, torus, find_head(key.network, torus, window=window))


@dataclass(frozen=True, slots=True)
class Forward:
    """A bundle carried through the torus part with everything kept that its gradient needs.

    ``kept`` holds, per level, the level, its factor, the shape matrices that entered and the aliases folded.
    """

    bundle: Bundle
    problem: TorusProblem
    kept: tuple[tuple[Level, LevelFactor, torch.Tensor | None, int], ...]
    shape: torch.Tensor
    frequencies: Frequencies
    counts: torch.Tensor

    def gram(self) -> torch.Tensor:
        """The rows' share of Q."""
        assert self.problem.head is not None  # noqa: S101 (the caller's part)
        return read(self.problem.head, self.shape, self.counts, self.frequencies, self.problem.torus.coarse)[0]


def forward(bundle: Bundle) -> Forward | None:
    """Carry a bundle through the torus part; ``None`` where infeasible."""
    problem = _problem(bundle)
    multipliers = [on_device(lam) for lam in bundle.multipliers]
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
            return None
        kept.append((level, factor, shape, folded))
        shape = factor.gram
    assert shape is not None  # noqa: S101 (there is at least one level)
    counts = torch.tensor([count for _, count in bundle.groups], dtype=torch.float64)
    return Forward(bundle, problem, tuple(kept), shape, frequencies[-1], counts)


def backward(carried: Forward, directions: torch.Tensor) -> torch.Tensor:
    """Gradient in λ, stacked, of <D Dᵀ, Q> behind a head."""
    head = carried.problem.head
    assert head is not None  # noqa: S101 (the caller's part)
    pulled = pull_back(head, directions, carried.frequencies, carried.problem.torus.coarse)
    return _backward(carried, pulled * carried.counts.sqrt()[:, None, None])


def _backward(carried: Forward, directions: torch.Tensor) -> torch.Tensor:
    pieces: list[list[torch.Tensor]] = []
    for level, factor, entered, folded in reversed(carried.kept):
        gradients, directions = pull_back_level(level, factor, entered, directions, folded)
        pieces.insert(0, gradients)
    flat = [part for gradients in pieces for part in gradients]
    return torch.cat(flat) if flat else torch.zeros(0, dtype=torch.float64)


def _with_gradient(bundle: Bundle) -> BundleResult:
    carried = forward(bundle)
    if carried is None:
        return BundleResult(feasible=False)
    if carried.problem.head is not None:
        assert bundle.directions is not None  # noqa: S101 (the caller's part)
        gradient = backward(carried, on_device(bundle.directions))
        return BundleResult(True, carried.gram().cpu().numpy(), gradient=gradient.cpu().numpy())
    values, vectors = torch.linalg.eigh(carried.shape)
    relative = (values / bundle.reference).clamp(min=0.0)
    weights = bundle.power * relative ** (bundle.power - 1.0) / bundle.reference
    strong = weights > KEPT_SLICES * float(weights.max())
    columns = max(1, int(strong.sum(dim=1).max()))
    directions = vectors[:, :, -columns:] * weights[:, None, -columns:].sqrt()
    total = float((relative**bundle.power).sum())
    return BundleResult(
        True, top=float(values.max()), total=total, gradient=_backward(carried, directions).cpu().numpy()
    )
