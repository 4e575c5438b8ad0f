"""A primal-dual interior-point method for the sector-form inequality, batched over slices.

Minimise ρ subject to Z_f = ρ E_in + Σ_a λ_a A_af - C_f* C_f ⪰ 0 for every slice f (a frequency; one for
the dense problem), λ and ρ shared (``lipray.certify.inequality``). Each A_a = e_a v_a* + v_a e_a* has rank two,
V = [e_a - b_a], so with G = Z⁻¹ and X the primal variable the Schur complement of the HKM direction (Helmberg
et al. 1996; Kojima et al. 1997; Monteiro 1997) is a sum of Hadamard products,

    H = Re Σ_f conj(X_uvᵀ ∘ G_uv) + X_uv ∘ G_uvᵀ + X_vv ∘ G_uuᵀ + X_uu ∘ G_vvᵀ,

and one iteration costs a few products of full matrices. The start is dual feasible (twice any feasible
multipliers), so every iterate is a certificate and stopping at any time is sound; primal feasibility and
optimality only decide how tight the answer is.

Which feasible multipliers matters: where Z(λ, ρ) = op(λ, ρ) - C*C ⪰ 0, the start Z(2λ, 2ρ) = op(λ, ρ) + Z(λ, ρ) is at
least op(λ, ρ), whose pivots the closed form keeps between λ and 2λ in every layer. Multipliers that are tight in
every layer, or a larger ρ alone, leave Z next to singular, and primal infeasibility then takes tens of steps to go.
Mehrotra's predictor-corrector; step lengths by Lanczos on L⁻¹ dS L⁻*, verified by the Cholesky
factorisation the next iteration needs anyway.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from lipray.certify.inequality import Inequality
from lipray.certify.scaled import ScaledProblem
from lipray.certify.slack import Slack, factored, reach

ROUGH, FINE = 12, 24
"""Lanczos steps for the predictor's length, and for the step itself."""


@dataclass(frozen=True, slots=True)
class InteriorResult:
    """Multipliers λ at ρ = 1 (length n) and the value sqrt(ρ) the solver believes; neither is a certificate.

    ``slices`` is the largest number of slices worked on at once.
    """

    multipliers: torch.Tensor
    value: float
    gap: float
    iterations: int
    converged: bool
    slices: int = 1


def minimise(
    form: Inequality,
    start: torch.Tensor,
    value: float,
    *,
    tolerance: float = 1e-6,
    iterations: int = 80,
    deadline: float | None = None,
) -> InteriorResult:
    """Minimise the bound over multipliers.

    Args:
        form: the inequality.
        start: feasible multipliers λ (length n, at ρ = 1), used as scaling and start.
        value: the bound squared they give.
        tolerance: relative duality gap of ρ at which to stop.
        iterations: at most this many.
        deadline: ``time.monotonic()`` at which to stop.
    """
    problem = ScaledProblem(form, start, value)
    n = problem.n
    y = torch.full((n + 1,), 2.0, dtype=torch.float64)
    slack = factored(problem, y)
    while slack is None and float(y[n]) < 1e6:
        y[n] *= 2.0
        slack = factored(problem, y)
    if slack is None:
        return InteriorResult(start, value**0.5, float("inf"), 0, converged=False)
    X = slack.inverse()
    X /= float(torch.diagonal(X, dim1=-2, dim2=-1).real[:, : problem.d].sum())
    LX = problem.factor(X)
    if LX is None:
        return InteriorResult(start, value**0.5, float("inf"), 0, converged=False)
    best, AX = y.clone(), problem.adjoint(X)
    gap, done, turns, rejected = float("inf"), False, 0, 0
    while turns < iterations and (deadline is None or time.monotonic() < deadline):
        turns += 1
        move = _direction(problem, X, LX, AX, slack, y)
        if move is None:
            break
        dy, dX, step_dual, step_primal = move
        while (new := factored(problem, y + step_dual * dy)) is None and step_dual > 1e-8:
            step_dual *= 0.8
        del LX  # of the size of X
        while (LX := problem.factor(torch.add(X, dX, alpha=step_primal))) is None and step_primal > 1e-8:
            step_primal *= 0.8
        if new is None or LX is None:
            break
        y, slack = y + step_dual * dy, new
        X = X.add_(dX, alpha=step_primal)
        AX = problem.adjoint(X)
        if float(y[n]) < float(best[n]):
            best = y.clone()
        gap = problem.complementarity(X, AX, y) / float(y[n])
        residual = float((AX - problem.b).abs().max())
        if gap < tolerance and residual < max(1e-7, tolerance):
            done = True
            break
        rejected = rejected + 1 if max(step_dual, step_primal) < 1e-3 else 0
        if rejected > 3:
            break
    multipliers = problem.start * best[:n] / best[n]
    return InteriorResult(multipliers, float((best[n] * value) ** 0.5), gap, turns, converged=done)


def _direction(
    problem: ScaledProblem, X: torch.Tensor, LX: torch.Tensor, AX: torch.Tensor, slack: Slack, y: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, float, float] | None:
    """One predictor-corrector direction (dy, dX) and its step lengths."""
    G = slack.inverse()
    GV, XV = problem.times_V(G), problem.times_V(X)
    schur = problem.schur(X, XV, G, GV)
    if schur is None:
        return None
    aG = problem.adjoint(G, GV)
    size = problem.count * problem.m
    xz = problem.complementarity(X, AX, y)
    mu = xz / size

    dy = problem.solve(schur, -problem.b)
    dX = _towards(X, slack.under(problem.times_op(X, XV, dy), G))
    reach_dual = min(1.0, 0.95 * slack.reach(dy, ROUGH))
    reach_primal = min(1.0, 0.95 * reach(LX, dX, ROUGH))
    # <X + a dX, Z + b dZ> with Z = op(y) - CC
    AdX = problem.adjoint(dX)
    dxz = float((y * AdX).sum()) - problem.gained(dX)
    xdz, dxdz = float((dy * AX).sum()), float((dy * AdX).sum())
    after = (xz + reach_primal * dxz + reach_dual * xdz + reach_primal * reach_dual * dxdz) / size
    ratio = max(after / mu, 0.0)
    exponent = max(2.0, 3.0 * min(reach_dual, reach_primal) ** 2)
    sigma = min(0.8, max(1e-6, ratio**exponent))
    Y = problem.times_op(dX, problem.times_V(dX), dy)
    del dX
    corr = problem.adjoint_of_product(Y, G, GV)
    dy = problem.solve(schur, sigma * mu * aG - problem.b - corr)
    Y += problem.times_op(X, XV, dy)
    del schur, GV, XV
    dX = _towards(X, slack.under(Y, G)).add_(G, alpha=sigma * mu)
    fraction = 0.9 + 0.08 * min(reach_dual, reach_primal)
    step_dual = min(1.0, fraction * slack.reach(dy, FINE))
    step_primal = min(1.0, fraction * reach(LX, dX, FINE))
    return dy, dX, step_dual, step_primal


def _towards(X: torch.Tensor, product: torch.Tensor) -> torch.Tensor:
    """-X less the Hermitian part of a product; the product is overwritten."""
    half = product.mH.clone()
    return product.add_(half).mul_(-0.5).sub_(X)
