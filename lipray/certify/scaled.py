"""The inequality as an interior-point method works on it: scaled by its start, and by operators on full matrices.

A_a = e_a v_a* + v_a e_a* with V = [e_a - b_a], so that everything the method needs of op(y) = Σ_a λ_a A_a + ρ E is a
product with the blocks of B that are not zero.
"""

from __future__ import annotations

from functools import cached_property

import torch

from lipray.certify.inequality import Inequality

Map = tuple[slice, slice, torch.Tensor]
"""Rows and columns of B that may be nonzero, and what is there, (F, rows, columns)."""

Schur = tuple[torch.Tensor, torch.Tensor]
"""A diagonal scaling, and the Cholesky factor of the scaled Schur complement."""


class ScaledProblem:
    """The scaled problem: layer signals by 1 / sqrt(λ), the output so that the start has ρ = 1."""

    def __init__(self, form: Inequality, start: torch.Tensor, value: float) -> None:
        self.d, self.n, self.m = form.inputs, form.B.shape[1], form.order
        self.count = form.B.shape[0]
        self.dtype = form.B.dtype
        self.start = start
        root = start.rsqrt()
        columns = torch.cat([torch.ones(self.d, dtype=torch.float64), root])
        self.maps: tuple[Map, ...] = tuple(
            (rows, read, form.B[:, rows, read] * columns[read] / root[rows, None]) for rows, read in form.places
        )
        self.C = form.C * columns / value**0.5
        self.b = torch.zeros(self.n + 1, dtype=torch.float64)
        self.b[self.n] = 1.0

    @cached_property
    def CC(self) -> torch.Tensor:
        """C*C."""
        product: torch.Tensor = self.C.mH @ self.C
        return product

    def times_V(self, S: torch.Tensor) -> torch.Tensor:
        """S V = S_u - S B*."""
        result = S[..., self.d :].clone()
        for rows, columns, block in self.maps:
            result[..., rows] -= S[..., columns] @ block.mH
        return result

    def V_times(self, S: torch.Tensor) -> torch.Tensor:
        """V* S = S_u - B S (rows)."""
        result = S[:, self.d :].clone()
        for rows, columns, block in self.maps:
            result[:, rows] -= block @ S[:, columns]
        return result

    def times_op(self, S: torch.Tensor, SV: torch.Tensor, dy: torch.Tensor) -> torch.Tensor:
        """S op(dy), given S V."""
        weights = dy[: self.n].to(self.dtype)
        scaled = S[..., self.d :] * weights
        result = torch.zeros_like(S)
        result[..., : self.d] = S[..., : self.d] * float(dy[self.n])
        torch.mul(SV, weights, out=result[..., self.d :])
        result[..., self.d :] += scaled
        for rows, columns, block in self.maps:
            result[..., columns] -= scaled[..., rows] @ block
        return result

    def op_times(self, y: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        """op(y) w for (F, m, k)."""
        weights = y[: self.n, None].to(self.dtype)
        scaled = w[:, self.d :] * weights
        result = torch.cat([w[:, : self.d] * float(y[self.n]), 2.0 * scaled], dim=1)
        for rows, columns, block in self.maps:
            result[:, self._shifted(rows)] -= weights[rows] * (block @ w[:, columns])
            result[:, columns] -= block.mH @ scaled[:, rows]
        return result

    def op(self, y: torch.Tensor) -> torch.Tensor:
        """The matrices, (F, m, m)."""
        result = torch.zeros(self.count, self.m, self.m, dtype=self.dtype)
        weights = y[: self.n].to(self.dtype)
        for rows, columns, block in self.maps:
            part = block * weights[rows, None]
            result[:, self._shifted(rows), columns] -= part
            result[:, columns, self._shifted(rows)] -= part.mH
        diagonal = torch.diagonal(result, dim1=-2, dim2=-1)
        diagonal[:, self.d :] += 2.0 * weights
        diagonal[:, : self.d] += float(y[self.n])
        return result

    def slack(self, y: torch.Tensor) -> torch.Tensor:
        """Z = op(y) - C*C."""
        return self.op(y).sub_(self.CC)

    def adjoint(self, S: torch.Tensor, SV: torch.Tensor | None = None) -> torch.Tensor:
        """Give <A_a, S> for Hermitian S, and <E, S>."""
        diagonal = torch.diagonal(S, dim1=-2, dim2=-1).real
        if SV is not None:
            pairs = torch.diagonal(SV[:, self.d :], dim1=-2, dim2=-1).real.sum(0)
        else:
            pairs = diagonal[:, self.d :].sum(0)
            for rows, columns, block in self.maps:
                pairs[rows] -= (S[:, self._shifted(rows), columns] * block.conj()).real.sum((0, 2))
        return torch.cat([2.0 * pairs, diagonal[:, : self.d].sum()[None]])

    def adjoint_of_product(self, Y: torch.Tensor, G: torch.Tensor, GV: torch.Tensor) -> torch.Tensor:
        """The adjoint of the Hermitian part of Y G, without forming the product."""
        d = self.d
        pairs = (Y[:, d:] * GV.mT).sum(-1).real.sum(0) + (self.V_times(Y) * G[:, d:].conj()).sum(-1).real.sum(0)
        corner = (Y[:, :d] * G[..., :d].mT).sum().real
        return torch.cat([pairs, corner[None]])

    def complementarity(self, X: torch.Tensor, AX: torch.Tensor, y: torch.Tensor) -> float:
        """<X, Z> for Z = op(y) - C*C, from A(X)."""
        return float((y * AX).sum()) - self.gained(X)

    def gained(self, X: torch.Tensor) -> float:
        """<X, C*C>."""
        return float(((self.C @ X) * self.C.conj()).real.sum())

    def schur(self, X: torch.Tensor, XV: torch.Tensor, G: torch.Tensor, GV: torch.Tensor) -> Schur | None:
        """Scaling and Cholesky factor of the Schur complement, or ``None`` where it is not positive."""
        d, n = self.d, self.n
        # Of a Hermitian matrix the transpose is the conjugate, which is read in order.
        H = _summed(self.V_times(XV), G[:, d:, d:].conj())
        H += _summed(self.V_times(GV), X[:, d:, d:].conj())
        cross = _summed(XV[:, d:].clone(), GV[:, d:].mT)
        H += cross
        H += cross.T
        del cross
        G0, X0 = G[:, :, :d], X[:, :, :d]
        row = ((XV.mH[:, :, :d] * G0[:, d:].conj()).sum(-1) + (X0[:, d:] * GV.mH[:, :, :d].conj()).sum(-1)).real.sum(0)
        S = torch.empty(n + 1, n + 1, dtype=torch.float64)
        S[:n, :n] = H
        S[:n, :n] += H.T
        S[:n, :n] *= 0.5
        del H
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

    @staticmethod
    def solve(schur: Schur, rhs: torch.Tensor) -> torch.Tensor:
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

    def _shifted(self, rows: slice) -> slice:
        """Rows of B as rows of the inequality."""
        return slice(rows.start + self.d, rows.stop + self.d)


def _summed(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """Re Σ_f A_f ∘ B_f; A is overwritten."""
    product = A.mul_(B)
    return product[0] if len(A) == 1 and not A.is_complex() else product.real.sum(0)
