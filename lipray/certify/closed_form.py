"""ECLipsE-Fast's multipliers: a feasible start for every network, in closed form."""

from __future__ import annotations

import math

import numpy as np
import torch

from lipray.verify.elimination import Blocks, block_row, powers_of_two, self_product
from lipray.verify.spectral import largest_eigenvalue_bound


def closed_form(blocks: Blocks) -> tuple[np.ndarray, ...]:
    """λ of ECLipsE-Fast: each layer's T is λmax of its shape matrix, times I; feasible for every network."""
    chosen: list[torch.Tensor] = []
    rows: list[dict[int, torch.Tensor]] = [{}]
    scales = [torch.ones(0, dtype=torch.float64)]
    for j in range(1, blocks.depth + 1):
        row = block_row(blocks, j, -torch.ones(blocks.sizes[j], dtype=torch.float64), chosen, rows, scales, 0.0)
        Q = self_product(blocks, j, torch.ones(blocks.sizes[j], dtype=torch.float64), row, 0.0)
        top = largest_eigenvalue_bound(Q)
        if not math.isfinite(top):
            break
        weight = 1.0 / top if top > 0.0 and math.isfinite(1.0 / top) else 1.0
        lam = torch.full((blocks.sizes[j],), weight, dtype=torch.float64)
        scale = powers_of_two(lam)
        ratio = weight / float(scale[0])
        S = torch.diag(2.0 * lam / scale**2) - Q * ratio**2
        row = {k: part * ratio for k, part in row.items()}
        L, info = torch.linalg.cholesky_ex(S)
        if int(info) != 0:
            break
        row[j] = L
        chosen.append(lam)
        rows.append(row)
        scales.append(scale)
    return tuple(lam.numpy() for lam in chosen)
