"""What rounding can amount to on one level, as numbers to lower the factored matrix's diagonal by.

With q_c = sqrt(Q̄_cc), |Q̄_cd| <= q_c q_d. For rows W that read the parts, |fl(W Q̄ W*) - exact| <= e rᵀ + r eᵀ
entrywise with r = |W| q and e = (its error) q + γ r. With the rows' weights w that error matrix E lies below the
diagonal of its row sums w_a (e_a Σ w r + r_a Σ w e), and below 2 ‖w e‖ ‖w r‖ times the identity on the rows that read
the parts. Either serves for a frequency, but not one for some rows and the other for the rest.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lipray.verify.linear_maps import UNIT
from lipray.verify.torus.levels import Expression, Level

LEAST_SCALE = 2.0**-7
"""Share of an output channel's magnitude (all frequencies, no cancellation) that it is scaled by."""


def lowering(
    level: Level,
    filled: Sequence[set[int]],
    lams: Sequence[torch.Tensor],
    scales: Sequence[torch.Tensor],
    shape: torch.Tensor | None,
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """What the diagonal of each layer is lowered by, (F or 1, n) each, the outputs' share last; the outputs' scales.

    Args:
        level: the level.
        filled: columns of each row of the factor that may be nonzero, the outputs' row last.
        lams: multipliers per layer.
        scales: powers of two that scale the layers.
        shape: Q̄ of the stacked parts, ``None`` for the identity.
    """
    parts, depth = len(level.parts), len(level.layers)
    starts = [sum(level.parts[:i]) for i in range(parts + 1)]
    sizes = [*(layer.size for layer in level.layers), sum(level.output_sizes)]
    below = []
    for j, row in enumerate(filled):
        touching = [k for k in range(len(sizes)) if row & filled[k]]
        neurons = sum(sizes[k] for k in touching)
        terms = sum(sizes[k] for k in row if k < depth) + sum(level.parts) + 8
        gamma = 4.0 * terms * UNIT / (1.0 - terms * UNIT)
        below.append(torch.full((1, sizes[j]), 4.0 * gamma * neurons, dtype=torch.float64))
    q = torch.ones(1, starts[-1], dtype=torch.float64)
    if shape is not None:
        q = shape.diagonal(dim1=-2, dim2=-1).real.clamp(min=0.0).sqrt() * (1.0 + 4.0 * UNIT)
    least = _least_outputs(level, q, starts, scales)
    stacked: list[tuple[Expression, torch.Tensor, int, slice]] = []
    for j, layer in enumerate(level.layers):
        stacked.append((layer.reads, (lams[j] / scales[j])[None], j, slice(0, layer.size)))
    start = 0
    for reads, size in zip(level.outputs, level.output_sizes, strict=True):
        place = slice(start, start + size)
        stacked.append((reads, 1.0 / least[:, place], depth, place))
        start += size
    _for_layers(stacked, below, parts, scales)
    _for_parts(stacked, below, q, starts)
    return below, least


def _for_parts(
    stacked: list[tuple[Expression, torch.Tensor, int, slice]],
    below: list[torch.Tensor],
    q: torch.Tensor,
    starts: list[int],
) -> None:
    """The error of products with the shape matrices that enter."""
    parts = len(starts) - 1
    gamma = 4.0 * (starts[-1] + 8) * UNIT
    rows: list[tuple[torch.Tensor, torch.Tensor, int, slice]] = []
    for reads, weight, j, place in stacked:
        r, e = row_sizes({p: s for p, s in reads.items() if p < parts}, q, starts)
        if r is not None and e is not None:
            rows.append((weight * r, weight * (e + gamma * r), j, place))
    if not rows:
        return
    all_r = torch.cat([r for r, _, _, _ in rows], dim=1)
    all_e = torch.cat([e for _, e, _, _ in rows], dim=1)
    total_r, total_e = all_r.sum(dim=1, keepdim=True), all_e.sum(dim=1, keepdim=True)
    norm = 2.0 * torch.linalg.vector_norm(all_r, dim=1) * torch.linalg.vector_norm(all_e, dim=1)
    by_norm = norm < (all_e * total_r + all_r * total_e).amax(dim=1)
    for r, e, j, place in rows:
        sums = torch.where(by_norm[:, None], norm[:, None], e * total_r + r * total_e) * (1.0 + 1e-9)
        _raise(below, j, place, sums)


def _for_layers(
    stacked: list[tuple[Expression, torch.Tensor, int, slice]],
    below: list[torch.Tensor],
    parts: int,
    scales: Sequence[torch.Tensor],
) -> None:
    """Row and column sums of the errors of the maps between layers."""
    for reads, weight, j, place in stacked:
        for source, symbol in reads.items():
            if source < parts or symbol.error is None:
                continue
            k = source - parts
            scaled = symbol.error / scales[k]
            across = weight * (scaled if symbol.diagonal else scaled.sum(dim=1))
            down = across if symbol.diagonal else weight @ scaled
            _raise(below, j, place, across * (1.0 + 1e-9))
            _raise(below, k, slice(None), down * (1.0 + 1e-9))


def _raise(below: list[torch.Tensor], j: int, place: slice, amount: torch.Tensor) -> None:
    below[j] = below[j].expand(max(below[j].shape[0], amount.shape[0]), -1).clone()
    below[j][:, place] += amount


def _least_outputs(level: Level, q: torch.Tensor, starts: list[int], scales: Sequence[torch.Tensor]) -> torch.Tensor:
    """Scales of the output channels, (F or 1, m); any positive numbers would be sound.

    They weigh the outputs' errors in the neurons' rows, so that a channel should not be scaled by far less
    than its map's magnitude, even at a frequency where the map vanishes (an average pool's zeros).
    """
    parts = len(level.parts)
    found: list[torch.Tensor] = []
    for reads, rows in zip(level.outputs, level.output_sizes, strict=True):
        total: torch.Tensor | float = 0.0
        for source, symbol in reads.items():
            if source < parts:
                size, _ = row_sizes({source: symbol}, q, starts)
                total = total + size**2 if size is not None else total
            else:
                square = (symbol.magnitude / scales[source - parts]) ** 2
                total = total + (square if symbol.diagonal else square.sum(dim=1))[None]
        found.append(torch.as_tensor(total, dtype=torch.float64).expand(q.shape[0], rows).sqrt() * LEAST_SCALE)
    least = torch.cat(found, dim=1)
    return torch.where(least > 0.0, least, torch.ones_like(least)).clamp(min=1e-140)


def row_sizes(reads: Expression, q: torch.Tensor, starts: list[int]) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Give r = |W| q and its error part, (F, rows) each."""
    r: torch.Tensor | None = None
    e: torch.Tensor | None = None
    for part, symbol in reads.items():
        own = q[:, starts[part] : starts[part + 1]]
        if symbol.diagonal:
            size = own * symbol.magnitude
            doubt = torch.zeros_like(size) if symbol.error is None else own * symbol.error
        else:
            size = own @ symbol.magnitude.T
            doubt = torch.zeros_like(size) if symbol.error is None else own @ symbol.error.T
        r = size if r is None else r + size
        e = doubt if e is None else e + doubt
    return r, e
