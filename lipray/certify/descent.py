"""First-order minimisation of the bound over multipliers, for problems beyond the interior-point method.

The output matrix P(λ) = C M(λ)⁻¹ Cᵀ is matrix-convex in λ, and its gradient comes almost free with the
factorisation that evaluates it: with Y = M⁻¹ Cᵀ, dP/dλ_a = -(y_a g_aᵀ + g_a y_aᵀ), g_a = y_a - b_a Y. The largest
eigenvalue is smoothed as (tr P^p)^(1/p), p growing, and minimised over log λ by L-BFGS with Armijo
backtracking (Nocedal & Wright 2006, algorithms 7.4 and 3.1); a step that leaves M ≻ 0 counts as an
infinite value. Any iterate is feasible, so stopping at any time is sound.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lipray.certify.elimination import Blocks, Factor, eliminate

POWERS = (16.0, 64.0, 256.0)
MEMORY = 20


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
    best_theta, best_value = theta, math.inf
    used, stalled = 0, True
    for stage, power in enumerate(POWERS):
        current = _measure(blocks, theta, widths, power)
        if current is None:
            break
        if current.top < best_value:
            best_theta, best_value = theta, current.top
        steps: list[torch.Tensor] = []
        changes: list[torch.Tensor] = []
        history = [current.value]
        share = (iterations - used) // (len(POWERS) - stage)
        for _ in range(share):
            if deadline is not None and time.monotonic() > deadline:
                return DescentResult(_split(best_theta, widths), best_value, used, stalled=True)
            used += 1
            direction = _two_loop(current.gradient, steps, changes)
            slope = float(direction @ current.gradient)
            if slope >= 0.0:
                steps, changes = [], []
                direction, slope = -current.gradient, -float(current.gradient @ current.gradient)
            length = 1.0 if steps else 0.5 / max(float(current.gradient.abs().max()), 1e-300)
            length = min(length, 2.0 / max(float(direction.abs().max()), 1e-300))
            trial = None
            for _ in range(12):
                trial = _measure(blocks, theta + length * direction, widths, power)
                if trial is not None and trial.value <= current.value + 1e-4 * length * slope:
                    break
                trial, length = None, length * 0.4
                if deadline is not None and time.monotonic() > deadline:
                    break
            if trial is None:
                break
            moved, turned = length * direction, trial.gradient - current.gradient
            if float(moved @ turned) > 1e-12 * float(moved.norm() * turned.norm()):
                steps, changes = [*steps, moved][-MEMORY:], [*changes, turned][-MEMORY:]
            theta, current = theta + moved, trial
            if current.top < best_value:
                best_theta, best_value = theta, current.top
            history.append(current.value)
            if len(history) > 6 and history[-7] - history[-1] < 6.0 * tolerance:
                stalled = False
                break
        else:
            stalled = False
    return DescentResult(_split(best_theta, widths), best_value, used, stalled=stalled)


@dataclass(frozen=True, slots=True)
class _Point:
    value: float
    top: float
    gradient: torch.Tensor


def _split(theta: torch.Tensor, widths: list[int]) -> tuple[np.ndarray, ...]:
    return tuple(part.numpy() for part in torch.split(torch.exp(theta), widths))


def _measure(blocks: Blocks, theta: torch.Tensor, widths: list[int], power: float) -> _Point | None:
    """Give log (tr P^p)^(1/p), λmax(P), and the gradient in log λ."""
    if not bool(torch.isfinite(theta).all()) or float(theta.abs().max()) > 600.0:
        return None
    multipliers = torch.split(torch.exp(theta), widths)
    factor = eliminate(blocks, multipliers, proof=False)
    if factor is None:
        return None
    values, vectors = torch.linalg.eigh(factor.gram)
    top = float(values[-1])
    if not math.isfinite(top) or top <= 0.0:
        return None
    relative = (values / top).clamp(min=0.0)
    total = float((relative**power).sum())
    weights = relative ** (power - 1.0) / (total * top)
    kept = weights > 1e-12 * float(weights.max())
    directions = vectors[:, kept] * weights[kept].sqrt()
    gradient = _gradient(blocks, factor, directions) * torch.exp(theta)
    return _Point(math.log(top) + math.log(total) / power, top, gradient)


def _gradient(blocks: Blocks, factor: Factor, directions: torch.Tensor) -> torch.Tensor:
    """Derivative d <W, P> / dλ for W = directions directionsᵀ."""
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
    return torch.cat(parts)


def _two_loop(gradient: torch.Tensor, steps: list[torch.Tensor], changes: list[torch.Tensor]) -> torch.Tensor:
    q = gradient.clone()
    alphas = []
    for s, c in zip(reversed(steps), reversed(changes), strict=True):
        alpha = float(s @ q) / float(s @ c)
        alphas.append(alpha)
        q -= alpha * c
    if steps:
        q *= float(steps[-1] @ changes[-1]) / float(changes[-1] @ changes[-1])
    for s, c, alpha in zip(steps, changes, reversed(alphas), strict=True):
        q += (alpha - float(c @ q) / float(s @ c)) * s
    return -q
