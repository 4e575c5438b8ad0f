"""Constants of margins f_i - f_j from an output shape matrix, rounded outward."""

from __future__ import annotations

import math

import numpy as np

from lipray.verify.outward import mul_up, up

UNIT = 2.0**-53


def margin_bounds(gram: np.ndarray, before: float, upper: float) -> np.ndarray:
    """Upper bounds of Lip(f_i - f_j) for all pairs of outputs, (K, K), symmetric with a diagonal of zeros.

    With Δy Δyᵀ ⪯ Γ for unit inputs of the last block, (Δy_i - Δy_j)² ≤ (e_i - e_j)ᵀ Γ (e_i - e_j), times the squared
    constant of what precedes it; and |Δf_i - Δf_j| ≤ √2 ‖Δf‖. The smaller of the two is given.

    Rounding: the four terms are added with an error of at most 4 u times the sum of their magnitudes (Higham 2002,
    section 4.2), which is added before the root is taken; every later operation steps to the next double.

    Args:
        gram: Γ of the last block, (K, K).
        before: constant of all blocks before it.
        upper: constant of the whole network.
    """
    diagonal = np.diagonal(gram)
    square = diagonal[:, None] + diagonal[None, :] - gram - gram.T
    magnitude = np.abs(diagonal)[:, None] + np.abs(diagonal)[None, :] + np.abs(gram) + np.abs(gram.T)
    raised = np.nextafter(np.maximum(square + 8.0 * UNIT * magnitude, 0.0), math.inf)
    bounds: np.ndarray = np.nextafter(np.sqrt(raised), math.inf)
    if before != 1.0:
        bounds = np.nextafter(bounds * before, math.inf) if before > 0.0 else np.zeros_like(bounds)
    bounds = np.minimum(bounds, mul_up(up(math.sqrt(2.0)), upper))
    bounds = np.maximum(bounds, bounds.T)
    np.fill_diagonal(bounds, 0.0)
    return bounds
