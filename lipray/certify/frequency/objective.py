"""The bound of a set-up as a function of its multipliers: estimated with gradient, or proven."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from lipray.certify import elimination
from lipray.certify.frequency.bundle import Bundle, BundleResult, Forward, Spread, backward, forward
from lipray.certify.frequency.groups import Group
from lipray.certify.frequency.setup import Multipliers, Setup, bundles
from lipray.certify.frequency.tail import certify_tail, factor_of, measure_tail, with_input
from lipray.certify.lbfgs import Point


@dataclass(frozen=True, slots=True)
class Proven:
    """A certified bound, the multipliers it is recomputed from, and Q_out (K, K) where there is a head.

    ``rows`` is the shape matrix of the head's rows, ``loads`` how much each group matters, ``stages`` bounds of the map
    up to the end of every level.
    """

    bound: float
    multipliers: Multipliers
    gram: np.ndarray | None
    rows: torch.Tensor | None
    loads: np.ndarray
    stages: tuple[float, ...]


BLENDS = (0.0, 1e-9, 1e-7, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 0.3)
"""Shares of the closed form mixed into multipliers too close to infeasible to be proven."""


class LostBundleError(RuntimeError):
    """A bundle gave no result, so that nothing can be said of this round."""


@dataclass(frozen=True, slots=True)
class Means:
    """Where bundles are performed, and how large they may be."""

    spread: Spread
    memory: int
    workers: int
    device: str


def certify(setup: Setup, multipliers: Sequence[np.ndarray], means: Means) -> Proven | None:
    """The bound that multipliers prove, rounding included; ``None`` where they are not provably feasible."""
    torus, tail = setup.split(multipliers)
    _, results = perform(setup, torus, "bound", means)
    if not all(result.feasible for result in results):
        return None
    return _conclude(setup, torus, tail, results)


def certify_blend(setup: Setup, found: Sequence[np.ndarray], base: Sequence[np.ndarray], means: Means) -> Proven | None:
    """The bound from ``found``, mixed with as little of the feasible ``base`` as its proof needs.

    M(λ) is affine, so M((1 - t) λ + t λ0) ⪰ t M(λ0). A mixture goes through the groups that refused an earlier one
    first.
    """
    refusing: tuple[tuple[Group, int], ...] = ()
    for share in BLENDS:
        mixed = tuple((1.0 - share) * a + share * b for a, b in zip(found, base, strict=True))
        torus, tail = setup.split(mixed)
        if refusing:
            _, results = perform(replace(setup, groups=refusing), torus, "bound", means)
            if not all(result.feasible for result in results):
                continue
        batch, results = perform(setup, torus, "bound", means)
        refused = [bundle for bundle, result in zip(batch, results, strict=True) if not result.feasible]
        if refused:
            refusing = min((bundle.groups for bundle in refused), key=len)
            continue
        proven = _conclude(setup, torus, tail, results)
        if proven is not None:
            return proven
    return None


def close(setup: Setup, torus: Multipliers, results: Sequence[BundleResult]) -> Proven | None:
    """Complete proven shares of the torus by the closed form of the tail."""
    tail: Multipliers = ()
    if setup.tail is not None:
        gram, error = _sum(results)
        root = factor_of(gram, error)
        if root is None:
            return None
        tail = elimination.closed_form(with_input(setup.tail, root, proof=False))
        if len(tail) != setup.tail.depth:
            return None
    return _conclude(setup, torus, tail, results)


def _conclude(setup: Setup, torus: Multipliers, tail: Multipliers, results: Sequence[BundleResult]) -> Proven | None:
    loads = np.concatenate([result.loads for result in results if result.loads is not None])
    ends = zip(*(result.stages for result in results), strict=True)
    stages = tuple(_root(max(tops)) for tops in ends)
    if setup.tail is None:
        top = max(result.top for result in results)
        return Proven(_root(top), torus, None, None, loads, stages) if math.isfinite(top) else None
    gram, error = _sum(results)
    proven = certify_tail(setup.tail, gram, error, tail)
    return None if proven is None else Proven(proven.bound, (*torus, *tail), proven.gram, gram, loads, stages)


@dataclass(frozen=True, slots=True)
class Working:
    """The groups an optimiser works on, ``setup.groups``, and what the others contribute, held fixed.

    ``rest`` is the others' share of the rows' shape matrix, ``None`` where there is no head. ``kept``: whether factors
    are kept between a value and its gradient, instead of being worked out again.
    """

    setup: Setup
    rest: torch.Tensor | None
    kept: bool


def measure(working: Working, theta: torch.Tensor, power: float, means: Means, reference: float) -> Point | None:
    """The smoothed bound squared at log multipliers ``theta``, with gradient; ``None`` where infeasible.

    ``reference`` is any number near the bound squared; it keeps powers within range where the output is a map.
    """
    setup = working.setup
    if not bool(torch.isfinite(theta).all()) or float(theta.abs().max()) > 600.0:
        return None
    lams = torch.split(torch.exp(theta), list(setup.sizes))
    torus, tail = setup.split([lam.numpy() for lam in lams])
    if setup.tail is None:
        _, results = perform(setup, torus, "gradient", means, power=power, reference=reference)
        if not all(result.feasible for result in results):
            return None
        total = sum(result.total for result in results)
        slopes = _gradient(results)
        value = math.log(reference) + math.log(total) / power
        return Point(value, max(result.top for result in results), slopes * torch.exp(theta) / (power * total))
    carried: list[Forward] = []
    if working.kept:
        for bundle in bundles(setup, torus, "gradient", memory=means.memory, workers=1):
            passed = forward(bundle)
            if passed is None:
                return None
            carried.append(passed)
        gram = sum((passed.gram() for passed in carried), start=torch.zeros(1, dtype=torch.float64))
    else:
        _, results = perform(setup, torus, "value", means)
        if not all(result.feasible for result in results):
            return None
        gram, _ = _sum(results)
    if working.rest is not None:
        gram = gram + working.rest
    point = measure_tail(setup.tail, gram, [torch.from_numpy(lam) for lam in tail], power)
    if point is None:
        return None
    slopes = torch.zeros(0, dtype=torch.float64)
    if carried:
        parts = [backward(passed, point.directions) for passed in carried]
        if any(part is None for part in parts):
            return None
        slopes = torch.stack([part for part in parts if part is not None]).sum(dim=0)
    elif setup.problem.sizes:
        _, results = perform(setup, torus, "gradient", means, directions=point.directions.numpy())
        if not all(result.feasible for result in results):
            return None
        slopes = _gradient(results)
    return Point(point.value, point.top, torch.cat([slopes, point.gradient]) * torch.exp(theta))


def perform(
    setup: Setup, multipliers: Multipliers, kind: str, means: Means, **more: object
) -> tuple[list[Bundle], list[BundleResult]]:
    """One round: all bundles, and what each contributes.

    Raises:
        LostBundleError: a bundle gave no result.
    """
    cut = bundles(setup, multipliers, kind, memory=means.memory, workers=means.workers)
    batch = [replace(bundle, device=means.device, **more) for bundle in cut]  # type: ignore[arg-type]
    results = means.spread(batch)
    kept = [result for result in results if result is not None]
    if len(kept) < len(batch):
        raise LostBundleError(f"{len(batch) - len(kept)} of {len(batch)} bundles were lost")
    return batch, kept


def _sum(results: Sequence[BundleResult]) -> tuple[torch.Tensor, float]:
    """Add the rows' shape matrices in order; the error covers the sum's own rounding."""
    total: torch.Tensor | None = None
    error, size = 0.0, 0.0
    for result in results:
        assert result.gram is not None  # noqa: S101 (the set-up has a head)
        gram = torch.from_numpy(result.gram)
        total = gram.clone() if total is None else total.add_(gram)
        error += result.error
        size += float(torch.linalg.matrix_norm(gram))
    assert total is not None  # noqa: S101 (there is at least one bundle)
    return total, (error + size * len(results) * 2.0**-52) * (1.0 + 1e-9)


def _gradient(results: Sequence[BundleResult]) -> torch.Tensor:
    total: torch.Tensor | None = None
    for result in results:
        assert result.gradient is not None  # noqa: S101 (asked for)
        part = torch.from_numpy(result.gradient)
        total = part.clone() if total is None else total.add_(part)
    assert total is not None  # noqa: S101
    return total


def _root(value: float) -> float:
    return math.nextafter(math.sqrt(value), math.inf) if value > 0.0 else 0.0
