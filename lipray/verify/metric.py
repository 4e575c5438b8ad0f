"""Composition of tiles by metrics: every tile says how much it makes of each direction of its receptive field.

Tile i sees its receptive field, Δx_i = E_i Δx with E_i a selection of rows of the identity, and its metric P_i
(``lipray.verify.transpose``) gives ‖Δf_i‖² <= Δx_iᵀ P_i Δx_i. The tiles' outputs together are the block's output, each
entry once, so

    ‖Δf‖² = Σ_i ‖Δf_i‖² <= Δxᵀ (Σ_i E_iᵀ P_i E_i) Δx <= λmax(Σ_i E_iᵀ P_i E_i) ‖Δx‖².

With P_i <= L_i² I this is at most the overlap-aware bound. For a linear block P_i = F_iᵀ F_i and the sum is FᵀF: exact,
whatever the tiling. ``max_i λmax(P_i)`` is no bound where fields overlap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from lipray.verify.linear_maps import UNIT
from lipray.verify.outward import add_up, sqrt_up, up
from lipray.verify.spectral import largest_eigenvalue_bound
from lipray.verify.tiles import Window

BELOW = 1e-300
"""Added to squares: far above what sums of numbers near the smallest double can lose."""


def places(field: Window, shape: Sequence[int]) -> np.ndarray:
    """Indices, in the flattened input map, of the entries of a receptive field: all channels of its window.

    Args:
        field: half-open window per spatial axis; empty for the whole map.
        shape: (C, ...) of the block's input map.
    """
    index = np.arange(math.prod(shape)).reshape(shape)
    return index[(slice(None), *(slice(low, high) for low, high in field))].reshape(-1)


def metric_bound(metrics: Sequence[torch.Tensor], fields: Sequence[Window], shape: Sequence[int]) -> float:
    """sqrt(λmax(Σ E_iᵀ P_i E_i)), rounding included.

    Args:
        metrics: P_i of every tile, proven: symmetric positive semidefinite of order C·|field|, float64.
        fields: receptive field of every tile, half-open windows on the block's input map.
        shape: (C, ...) of the block's input map.

    Returns:
        A Lipschitz constant of the block; infinity where a metric is not finite.
    """
    total, magnitude, most = _sums(metrics, fields, shape)
    rows = float(magnitude.sum(dim=1).max())
    if rows == 0.0:
        return 0.0
    if not math.isfinite(rows):
        return math.inf
    # |computed - exact| <= γ A entrywise, and the norm of a symmetric matrix is at most its largest absolute row sum.
    lost = rows * (2.0 * (most + 2) * UNIT) * (1.0 + 8.0 * (len(total) + most) * UNIT)
    return sqrt_up(add_up(add_up(largest_eigenvalue_bound(total), up(lost)), BELOW))


def _sums(
    metrics: Sequence[torch.Tensor], fields: Sequence[Window], shape: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Σ E_iᵀ P_i E_i and Σ E_iᵀ |P_i| E_i in floating point, and how many terms an entry may have."""
    size = math.prod(shape)
    total = torch.zeros(size, size, dtype=torch.float64)
    magnitude = torch.zeros_like(total)
    cover = np.zeros(size, dtype=np.int64)
    for metric, field in zip(metrics, fields, strict=True):
        at = places(field, shape)
        rows = torch.from_numpy(at)
        total[rows[:, None], rows] += metric
        magnitude[rows[:, None], rows] += metric.abs()
        cover[at] += 1
    return total, magnitude, int(cover.max(initial=0))
