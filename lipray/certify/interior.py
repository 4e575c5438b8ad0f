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

ROUGH, FINE, LOOK = 12, 24, 6
"""Lanczos steps for the predictor's length and for the step itself, and after how many the estimate is looked at."""


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
    factor = problem.factor(problem.slack(y))
    while factor is None and float(y[n]) < 1e6:
        y[n] *= 2.0
        factor = problem.factor(problem.slack(y))
    if factor is None:
        return InteriorResult(start, value**0.5, float("inf"), 0, converged=False)
    L = factor
    G = problem.inverse(L)
    X = G / float(torch.diagonal(G, dim1=-2, dim2=-1).real[:, : problem.d].sum())
    LX = problem.factor(X)
    if LX is None:
        return InteriorResult(start, value**0.5, float("inf"), 0, converged=False)
    best, AX = y.clone(), problem.adjoint(X)
    gap, done, turns, rejected = float("inf"), False, 0, 0
    while turns < iterations and (deadline is None or time.monotonic() < deadline):
        turns += 1
        move = problem.direction(X, LX, AX, G, L, y)
        if move is None:
            break
        dy, dX, step_dual, step_primal = move
        while (new_L := problem.factor(problem.slack(y + step_dual * dy))) is None and step_dual > 1e-8:
            step_dual *= 0.8
        while (new_LX := problem.factor(torch.add(X, dX, alpha=step_primal))) is None and step_primal > 1e-8:
            step_primal *= 0.8
        if new_L is None or new_LX is None:
            break
        y, LX, L = y + step_dual * dy, new_LX, new_L
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
        G = problem.inverse(L)
    multipliers = problem.start * best[:n] / best[n]
    return InteriorResult(multipliers, float((best[n] * value) ** 0.5), gap, turns, converged=done)


