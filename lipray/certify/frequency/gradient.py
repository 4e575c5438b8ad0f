"""Derivatives of what a level hands on, in its multipliers and in the shape matrices that enter.

For a weight V = D D* on Γ = C M⁻¹ C* and Y = M⁻¹ C* D,

    ∂<V, Γ>/∂λ_a = -2 Re y_a (y_a - b_a Y)*,        ∂<V, Γ>/∂Q̄ = h h*,   h = C_0* D + Σ_j B_j0* λ_j y_j = Q̄⁻¹ Y_0.

A weight of rank r stays of rank r on its way back through all levels, so that once the blocks of the factor are
there a gradient costs r columns instead of full matrices.
"""

from __future__ import annotations

import math

import torch

from lipray.verify.torus.elimination import LevelFactor
from lipray.verify.torus.head import Head, waves
from lipray.verify.torus.levels import Expression, Level
from lipray.verify.torus.symbols import Frequencies, Symbol


def pull_back_level(
    level: Level, factor: LevelFactor, shape: torch.Tensor | None, directions: torch.Tensor, folded: int
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Gradient in λ per layer (summed over the batch), and h for the shape matrices that enter, (F, d, r).

    Args:
        level: the level at F frequencies.
        factor: its factorisation, blocks kept.
        shape: Q̄ that entered, ``None`` for the identity.
        directions: D on what left, (F / folded, m, r).
        folded: aliases per frequency of the next level.
    """
    parts = len(level.parts)
    starts = [sum(level.parts[:i]) for i in range(parts + 1)]
    # Q' = 1/S Σ Γ: every alias gets the same weight, over S.
    D = _out_of_phases(level, directions.repeat_interleave(folded, dim=0) * folded**-0.5)
    depth = len(level.layers)
    rows, scales, lams = factor.rows, factor.scales, factor.multipliers
    y: list[torch.Tensor] = [torch.empty(0)] * depth
    for k in reversed(range(depth)):
        right: torch.Tensor | None = None
        if k in rows[depth]:
            right = rows[depth][k].mH @ D
        for j in range(k + 1, depth):
            if k in rows[j]:
                term = rows[j][k].mH @ (y[j] * scales[j][:, None])
                right = -term if right is None else right - term
        if right is None:
            y[k] = torch.zeros(level.count, level.layers[k].size, D.shape[-1], dtype=D.dtype)
        else:
            y[k] = torch.linalg.solve_triangular(rows[k][k].mH, right, upper=True) / scales[k][:, None]
    h = torch.zeros(level.count, starts[-1], D.shape[-1], dtype=D.dtype)
    start = 0
    for reads, size in zip(level.outputs, level.output_sizes, strict=True):
        _scatter(h, reads, D[:, start : start + size], parts, starts)
        start += size
    for layer, lam, own in zip(level.layers, lams, y, strict=True):
        _scatter(h, layer.reads, own * lam[:, None], parts, starts)
    entering = h if shape is None else shape @ h
    gradients = []
    for j, layer in enumerate(level.layers):
        read = torch.zeros_like(y[j])
        for source, symbol in layer.reads.items():
            if source < parts:
                read = read + _apply(symbol, entering[:, starts[source] : starts[source + 1]])
            else:
                read = read + _apply(symbol, y[source - parts])
        gradients.append(-2.0 * (y[j] * (y[j] - read).conj()).real.sum(dim=(0, 2)))
    return gradients, h


def pull_back_head(
    head: Head, directions: torch.Tensor, frequencies: Frequencies, sides: tuple[int, ...]
) -> torch.Tensor:
    """h(ω) = N^(-D/2) Ŵ(ω)* D, (F, channels, r): the weight D Dᵀ on Q is Σ h(ω) h(ω)* on Γ(ω)."""
    g = waves(head, frequencies, sides)
    scale = math.prod(sides) ** -0.5
    if head.weight is not None:
        directions = head.weight.T @ directions
    stacked = directions.reshape(head.channels, head.places, -1).to(torch.complex128)
    pulled: torch.Tensor = torch.einsum("cmr,fm->fcr", stacked, g.conj()) * scale
    return pulled


def _out_of_phases(level: Level, directions: torch.Tensor) -> torch.Tensor:
    """Weights on the outputs themselves from those on their phases: Σ_φ e^{-iω·φ} D_φ."""
    start, result = 0, []
    for size, wave in zip(level.output_sizes, level.waves, strict=True):
        phases = 1 if wave is None else wave.shape[1]
        part = directions[:, start : start + phases * size]
        start += phases * size
        if wave is not None:
            part = (part.reshape(part.shape[0], phases, size, -1) * wave.conj()[:, :, None, None]).sum(dim=1)
        result.append(part)
    return torch.cat(result, dim=1)


def _apply(symbol: Symbol, values: torch.Tensor) -> torch.Tensor:
    if symbol.diagonal:
        return symbol.values[:, :, None] * values
    return symbol.values @ values


def _scatter(h: torch.Tensor, reads: Expression, values: torch.Tensor, parts: int, starts: list[int]) -> None:
    """Add W* values to the parts that an expression reads."""
    for source, symbol in reads.items():
        if source < parts:
            place = slice(starts[source], starts[source + 1])
            if symbol.diagonal:
                h[:, place] += symbol.values.conj()[:, :, None] * values
            else:
                h[:, place] += symbol.values.mH @ values
