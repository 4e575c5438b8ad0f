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
from lipray.certify.frequency.groups import Group, frequencies_of
from lipray.certify.frequency.head import find_head, pull_back, read
from lipray.certify.frequency.levels import Level, lower_level
from lipray.certify.frequency.sweep import TorusProblem, by_level, carry, chunk, pose, sweep
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
    Σ tr(Γ(ω) / reference)^power. ``keep``: whether a gradient's factors are kept until it comes back to them.
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
    keep: bool = True
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
    """A bundle carried through the torus part with what its gradient needs.

    ``entered`` holds the shape matrices that enter each level (``None``: the identity). ``factors`` has every level
    with its factor where they are kept; otherwise they are worked out again on the way back, in pieces.
    """

    bundle: Bundle
    problem: TorusProblem
    multipliers: list[list[torch.Tensor]]
    frequencies: tuple[Frequencies, ...]
    entered: tuple[torch.Tensor | None, ...]
    factors: tuple[tuple[Level, LevelFactor], ...]
    shape: torch.Tensor
    counts: torch.Tensor

    def gram(self) -> torch.Tensor:
        """The rows' share of Q."""
        assert self.problem.head is not None  # noqa: S101 (the caller's part)
        return read(self.problem.head, self.shape, self.counts, self.frequencies[-1], self.problem.torus.coarse)[0]


def forward(bundle: Bundle) -> Forward | None:
    """Carry a bundle through the torus part; ``None`` where infeasible."""
    problem = _problem(bundle)
    sides = problem.torus.sides
    multipliers = by_level(problem, [on_device(lam) for lam in bundle.multipliers])
    frequencies = frequencies_of([group for group, _ in bundle.groups], sides)
    entered: list[torch.Tensor | None] = []
    factors: list[tuple[Level, LevelFactor]] = []
    shape: torch.Tensor | None = None
    for index in range(len(sides)):
        entered.append(shape)
        if bundle.keep:
            level = lower_level(problem.network, problem.torus, problem.handed, index, frequencies[index])
            lams, folded = multipliers[index], problem.torus.folded(index)
            factor = eliminate_level(level, shape, lams, folded=folded, proof=False, keep=True)
            if factor is None:
                return None
            factors.append((level, factor))
            shape = factor.gram
        else:
            shape = carry(problem, index, frequencies, shape, multipliers[index], proof=False)
            if shape is None:
                return None
    assert shape is not None  # noqa: S101 (there is at least one level)
    counts = torch.tensor([count for _, count in bundle.groups], dtype=torch.float64)
    return Forward(bundle, problem, multipliers, frequencies, tuple(entered), tuple(factors), shape, counts)


def backward(carried: Forward, directions: torch.Tensor) -> torch.Tensor | None:
    """Gradient in λ, stacked, of <D Dᵀ, Q> behind a head; ``None`` where a factor, worked out again, fails."""
    head = carried.problem.head
    assert head is not None  # noqa: S101 (the caller's part)
    pulled = pull_back(head, directions, carried.frequencies[-1], carried.problem.torus.coarse)
    return _backward(carried, pulled * carried.counts.sqrt()[:, None, None])


def _backward(carried: Forward, directions: torch.Tensor) -> torch.Tensor | None:
    pieces: list[list[torch.Tensor]] = []
    for index in reversed(range(len(carried.entered))):
        if carried.factors:
            level, factor = carried.factors[index]
            folded = carried.problem.torus.folded(index)
            gradients, directions = pull_back_level(level, factor, carried.entered[index], directions, folded)
        else:
            again = _again(carried, index, directions)
            if again is None:
                return None
            gradients, directions = again
        pieces.insert(0, gradients)
    flat = [part for gradients in pieces for part in gradients]
    return torch.cat(flat) if flat else torch.zeros(0, dtype=torch.float64)


def _again(carried: Forward, index: int, directions: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor] | None:
    """Pull back through a level whose factor was not kept, as many frequencies at a time as a sweep takes."""
    problem, shape, lams = carried.problem, carried.entered[index], carried.multipliers[index]
    folded = problem.torus.folded(index)
    step = chunk(problem, index, folded, keep=True)
    total: list[torch.Tensor] = [torch.zeros_like(lam) for lam in lams]
    pulled = []
    for start in range(0, directions.shape[0], step):
        part = slice(start * folded, (start + step) * folded)
        own = tuple(axis[part] for axis in carried.frequencies[index])
        level = lower_level(problem.network, problem.torus, problem.handed, index, own)
        entering = None if shape is None else shape[part]
        factor = eliminate_level(level, entering, lams, folded=folded, proof=False, keep=True)
        if factor is None:
            return None
        gradients, entered = pull_back_level(level, factor, entering, directions[start : start + step], folded)
        total = [known + more for known, more in zip(total, gradients, strict=True)]
        pulled.append(entered)
    return total, torch.cat(pulled)


def _with_gradient(bundle: Bundle) -> BundleResult:
    carried = forward(bundle)
    if carried is None:
        return BundleResult(feasible=False)
    gram, top, total = None, 0.0, 0.0
    if carried.problem.head is not None:
        assert bundle.directions is not None  # noqa: S101 (the caller's part)
        gradient = backward(carried, on_device(bundle.directions))
        gram = carried.gram().cpu().numpy()
    else:
        values, vectors = torch.linalg.eigh(carried.shape)
        relative = (values / bundle.reference).clamp(min=0.0)
        weights = bundle.power * relative ** (bundle.power - 1.0) / bundle.reference
        strong = weights > KEPT_SLICES * float(weights.max())
        columns = max(1, int(strong.sum(dim=1).max()))
        gradient = _backward(carried, vectors[:, :, -columns:] * weights[:, None, -columns:].sqrt())
        top, total = float(values.max()), float((relative**bundle.power).sum())
    if gradient is None:
        return BundleResult(feasible=False)
    return BundleResult(True, gram, top=top, total=total, gradient=gradient.cpu().numpy())
