"""The tail's value and derivatives, for an optimiser; nothing here is a proof."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lipray.certify.descent import gradient, solve_back, weigh
from lipray.verify.elimination import Blocks, eliminate
from lipray.verify.torus.tail import factor_of, with_input


@dataclass(frozen=True, slots=True)
class TailPoint:
    """Without proof: log of the smoothed value, λmax, the gradient in λ, and D_R with D_R D_Rᵀ = d value / dQ."""

    value: float
    top: float
    gradient: torch.Tensor
    directions: torch.Tensor


def measure_tail(
    blocks: Blocks, gram: torch.Tensor, multipliers: Sequence[torch.Tensor], power: float
) -> TailPoint | None:
    """The smoothed value and its derivatives; ``None`` where infeasible."""
    root = factor_of(gram, 0.0)
    if root is None:
        return None
    loaded = with_input(blocks, root, proof=False)
    factor = eliminate(loaded, multipliers, proof=False)
    if factor is None:
        return None
    weighed = weigh(factor.gram, power)
    if weighed is None:
        return None
    value, top, directions = weighed
    y = solve_back(loaded, factor, directions)
    slopes = gradient(loaded, factor, y, directions)
    last = len(blocks.sizes) - 1
    rows = torch.zeros(blocks.sizes[0], directions.shape[1], dtype=torch.float64)
    if 0 in blocks.maps[last]:
        rows += blocks.maps[last][0].T @ directions
    for j in range(1, last):
        if 0 in blocks.maps[j]:
            rows += blocks.maps[j][0].T @ (factor.multipliers[j - 1][:, None] * y[j])
    return TailPoint(value, top, slopes, rows)
