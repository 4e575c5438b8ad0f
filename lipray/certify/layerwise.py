"""A start for deep chains: multipliers chosen layer after layer, each the best for the map that follows.

The greedy form of ECLipsE (Xu and Sivaranjani 2024), whose layers' semidefinite programs are LipSDP-Neuron of a network
of one activation layer, with weights F, FFᵀ = Q the shape matrix before the activation, and W, the next map. Here
lipray's own interior-point method solves them. It loses what layers could do for each other, but a hundred small
problems are cheap where the joint one is not, and the closed form is a thousand times worse on networks that deep.
"""

from __future__ import annotations

import math
import time

import numpy as np
import torch

from lipray.certify import interior
from lipray.certify.inequality import Inequality, is_chain
from lipray.verify.elimination import Blocks

DEEP = 8
"""Activation layers from which on the closed form is too far off to start from."""
WIDEST = 700
"""Largest order of a layer's inequality."""
TOLERANCE = 1e-2
"""Of a layer's problem. A tighter one takes longer, and is no better for the layers that follow."""
ITERATIONS = 30
SHARE = 0.5
"""Of the time that is left: afterwards the remaining layers take the closed form."""
MARGIN = 1.0 - 1e-9


def layerwise(blocks: Blocks, *, deadline: float | None = None) -> tuple[np.ndarray, ...] | None:
    """Multipliers of a deep chain, not proven; ``None`` for other networks, and where numbers fail.

    Slopes begin at 0: the linear parts of others (leaky ReLU) make every layer read all before it.

    Args:
        blocks: the prepared sector form.
        deadline: ``time.monotonic()`` of the end of the whole solve.
    """
    layers = range(1, blocks.depth + 1)
    if not is_chain(blocks) or blocks.depth < DEEP or 2 * max(blocks.widths) > WIDEST:
        return None
    now = time.monotonic()
    end = None if deadline is None else now + SHARE * (deadline - now)
    chosen = []
    Q = blocks.grams[1][1]
    for j in layers:
        following = blocks.maps[j + 1][j]
        top, norm = float(torch.linalg.matrix_norm(Q, 2)), float(torch.linalg.matrix_norm(following, 2))
        if not (0.0 < top < math.inf and 0.0 < norm < math.inf):
            return None
        q = (Q + Q.T) / (2.0 * top)
        lam = torch.ones(len(q), dtype=torch.float64)
        if end is None or time.monotonic() < end:
            lam = _best(q, following / norm, lam, end)
        L, info = torch.linalg.cholesky_ex(torch.diag(2.0 * lam) - lam[:, None] * q * lam)
        if int(info) != 0:
            return None
        chosen.append((lam / top).numpy())
        half = torch.linalg.solve_triangular(L, following.T, upper=False)
        Q = top * (half.T @ half)
    return tuple(chosen)


def _best(q: torch.Tensor, W: torch.Tensor, start: torch.Tensor, end: float | None) -> torch.Tensor:
    """Multipliers λ that make ‖W (2Λ - ΛqΛ)⁻¹ Wᵀ‖ small, from the closed form ``start``; λmax(q) is 1."""
    values, vectors = torch.linalg.eigh(q)
    kept = values > len(q) * 1e-15
    F = vectors[:, kept] * values[kept].sqrt()
    n, d = F.shape
    output = torch.linalg.qr(W, mode="r").R if len(W) > n else W
    B = torch.cat([F, torch.zeros(n, n, dtype=torch.float64)], dim=1)
    C = torch.cat([torch.zeros(len(output), d, dtype=torch.float64), output], dim=1)
    first = torch.linalg.matrix_norm(W @ torch.linalg.solve(2.0 * torch.diag(start) - q, W.T), 2)
    form = Inequality(B[None], C[None], d, ((slice(0, n), slice(0, d)),))
    found = interior.minimise(form, start, float(first), tolerance=TOLERANCE, iterations=ITERATIONS, deadline=end)
    lam = found.multipliers
    root = lam.sqrt()
    peak = float(torch.linalg.matrix_norm(root[:, None] * q * root, 2))
    return lam * min(1.0, 2.0 * MARGIN / peak) if bool(torch.isfinite(lam).all()) and peak > 0.0 else start
