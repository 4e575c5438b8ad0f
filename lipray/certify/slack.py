"""The dual slack Z = op(y) - C*C of an interior-point method, factored: its inverse, products with it, and steps.

In a chain, where every layer reads the one before it and the output the last, Z is block tridiagonal. Its factor has
two blocks per layer, and whatever needs products with Z⁻¹ costs the order squared times a layer's width instead of
the order cubed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from lipray.certify.scaled import Map, ScaledProblem

LOOK = 6
"""Lanczos steps after which an estimate is looked at."""


class Slack(Protocol):
    """Z at some y, positive definite."""

    def inverse(self) -> torch.Tensor:
        """G = Z⁻¹, (F, m, m)."""

    def under(self, S: torch.Tensor, G: torch.Tensor) -> torch.Tensor:
        """S Z⁻¹ or its conjugate transpose, for the (F, m, m) matrices ``S``, which may be overwritten."""

    def reach(self, dy: torch.Tensor, steps: int) -> float:
        """The largest a with op(y + a dy) - C*C ⪰ 0, estimated."""


def factored(problem: ScaledProblem, y: torch.Tensor) -> Slack | None:
    """Z at y, or ``None`` where it is not positive definite."""
    links = links_of(problem)
    return DenseSlack.at(problem, y) if links is None else ChainSlack.at(problem, links, y)


class DenseSlack:
    """By a Cholesky factor of every slice."""

    def __init__(self, problem: ScaledProblem, L: torch.Tensor) -> None:
        self._problem, self._L = problem, L

    @classmethod
    def at(cls, problem: ScaledProblem, y: torch.Tensor) -> DenseSlack | None:
        """Z at y, or ``None`` where it is not positive definite."""
        L = problem.factor(problem.slack(y))
        return None if L is None else cls(problem, L)

    def inverse(self) -> torch.Tensor:
        """G = Z⁻¹."""
        return self._problem.inverse(self._L)

    def under(self, S: torch.Tensor, G: torch.Tensor) -> torch.Tensor:
        """S Z⁻¹."""
        return S @ G

    def reach(self, dy: torch.Tensor, steps: int) -> float:
        """The largest a with op(y + a dy) - C*C ⪰ 0, estimated."""
        return reach(self._L, self._problem.op(dy), steps)


class ChainSlack:
    """Of a chain in one slice: Z = L Lᵀ with the blocks R_l, and -T_lᵀ below them, T_l = R_{l-1}⁻¹ B_lᵀ Λ_l.

    R_l R_lᵀ = 2 Λ_l - T_lᵀ T_l, less C*C in the last layer; R_0 = sqrt(ρ) I.
    """

    def __init__(
        self, problem: ScaledProblem, links: tuple[Map, ...], R: list[torch.Tensor], T: list[torch.Tensor]
    ) -> None:
        self._problem, self._R, self._T = problem, R, T
        d = problem.d
        self._places = [slice(0, d), *(slice(rows.start + d, rows.stop + d) for rows, _, _ in links)]

    @classmethod
    def at(cls, problem: ScaledProblem, links: tuple[Map, ...], y: torch.Tensor) -> ChainSlack | None:
        """Z at y, or ``None`` where it is not positive definite."""
        rho = float(y[problem.n])
        if not rho > 0.0:
            return None
        R = [rho**0.5 * torch.eye(problem.d, dtype=torch.float64)]
        T: list[torch.Tensor] = []
        for rows, _, block in links:
            T.append(torch.linalg.solve_triangular(R[-1], (block[0] * y[rows, None]).T, upper=False))
            D = -(T[-1].T @ T[-1])
            D.diagonal().add_(2.0 * y[rows])
            if rows is links[-1][0]:
                C = problem.C[0, :, rows.start + problem.d :]
                D -= C.T @ C
            L, info = torch.linalg.cholesky_ex(D)
            if int(info) != 0:
                return None
            R.append(L)
        return cls(problem, links, R, T)

    def inverse(self) -> torch.Tensor:
        """G = Z⁻¹: with S_l = R_{l-1}⁻ᵀ T_l the rows of a layer are S_l times those below, from the last one up."""
        m, places = self._problem.m, self._places
        G = torch.empty(m, m, dtype=torch.float64)
        G[places[-1], places[-1]] = torch.cholesky_inverse(self._R[-1])
        for at in range(len(places) - 2, -1, -1):
            own, below, rest = places[at], places[at + 1], slice(places[at + 1].start, m)
            S = torch.linalg.solve_triangular(self._R[at].T, self._T[at], upper=True)
            across = S @ G[below, rest]
            G[own, rest], G[rest, own] = across, across.T
            corner = across[:, : S.shape[1]] @ S.T
            corner += torch.cholesky_inverse(self._R[at])
            G[own, own] = (corner + corner.T) / 2
        return G[None]

    def under(self, S: torch.Tensor, G: torch.Tensor) -> torch.Tensor:
        """Z⁻¹ Sᵀ, the transpose of S Z⁻¹."""
        del G
        return self._up(self._down(S.mT.contiguous()))

    def reach(self, dy: torch.Tensor, steps: int) -> float:
        """The largest a with op(y + a dy) - C*C ⪰ 0, estimated."""
        return lanczos(
            lambda w: self._down(self._problem.op_times(dy, self._up(w.clone()))),
            (1, self._problem.m),
            torch.float64,
            steps,
        )

    def _down(self, w: torch.Tensor) -> torch.Tensor:
        """L⁻¹ w, in the place of w."""
        before: torch.Tensor | None = None
        for at, own in enumerate(self._places):
            part = w[0, own]
            if before is not None:
                part = part + self._T[at - 1].T @ before
            before = torch.linalg.solve_triangular(self._R[at], part, upper=False)
            w[0, own] = before
        return w

    def _up(self, w: torch.Tensor) -> torch.Tensor:
        """L⁻ᵀ w, in the place of w."""
        after: torch.Tensor | None = None
        for at in range(len(self._places) - 1, -1, -1):
            part = w[0, self._places[at]]
            if after is not None:
                part = part + self._T[at] @ after
            after = torch.linalg.solve_triangular(self._R[at].T, part, upper=True)
            w[0, self._places[at]] = after
        return w


def links_of(problem: ScaledProblem) -> tuple[Map, ...] | None:
    """The maps of a chain in order, or ``None``: each layer reads the one before it, and the output the last."""
    if problem.count != 1 or problem.dtype.is_complex or not problem.maps:
        return None
    links = tuple(sorted(problem.maps, key=lambda link: link[0].start))
    read = slice(0, problem.d)
    for rows, columns, _ in links:
        if columns != read:
            return None
        read = slice(rows.start + problem.d, rows.stop + problem.d)
    whole = read.stop == problem.m and not bool(problem.C[..., : read.start].any())
    return links if whole else None


def reach(L: torch.Tensor, dS: torch.Tensor, steps: int) -> float:
    """The largest a with L L* + a dS ⪰ 0, estimated by Lanczos on L⁻¹ dS L⁻* (slices in parallel)."""

    def between(w: torch.Tensor) -> torch.Tensor:
        w = torch.linalg.solve_triangular(L.mH, w, upper=True)
        inner: torch.Tensor = torch.linalg.solve_triangular(L, dS @ w, upper=False)
        return inner

    return lanczos(between, (dS.shape[0], dS.shape[-1]), dS.dtype, steps)


def lanczos(
    apply: Callable[[torch.Tensor], torch.Tensor], shape: tuple[int, int], dtype: torch.dtype, steps: int
) -> float:
    """The largest a with I + a M ⪰ 0 for all slices of a Hermitian M, (F, m) its shape, by its products with vectors.

    It ends as soon as the estimate, on the side that makes the step shorter, says that a full step is possible, or
    no longer changes much.
    """
    count, m = shape
    steps = min(steps, m)
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(count, m, 1, dtype=torch.float64, generator=generator).to(dtype)
    basis = torch.zeros(count, steps + 1, m, dtype=dtype)
    T = torch.zeros(count, steps + 1, steps + 1, dtype=torch.float64)
    basis[:, 0] = (w / torch.linalg.vector_norm(w, dim=1, keepdim=True))[..., 0]
    low = 0.0
    for step in range(1, steps + 1):
        known = basis[:, :step]
        w = apply(known[:, -1, :, None])
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