class ScaledProblem:
    """The scaled problem: layer signals by 1 / sqrt(λ), the output so that the start has ρ = 1."""

    def __init__(self, form: Inequality, start: torch.Tensor, value: float) -> None:
        self.d, self.n, self.m = form.inputs, form.B.shape[1], form.order
        self.count = form.B.shape[0]
        self.dtype = form.B.dtype
        self.start = start
        root = start.rsqrt()
        columns = torch.cat([torch.ones(self.d, dtype=torch.float64), root])
        self.B = form.B * columns / root[:, None]
        C = form.C * columns / value**0.5
        self.places = form.places
        self.C, self.CC = C, C.mH @ C
        self.b = torch.zeros(self.n + 1, dtype=torch.float64)
        self.b[self.n] = 1.0

    def times_V(self, S: torch.Tensor) -> torch.Tensor:
        """S V = S_u - S B*."""
        result = S[..., self.d :].clone()
        for rows, columns in self.places:
            result[..., rows] -= S[..., columns] @ self.B[:, rows, columns].mH
        return result

    def V_times(self, S: torch.Tensor) -> torch.Tensor:
        """V* S = S_u - B S (rows)."""
        result = S[:, self.d :].clone()
        for rows, columns in self.places:
            result[:, rows] -= self.B[:, rows, columns] @ S[:, columns]
        return result

    def times_op(self, S: torch.Tensor, SV: torch.Tensor, dy: torch.Tensor) -> torch.Tensor:
        """S op(dy) for op(dy) = Σ λ_a A_a + ρ E, given S V."""
        weights = dy[: self.n].to(self.dtype)
        scaled = S[..., self.d :] * weights
        result = torch.zeros_like(S)
        result[..., : self.d] = S[..., : self.d] * float(dy[self.n])
        result[..., self.d :] = SV * weights
        result[..., self.d :] += scaled
        for rows, columns in self.places:
            result[..., columns] -= scaled[..., rows] @ self.B[:, rows, columns]
        return result

    def op(self, y: torch.Tensor) -> torch.Tensor:
        """Σ λ_a A_a + ρ E as matrices."""
        result = torch.zeros(self.count, self.m, self.m, dtype=self.dtype)
        weights = y[: self.n].to(self.dtype)
        for rows, columns in self.places:
            part = self.B[:, rows, columns] * weights[rows, None]
            shifted = slice(rows.start + self.d, rows.stop + self.d)
            result[:, shifted, columns] -= part
            result[:, columns, shifted] -= part.mH
        diagonal = torch.diagonal(result, dim1=-2, dim2=-1)
        diagonal[:, self.d :] += 2.0 * weights
        diagonal[:, : self.d] += float(y[self.n])
        return result

    def slack(self, y: torch.Tensor) -> torch.Tensor:
        """Z = op(y) - C*C."""
        result: torch.Tensor = self.op(y) - self.CC
        return result

    def adjoint(self, S: torch.Tensor, SV: torch.Tensor | None = None) -> torch.Tensor:
        """Give <A_a, S> for Hermitian S, and <E, S>."""
        diagonal = torch.diagonal(S, dim1=-2, dim2=-1).real
        if SV is not None:
            pairs = torch.diagonal(SV[:, self.d :], dim1=-2, dim2=-1).real.sum(0)
        else:
            pairs = diagonal[:, self.d :].sum(0)
            for rows, columns in self.places:
                shifted = slice(rows.start + self.d, rows.stop + self.d)
                pairs[rows] -= (S[:, shifted, columns] * self.B[:, rows, columns].conj()).real.sum((0, 2))
        return torch.cat([2.0 * pairs, diagonal[:, : self.d].sum()[None]])

    def adjoint_of_product(self, Y: torch.Tensor, G: torch.Tensor, GV: torch.Tensor) -> torch.Tensor:
        """The adjoint of the Hermitian part of Y G, without forming the product."""
        d = self.d
        pairs = (Y[:, d:] * GV.mT).sum(-1).real.sum(0) + (self.V_times(Y) * G[:, d:].conj()).sum(-1).real.sum(0)
        corner = (Y[:, :d] * G[..., :d].mT).sum().real
        return torch.cat([pairs, corner[None]])

    @staticmethod
    def solve(schur: tuple[torch.Tensor, torch.Tensor], rhs: torch.Tensor) -> torch.Tensor:
        """The Schur complement's solution, from ``schur``."""
        scale, LS = schur
        result: torch.Tensor = scale * torch.cholesky_solve((scale * rhs)[:, None], LS)[:, 0]
        return result

    @staticmethod
    def factor(S: torch.Tensor) -> torch.Tensor | None:
        """Cholesky factor, or ``None``."""
        L, info = torch.linalg.cholesky_ex(S)
        return None if bool((info != 0).any()) else L

    @staticmethod
    def inverse(L: torch.Tensor) -> torch.Tensor:
        """(L L*)⁻¹."""
        result: torch.Tensor = torch.cholesky_inverse(L)
        return result

    def complementarity(self, X: torch.Tensor, AX: torch.Tensor, y: torch.Tensor) -> float:
        """<X, Z> for Z = op(y) - C*C, from A(X)."""
        return float((y * AX).sum()) - self.gained(X)

    def gained(self, X: torch.Tensor) -> float:
        """<X, C*C>."""
        return float(((self.C @ X) * self.C.conj()).real.sum())

    def direction(
        self, X: torch.Tensor, LX: torch.Tensor, AX: torch.Tensor, G: torch.Tensor, L: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, float, float] | None:
        """One predictor-corrector direction (dy, dX) and its step lengths."""
        GV, XV = self.times_V(G), self.times_V(X)
        schur = self.schur(X, XV, G, GV)
        if schur is None:
            return None
        aG = self.adjoint(G, GV)
        size = self.count * self.m
        xz = self.complementarity(X, AX, y)
        mu = xz / size

        dy = self.solve(schur, -self.b)
        dX = _towards(X, self.times_op(X, XV, dy) @ G)
        reach_dual = min(1.0, 0.95 * _reach(L, self.op(dy), ROUGH))
        reach_primal = min(1.0, 0.95 * _reach(LX, dX, ROUGH))
        # <X + a dX, Z + b dZ> with Z = op(y) - CC
        AdX = self.adjoint(dX)
        dxz = float((y * AdX).sum()) - self.gained(dX)
        xdz, dxdz = float((dy * AX).sum()), float((dy * AdX).sum())
        after = (xz + reach_primal * dxz + reach_dual * xdz + reach_primal * reach_dual * dxdz) / size
        ratio = max(after / mu, 0.0)
        exponent = max(2.0, 3.0 * min(reach_dual, reach_primal) ** 2)
        sigma = min(0.8, max(1e-6, ratio**exponent))
        Y = self.times_op(dX, self.times_V(dX), dy)
        corr = self.adjoint_of_product(Y, G, GV)
        dy = self.solve(schur, sigma * mu * aG - self.b - corr)
        Y += self.times_op(X, XV, dy)
        dX = _towards(X, Y @ G).add_(G, alpha=sigma * mu)
        fraction = 0.9 + 0.08 * min(reach_dual, reach_primal)
        step_dual = min(1.0, fraction * _reach(L, self.op(dy), FINE))
        step_primal = min(1.0, fraction * _reach(LX, dX, FINE))
        return dy, dX, step_dual, step_primal

    def schur(
        self, X: torch.Tensor, XV: torch.Tensor, G: torch.Tensor, GV: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Scaling and Cholesky factor of the Schur complement, or ``None`` where it is not positive."""
        d, n = self.d, self.n
        Xuv, Guv = XV[:, d:], GV[:, d:]
        Xvv, Gvv = self.V_times(XV), self.V_times(GV)
        # Of a Hermitian matrix the transpose is the conjugate, which is read in order.
        H = _summed(Xvv, G[:, d:, d:].conj())
        H += _summed(X[:, d:, d:], Gvv.conj())
        cross = _summed(Xuv, Guv.mT)
        H += cross
        H += cross.T
        G0, X0 = G[:, :, :d], X[:, :, :d]
        row = ((XV.mH[:, :, :d] * G0[:, d:].conj()).sum(-1) + (X0[:, d:] * GV.mH[:, :, :d].conj()).sum(-1)).real.sum(0)
        S = torch.empty(n + 1, n + 1, dtype=torch.float64)
        S[:n, :n] = H
        S[:n, :n] += H.T
        S[:n, :n] *= 0.5
        S[:n, n] = row
        S[n, :n] = row
        S[n, n] = (X[:, :d, :d] * G[:, :d, :d].mT).real.sum()
        scale = S.diagonal().clamp(min=1e-300).rsqrt()
        S *= scale[:, None]
        S *= scale
        for ridge in (1e-15, 1e-13, 1e-11, 1e-9):
            S.diagonal().fill_(1.0 + ridge)
            LS, info = torch.linalg.cholesky_ex(S)
            if int(info) == 0:
                return scale, LS
        return None


def _towards(X: torch.Tensor, product: torch.Tensor) -> torch.Tensor:
    """-X less the Hermitian part of a product; the product is overwritten."""
    half = product.mH.clone()
    return product.add_(half).mul_(-0.5).sub_(X)


def _summed(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """Re Σ_f A_f ∘ B_f."""
    if len(A) == 1 and not A.is_complex():
        return A[0] * B[0]
    return (A * B).real.sum(0)


def _reach(L: torch.Tensor, dS: torch.Tensor, steps: int) -> float:
    """Largest a with L L* + a dS ⪰ 0, estimated by Lanczos on L⁻¹ dS L⁻* (slices in parallel).

    It ends as soon as the estimate, on the side that makes the step shorter, says that a full step is possible, or
    no longer changes much.
    """
    count, m = dS.shape[0], dS.shape[-1]
    steps = min(steps, m)
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(count, m, 1, dtype=torch.float64, generator=generator).to(dS.dtype)
    basis = torch.zeros(count, steps + 1, m, dtype=dS.dtype)
    T = torch.zeros(count, steps + 1, steps + 1, dtype=torch.float64)
    basis[:, 0] = (w / torch.linalg.vector_norm(w, dim=1, keepdim=True))[..., 0]
    low = 0.0
    for step in range(1, steps + 1):
        known = basis[:, :step]
        w = torch.linalg.solve_triangular(L.mH, known[:, -1, :, None], upper=True)
        w = torch.linalg.solve_triangular(L, dS @ w, upper=False)
        overlap = known.conj() @ w
        w = w - known.mT @ overlap
        T[:, step - 1, step - 1] = overlap[:, -1, 0].real
        w -= known.mT @ (known.conj() @ w)
        beta = torch.linalg.vector_norm(w, dim=(1, 2))
        ended = step == steps or float(beta.max()) < 1e-12
        if ended or step % LOOK == 0:
            values, vectors = torch.linalg.eigh(T[:, :step, :step])
            loose = beta * vectors[:, -1, 0].abs()
            low = float((values[:, 0] - loose).min())
            if ended or low > -0.8 or float(loose.max()) < 0.02 * -low:
                break
        T[:, step - 1, step] = T[:, step, step - 1] = beta
        basis[:, step] = (w / beta.clamp(min=1e-300)[:, None, None])[..., 0]
    return 1e9 if low >= 0.0 else -1.0 / low
