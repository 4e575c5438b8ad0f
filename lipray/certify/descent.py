"""First-order minimisation of the bound over multipliers, for problems beyond the interior-point method.

The output matrix P(λ) = C M(λ)⁻¹ Cᵀ is matrix-convex in λ, and its gradient comes almost free with the
factorisation that evaluates it: with Y = M⁻¹ Cᵀ, dP/dλ_a = -(y_a g_aᵀ + g_a y_aᵀ), g_a = y_a - b_a Y. The steps are
those of ``lipray.certify.lbfgs``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse.linalg import ArpackError, eigsh

from lipray.certify import lbfgs
from lipray.certify.lbfgs import Point, smoothed
from lipray.partition.cost import FULL_EIGENVALUES
from lipray.verify.elimination import Blocks, Factor, eliminate

LARGEST = 96
"""How many eigenvalues of a matrix of order above ``FULL_EIGENVALUES`` are looked at."""
LANCZOS_TOLERANCE = 1e-8


@dataclass(frozen=True, slots=True)
class DescentResult:
    """The best multipliers found and their (unproven) value λmax(P); ``stalled``: no tolerance met, or no time left."""

    multipliers: tuple[np.ndarray, ...]
    value: float
    iterations: int
    stalled: bool


def minimise(
    blocks: Blocks,
    start: Sequence[np.ndarray],
    *,
    iterations: int,
    tolerance: float = 1e-5,
    deadline: float | None = None,
) -> DescentResult:
    """Minimise the bound from feasible multipliers ``start``; at most ``iterations`` factorisations with gradient."""
    widths = list(blocks.widths)
    theta = torch.log(torch.from_numpy(np.concatenate(list(start))))
    found = lbfgs.minimise(
        lambda point, power: _measure(blocks, point, widths, power),
        theta,
        iterations=iterations,
        tolerance=tolerance,
        deadline=deadline,
    )
    return DescentResult(_split(found.theta, widths), found.value, found.iterations, stalled=found.stalled)


def _split(theta: torch.Tensor, widths: list[int]) -> tuple[np.ndarray, ...]:
    return tuple(part.numpy() for part in torch.split(torch.exp(theta), widths))


def _measure(blocks: Blocks, theta: torch.Tensor, widths: list[int], power: float) -> Point | None:
    """Give log (tr P^p)^(1/p), λmax(P), and the gradient in log λ."""
    if not bool(torch.isfinite(theta).all()) or float(theta.abs().max()) > 600.0:
        return None
    factor = eliminate(blocks, torch.split(torch.exp(theta), widths), proof=False)
    if factor is None:
        return None
    weighed = weigh(factor.gram, power)
    if weighed is None:
        return None
    value, top, directions = weighed
    return Point(
        value, top, gradient(blocks, factor, solve_back(blocks, factor, directions), directions) * torch.exp(theta)
    )


def weigh(gram: torch.Tensor, power: float) -> tuple[float, float, torch.Tensor] | None:
    """The logarithm of (tr P^p)^(1/p), λmax(P), and D with D Dᵀ the derivative of the former in P."""
    values, vectors = _spectrum(gram)
    top = float(values[-1])
    if not math.isfinite(top) or top <= 0.0:
        return None
    value, top, weights = smoothed(values, power)
    kept = weights > 1e-12 * float(weights.max())
    return value, top, vectors[:, kept] * weights[kept].sqrt()


def _spectrum(gram: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues, ascending, and eigenvectors; of a large matrix only the largest, which are all that has weight."""
    if len(gram) > FULL_EIGENVALUES and bool(torch.isfinite(gram).all()):
        start = np.random.default_rng(0).standard_normal(len(gram))
        try:
            values, vectors = eigsh(gram.numpy(), k=LARGEST, which="LA", v0=start, tol=LANCZOS_TOLERANCE)
        except ArpackError:
            pass  # all of them, then
        else:
            order = np.argsort(values)
            return torch.from_numpy(values[order].copy()), torch.from_numpy(vectors[:, order].copy())
    spectrum = torch.linalg.eigh(gram)
    return spectrum.eigenvalues, spectrum.eigenvectors


def solve_back(blocks: Blocks, factor: Factor, directions: torch.Tensor) -> dict[int, torch.Tensor]:
    """Y = M⁻¹ Cᵀ D, the rows of every activation layer."""
    last = len(blocks.sizes) - 1
    rows, scales = factor.blocks, factor.scales
    y: dict[int, torch.Tensor] = {}
    for k in range(last - 1, 0, -1):
        right = (
            rows[last][k].T @ directions
            if k in rows[last]
            else torch.zeros(blocks.sizes[k], directions.shape[1], dtype=torch.float64)
        )
        for j in range(k + 1, last):
            if k in rows[j]:
                right = right - rows[j][k].T @ (y[j] * scales[j][:, None])
        y[k] = torch.linalg.solve_triangular(rows[k][k].T, right, upper=True) / scales[k][:, None]
    return y


def gradient(blocks: Blocks, factor: Factor, y: dict[int, torch.Tensor], directions: torch.Tensor) -> torch.Tensor:
    """Derivative d <D Dᵀ, P> / dλ, given Y = M⁻¹ Cᵀ D."""
    last = len(blocks.sizes) - 1
    # The input's part of Y: y_0 = C_0ᵀ W + Σ_j B_j0ᵀ λ_j y_j enters through the Gram matrices only.
    parts = []
    for j in range(1, last):
        read = torch.zeros_like(y[j])
        for k, matrix in blocks.maps[j].items():
            if k > 0:
                read += matrix @ y[k]
        if j in blocks.grams[j]:
            for i in range(1, last):
                low, high = min(i, j), max(i, j)
                if low in blocks.grams[high]:
                    gram = blocks.grams[high][low]
                    lam = factor.multipliers[i - 1][:, None]
                    read += (gram if j == high else gram.T) @ (lam * y[i])
            if j in blocks.grams[last]:
                read += blocks.grams[last][j].T @ directions
        parts.append(-2.0 * (y[j] * (y[j] - read)).sum(dim=1))
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)
