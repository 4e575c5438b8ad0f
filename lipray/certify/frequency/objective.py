"""The bound of a set-up as a function of its multipliers, with gradient; and mixtures that can be proven."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from lipray.certify.closed_form import closed_form
from lipray.certify.frequency.bundle import Forward, GradientResult, backward, forward, gradient_bundles
from lipray.certify.frequency.tail import measure_tail
from lipray.certify.lbfgs import Point
from lipray.verify.torus.bundle import BundleResult
from lipray.verify.torus.groups import Group
from lipray.verify.torus.proof import (
    LostBundleError,
    Means,
    Multipliers,
    Proven,
    Setup,
    add_up,
    conclude,
    perform,
)
from lipray.verify.torus.tail import factor_of, with_input

BLENDS = (0.0, 1e-9, 1e-7, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 0.3)
"""Shares of the closed form mixed into multipliers too close to infeasible to be proven."""


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
            _, results = perform(replace(setup, groups=refusing), torus, means)
            if not all(result.feasible for result in results):
                continue
        batch, results = perform(setup, torus, means)
        refused = [bundle for bundle, result in zip(batch, results, strict=True) if not result.feasible]
        if refused:
            refusing = min((bundle.groups for bundle in refused), key=len)
            continue
        proven = conclude(setup, torus, tail, results)
        if proven is not None:
            return proven
    return None


def close(setup: Setup, torus: Multipliers, results: Sequence[BundleResult]) -> Proven | None:
    """Complete proven shares of the torus by the closed form of the tail."""
    tail: Multipliers = ()
    if setup.tail is not None:
        gram, error = add_up(results)
        root = factor_of(gram, error)
        if root is None:
            return None
        tail = closed_form(with_input(setup.tail, root, proof=False))
        if len(tail) != setup.tail.depth:
            return None
    return conclude(setup, torus, tail, results)


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
        results = pull_back(setup, torus, means, power=power, reference=reference)
        if results is None:
            return None
        total = sum(result.total for result in results)
        if not total > 0.0:
            return None  # a constant map: there is nothing to improve
        slopes = _gradient(results)
        value = math.log(reference) + math.log(total) / power
        return Point(value, max(result.top for result in results), slopes * torch.exp(theta) / (power * total))
    carried: list[Forward] = []
    if working.kept:
        for bundle in gradient_bundles(setup, torus, replace(means, workers=1)):
            passed = forward(bundle)
            if passed is None:
                return None
            carried.append(passed)
        gram = sum((passed.gram() for passed in carried), start=torch.zeros(1, dtype=torch.float64))
    else:
        _, shares = perform(setup, torus, means, proof=False)
        if not all(share.feasible for share in shares):
            return None
        gram, _ = add_up(shares)
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
        results = pull_back(setup, torus, means, directions=point.directions.numpy())
        if results is None:
            return None
        slopes = _gradient(results)
    return Point(point.value, point.top, torch.cat([slopes, point.gradient]) * torch.exp(theta))


def pull_back(setup: Setup, torus: Multipliers, means: Means, **more: object) -> list[GradientResult] | None:
    """One round of gradients; ``None`` where a bundle finds the multipliers infeasible.

    Raises:
        LostBundleError: a bundle gave no result.
    """
    batch = [replace(bundle, **more) for bundle in gradient_bundles(setup, torus, means)]  # type: ignore[arg-type]
    results = means.spread(batch)
    kept = [result for result in results if isinstance(result, GradientResult)]
    if len(kept) < len(batch):
        raise LostBundleError(f"{len(batch) - len(kept)} of {len(batch)} bundles were lost")
    return kept if all(result.feasible for result in kept) else None


def _gradient(results: Sequence[GradientResult]) -> torch.Tensor:
    total: torch.Tensor | None = None
    for result in results:
        assert result.gradient is not None  # noqa: S101 (it is feasible)
        part = torch.from_numpy(result.gradient)
        total = part.clone() if total is None else total.add_(part)
    assert total is not None  # noqa: S101
    return total
