"""The default method: shape matrices (ellipsoids of increments) with optimised multipliers.

An interior-point method improves the closed form while the inequality's order allows. Beyond, a first-order method
does, from multipliers chosen layer by layer where the network is a deep chain; the interior-point method does better
without them (``lipray.certify.interior``), and has them to fall back on where its time is limited. Whatever an
optimiser returns, the bound is recomputed from the multipliers by ``lipray.verify.elimination`` and the best certified
one is kept.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch

from lipray.certify import descent, interior
from lipray.certify.certificate import Certificate, Status
from lipray.certify.closed_form import closed_form
from lipray.certify.excess import unrounded_dense
from lipray.certify.inequality import assemble, is_chain, reduced_order
from lipray.certify.layerwise import layerwise
from lipray.partition.cost import interior_fits, interior_seconds
from lipray.partition.subproblem import Settings, Subproblem
from lipray.verify.elimination import Blocks, Evaluation, evaluate, prepare
from lipray.verify.prove import Proof
from lipray.verify.sector import lower

INTERIOR_ITERATIONS = 80
DESCENT_ITERATIONS = 150
DESCENT_TOLERANCE = 1e-6
"""Relative improvement per iteration below which first-order steps end a stage."""

QUICK_ORDER = 600
"""Order up to which the interior-point method is done before a limit of time matters."""
HURRY = 2.0
"""Times its limit that the interior-point method may be expected to take; its bound falls early, and estimates err."""

STALLED_GAP = 1e-3
"""Relative duality gap above which a stalled interior-point method hands over to first-order steps."""

BLENDS = (0.0, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Shares of the closed form mixed into multipliers too close to infeasible to be proven."""


def solve_ellipsoid(problem: Subproblem) -> Certificate | None:
    """Certify by shape matrices; ``None`` if not even the closed form could be proven (never seen)."""
    start = time.monotonic()
    settings = problem.settings
    form = lower(problem.network)
    blocks = prepare(form)
    closed = best = evaluate(blocks, closed_form(blocks))
    if closed is None or best is None:
        return None
    figures = {"eclipse_fast": closed.bound}
    status, used = Status.CLOSED_FORM, 0
    if blocks.depth == 0 or best.bound == 0.0:
        status = Status.CONVERGED
    elif settings.iterations != 0:
        deadline = None if settings.time_limit is None else start + settings.time_limit
        order = reduced_order(blocks)
        exact = _exact(blocks, settings)
        chosen = layerwise(blocks, deadline=deadline) if not exact or (deadline and order > QUICK_ORDER) else None
        greedy = None if chosen is None else evaluate(blocks, chosen)
        if greedy is not None and greedy.bound < best.bound:
            figures["layerwise"] = greedy.bound
            best = greedy
        first = closed if exact else None
        found, status, used, value = _optimise(blocks, first, best, settings, deadline)
        figures["solver"] = value * blocks.factor
        improved = certify_blend(blocks, found, best.multipliers)
        if improved is not None and improved.bound < best.bound:
            best = improved
    figures["unrounded"] = unrounded_dense(blocks, best.multipliers)
    seconds = time.monotonic() - start
    proof = Proof("dense", best.multipliers, form.neurons)
    return Certificate(problem.key(), "ellipsoid", best.bound, status, proof, best.gram, figures, used, seconds)


def certify_blend(blocks: Blocks, found: Sequence[np.ndarray], base: Sequence[np.ndarray]) -> Evaluation | None:
    """The bound from ``found``, mixed with as little of the feasible ``base`` as its proof needs.

    M(λ) is affine, so M((1 - t) λ + t λ0) ⪰ t M(λ0), and the bound squared is convex in λ: a share t costs
    at most that share of the difference.
    """
    for share in BLENDS:
        mixed = [(1.0 - share) * a + share * b for a, b in zip(found, base, strict=True)]
        proven = evaluate(blocks, mixed)
        if proven is not None:
            return proven
    return None


def _exact(blocks: Blocks, settings: Settings) -> bool:
    """Whether the interior-point method has the memory it needs, and may be expected to be done in time."""
    order, chain = reduced_order(blocks), is_chain(blocks)
    sizes = blocks.sizes[1:]
    entries = sum(size * (size + following) for size, following in zip(sizes, (*sizes[1:], 0), strict=True))
    if not interior_fits(order, entries, chain=chain) or 12 * 8 * order**2 > settings.memory:
        return False
    expected = interior_seconds(order, entries, chain=chain)
    return settings.time_limit is None or order <= QUICK_ORDER or expected <= HURRY * settings.time_limit


def _optimise(
    blocks: Blocks, first: Evaluation | None, best: Evaluation, settings: Settings, deadline: float | None
) -> tuple[Sequence[np.ndarray], Status, int, float]:
    """Multipliers, status, iterations, and the value the optimiser believes.

    The interior-point method starts from ``first``, the first-order method from the ``best``, or what the other left.
    """
    found, value, used = best.multipliers, best.bound / blocks.factor, 0
    if first is not None:
        limit = INTERIOR_ITERATIONS if settings.iterations is None else settings.iterations
        result = interior.minimise(
            assemble(blocks),
            torch.from_numpy(np.concatenate(list(first.multipliers))),
            (first.bound / blocks.factor) ** 2,
            tolerance=settings.tolerance,
            iterations=limit,
            deadline=deadline,
        )
        used = result.iterations
        if result.value < value:
            found = tuple(np.split(result.multipliers.numpy(), np.cumsum(blocks.widths)[:-1]))
            value = result.value
        status = _status(converged=result.converged, exhausted=used >= limit, deadline=deadline)
        if status is not Status.STALLED or result.gap < STALLED_GAP:
            return found, status, used, value
    limit = DESCENT_ITERATIONS if settings.iterations is None else settings.iterations
    tolerance = max(settings.tolerance, DESCENT_TOLERANCE)
    descended = descent.minimise(blocks, found, iterations=limit, tolerance=tolerance, deadline=deadline)
    if descended.value**0.5 < value:
        found, value = descended.multipliers, descended.value**0.5
    # First-order steps have no measure of how far the optimum is, so they never claim to have converged.
    status = _status(converged=False, exhausted=descended.iterations >= limit, deadline=deadline)
    return found, status, used + descended.iterations, value


def _status(*, converged: bool, exhausted: bool, deadline: float | None) -> Status:
    if converged:
        return Status.CONVERGED
    if deadline is not None and time.monotonic() > deadline:
        return Status.TIME_LIMIT
    return Status.ITERATION_LIMIT if exhausted else Status.STALLED
