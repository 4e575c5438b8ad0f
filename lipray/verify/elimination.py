"""From multipliers to a certified bound: one block Cholesky factorisation, rounding included.

In sector form (``lipray.verify.sector``) take any λ >= 0, one per neuron, and

    M(λ) = E_in + Σ_a λ_a (e_a (e_a - b_a)ᵀ + (e_a - b_a) e_aᵀ),   s = (input, u_1, u_2, ...),

with b_a the row of B that neuron a reads. Slopes in [0, 1] give Δu_a (Δu_a - Δv_a) <= 0, hence
Δsᵀ M Δs <= ‖Δinput‖². If M ≻ 0 and Γ ⪰ C M⁻¹ Cᵀ, then Δy Δyᵀ ⪯ ‖Δinput‖² Γ, so the Lipschitz constant is at
most sqrt(λmax(Γ)), and (e_i - e_j)ᵀ Γ (e_i - e_j) bounds the margin f_i - f_j the same way. Minimising over λ is
LipSDP-Neuron (Fazlyab et al. 2019); the Schur complements met while eliminating layer after layer are
λ(2T - Q)λ with T = 1/λ and Q the shape matrix of the pre-activation, so this is the shape-matrix recursion
Q <- T (2T - Q)⁻¹ T of ECLipsE (Xu & Sivaranjani 2024) in variables whose rounding is easy to bound, and the
constant choice T = λmax(Q) I is ECLipsE-Fast's closed form.

Rounding. Scale rows and columns by powers of two (exact) so that diagonal entries lie in [1, 4]. Floating-point
Cholesky of Ã gives L Lᵀ = Ã + Δ with |Δ_ij| <= γ_{m+1} |l_i||l_j| (Higham 2002, theorem 10.3; any order of
elimination, m the terms of the longest inner product), where |l_i|² <= ã_ii / (1 - γ_{m+1}) and Δ_ij = 0 unless
rows i and j share a column of L: the i-th row sum of |Δ| is at most γ |l_i| Σ_j |l_j| over those rows. So if Cholesky
of Ã = A - diag(c) completes with c_i at least that row sum (and that of the bound on the assembly error of A), then
A ⪰ 0 (the diagonal form of Rump 2006). The output block of A is Γ, chosen after the elimination as the computed
C M⁻¹ Cᵀ plus its own c.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lipray.verify.linear_maps import UNIT
from lipray.verify.sector import SectorForm, Term
from lipray.verify.spectral import largest_eigenvalue_bound

SAFETY = 4.0
"""Factor on γ: blocked and vectorised kernels stay within the textbook constants times this."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """A sector form as dense blocks; row 0 of an index is the input, the last row is the output.

    ``maps[j][k]`` is B_jk (n_j x n_k) for the layers j = 1 .. L, and C_k for j = L + 1. ``errors`` bounds them
    entrywise where they are not exact. ``grams[j][k]`` is B_j0 B_k0ᵀ for the rows that read the input.
    """

    sizes: tuple[int, ...]
    maps: tuple[dict[int, torch.Tensor], ...]
    errors: tuple[dict[int, torch.Tensor], ...]
    grams: tuple[dict[int, torch.Tensor], ...]
    taps: int
    factor: float

    @property
    def widths(self) -> tuple[int, ...]:
        """Number of neurons of each activation layer."""
        return self.sizes[1:-1]

    @property
    def depth(self) -> int:
        """Number of activation layers."""
        return len(self.sizes) - 2


def prepare(form: SectorForm) -> Blocks:
    """Turn a sector form into dense blocks; the input enters only through the Gram matrices B_j0 B_k0ᵀ."""
    rows: list[tuple[Term, ...]] = [(), *(layer.terms for layer in form.layers), form.output]
    maps: list[dict[int, torch.Tensor]] = []
    errors: list[dict[int, torch.Tensor]] = []
    grams: list[dict[int, torch.Tensor]] = []
    reading = {j: term.matrix for j, terms in enumerate(rows) for term in terms if term.source == 0}
    for j, terms in enumerate(rows):
        maps.append({t.source: torch.from_numpy(t.matrix.toarray()) for t in terms})
        errors.append({t.source: torch.from_numpy(t.error.toarray()) for t in terms if t.error is not None})
        own = reading.get(j)
        row: dict[int, torch.Tensor] = {}
        if own is not None:
            row = {k: torch.from_numpy((own @ other.T).toarray()) for k, other in reading.items() if k <= j}
        grams.append(row)
    taps = max([int(np.max(np.diff(matrix.indptr), initial=0)) for matrix in reading.values()], default=0)
    sizes = (form.input_size, *form.widths, form.output_size)
    return Blocks(sizes, tuple(maps), tuple(errors), tuple(grams), taps, form.factor)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What multipliers certify: ``gram`` is Γ (K x K), ``bound`` is sqrt(λmax(Γ)) times the factor."""

    bound: float
    gram: np.ndarray
    multipliers: tuple[np.ndarray, ...]


@dataclass(frozen=True, slots=True)
class Factor:
    """A block Cholesky factor of M, scaled: ``scales[j]`` are the powers of two of layer j (index from 1)."""

    blocks: tuple[dict[int, torch.Tensor], ...]
    scales: tuple[torch.Tensor, ...]
    multipliers: tuple[torch.Tensor, ...]
    gram: torch.Tensor


def evaluate(blocks: Blocks, multipliers: Sequence[np.ndarray]) -> Evaluation | None:
    """Certified bound from multipliers λ, or ``None`` if they are not (provably) feasible.

    Args:
        blocks: the prepared sector form.
        multipliers: λ, one positive vector per activation layer, in order.

    Returns:
        Γ and the bound: ‖f(x) - f(y)‖ <= bound ‖x - y‖ for all x, y, in exact arithmetic of the given weights.
    """
    factor = eliminate(blocks, [torch.as_tensor(np.asarray(lam, dtype=np.float64)) for lam in multipliers], proof=True)
    if factor is None:
        return None
    value = largest_eigenvalue_bound(factor.gram)
    if not math.isfinite(value):
        return None
    root = math.nextafter(math.sqrt(value), math.inf) if value > 0.0 else 0.0
    bound = root if blocks.factor == 1.0 or root == 0.0 else math.nextafter(root * blocks.factor, math.inf)
    return Evaluation(bound, factor.gram.numpy(), tuple(np.asarray(lam, dtype=np.float64) for lam in multipliers))


def eliminate(blocks: Blocks, multipliers: Sequence[torch.Tensor], *, proof: bool) -> Factor | None:
    """Factor M(λ) block by block, or ``None`` where it is not positive definite.

    With ``proof`` the diagonal is lowered by what the rounding can amount to, so that completion proves
    positive definiteness and ``gram`` is an upper bound of C M⁻¹ Cᵀ in exact arithmetic.
    """
    if len(multipliers) != blocks.depth:
        return None
    for lam, width in zip(multipliers, blocks.widths, strict=True):
        usable = lam.shape == (width,) and bool(torch.isfinite(lam).all()) and bool((lam > 0.0).all())
        if not usable or float(lam.min()) < 1e-290 or float(lam.max()) > 1e290:
            return None
    scales = [torch.ones(0, dtype=torch.float64), *(powers_of_two(lam) for lam in multipliers)]
    lowered, below = 0.0, [torch.zeros(size, dtype=torch.float64) for size in blocks.sizes]
    if proof:
        lowered, below = _lowering(blocks, multipliers, scales)
    if lowered >= 0.5:
        return None
    rows: list[dict[int, torch.Tensor]] = [{}]
    for j, lam in enumerate(multipliers, start=1):
        sign = -lam / scales[j]
        row = block_row(blocks, j, sign, multipliers, rows, scales, lowered)
        S = self_product(blocks, j, sign, row, lowered).neg_()
        S.diagonal().add_(2.0 * lam / scales[j] ** 2 - below[j])
        L, info = torch.linalg.cholesky_ex(S)
        if int(info) != 0:
            return None
        row[j] = L
        rows.append(row)
    last = len(blocks.sizes) - 1
    ones = torch.ones(blocks.sizes[last], dtype=torch.float64)
    row = block_row(blocks, last, ones, multipliers, rows, scales, lowered)
    gram = self_product(blocks, last, ones, row, lowered)
    rows.append(row)
    if proof:
        # The outputs' own scale d may be any number: the largest of their rows' norms and, where C is inexact,
        # the one its error was weighed with. So |l_out| <= 1, and what was found is taken d² times.
        peak = float(gram.diagonal().max()) if gram.numel() else 0.0
        if blocks.errors[last]:
            magnitude = 1.0 / float(_output_scale(blocks, scales)[0])
            peak = max(peak, magnitude * magnitude)
        gram.diagonal().add_(below[last] * (peak * (1.0 + 1e-9)))
        if blocks.maps[last]:
            # Squares below the smallest double are lost; this is far above all they can amount to.
            gram.diagonal().add_(1e-300)
        gram.diagonal().mul_(1.0 + 4.0 * UNIT)
    return Factor(tuple(rows), tuple(scales), tuple(multipliers), gram)


def powers_of_two(lam: torch.Tensor) -> torch.Tensor:
    """Scales s with λ / s² in [1/2, 2]; multiplying by them rounds nothing."""
    return torch.from_numpy(np.ldexp(1.0, np.rint(np.log2(lam.numpy()) / 2).astype(np.int64)))


def block_row(
    blocks: Blocks,
    j: int,
    sign: torch.Tensor,
    multipliers: Sequence[torch.Tensor],
    rows: Sequence[dict[int, torch.Tensor]],
    scales: Sequence[torch.Tensor],
    lowered: float,
) -> dict[int, torch.Tensor]:
    """Block row j of the factor, left of the diagonal: L_jk = (A_jk - Σ_i L_ji L_kiᵀ) L_kk⁻ᵀ."""
    row: dict[int, torch.Tensor] = {}
    for k in range(1, min(j, len(blocks.sizes) - 1)):
        part: torch.Tensor | None = None
        if k in blocks.maps[j]:
            part = sign[:, None] * blocks.maps[j][k] / scales[k]
        if k in blocks.grams[j]:
            reads = (sign[:, None] * blocks.grams[j][k]) * (multipliers[k - 1] / (scales[k] * (1.0 - lowered)))
            part = reads if part is None else part + reads
        for i, left in row.items():
            if i in rows[k]:
                product = left @ rows[k][i].T
                part = -product if part is None else part - product
        if part is not None:
            row[k] = torch.linalg.solve_triangular(rows[k][k], part.T, upper=False).T
    return row


def self_product(
    blocks: Blocks, j: int, sign: torch.Tensor, row: dict[int, torch.Tensor], lowered: float
) -> torch.Tensor:
    """Σ_k L_jk L_jkᵀ over everything left of the diagonal, the input included."""
    if j in blocks.grams[j]:
        total = sign[:, None] * blocks.grams[j][j] * (sign / (1.0 - lowered))
    else:
        total = torch.zeros(blocks.sizes[j], blocks.sizes[j], dtype=torch.float64)
    for part in row.values():
        total = torch.addmm(total, part, part.T)
    return (total + total.T) / 2


def _lowering(
    blocks: Blocks, multipliers: Sequence[torch.Tensor], scales: Sequence[torch.Tensor]
) -> tuple[float, list[torch.Tensor]]:
    """Give c of the module's docstring: of the input one number, of every other block one per row (and none in front).

    Row sums of |Δ|, |l_i|² being at most the diagonal entry 2 λ / s² (one for the scaled outputs), and row and column
    sums of the assembly error.
    """
    count = len(blocks.sizes)
    filled = _fill(blocks)
    sizes = [torch.zeros(0, dtype=torch.float64)]
    sizes += [(2.0 * lam).sqrt() / scale * (1.0 + 1e-9) for lam, scale in zip(multipliers, scales[1:], strict=True)]
    sizes.append(torch.ones(blocks.sizes[-1], dtype=torch.float64))
    below = [torch.zeros(0, dtype=torch.float64)]
    for j in range(1, count):
        total = sum(float(sizes[k].sum()) for k in range(1, count) if filled[j] & filled[k])
        terms = sum(blocks.sizes[k] for k in filled[j] if k > 0) + blocks.taps + 4
        gamma = SAFETY * terms * UNIT / (1.0 - SAFETY * terms * UNIT)
        below.append(sizes[j] * (gamma * total * (1.0 + 1e-9)))
    lowered = 64.0 * UNIT * sum(blocks.sizes[j] for j in range(1, count) if 0 in filled[j])
    for j in range(1, count):
        for k, error in blocks.errors[j].items():
            weight = multipliers[j - 1] / scales[j] if j < count - 1 else _output_scale(blocks, scales)
            part = weight[:, None] * error
            if k > 0:
                part = part / scales[k]
                below[k] += part.sum(dim=0) * (1.0 + 1e-9)
            else:
                lowered += float(part.sum(dim=0).max()) * (1.0 + 1e-9)
            below[j] += part.sum(dim=1) * (1.0 + 1e-9)
    return lowered, below


def _output_scale(blocks: Blocks, scales: Sequence[torch.Tensor]) -> torch.Tensor:
    """A lower estimate of the output's magnitude scales its row to entries of order one."""
    last = len(blocks.sizes) - 1
    peak = 0.0
    for k, matrix in blocks.maps[last].items():
        part = matrix if k == 0 else matrix / scales[k]
        peak = max(peak, float((part**2).sum(dim=1).max()) ** 0.5)
    # Where it overflows any positive number is as good: nothing finite comes of it.
    usable = 0.0 < peak < math.inf
    return torch.full((blocks.sizes[last],), 1.0 / peak if usable else 1.0, dtype=torch.float64)


def _fill(blocks: Blocks) -> list[set[int]]:
    """Columns of each block row of the factor that may be nonzero, the diagonal included."""
    filled: list[set[int]] = []
    for j in range(len(blocks.sizes)):
        row = set(blocks.maps[j]) if j else set()
        for k in range(1, j):
            if row & filled[k]:
                row.add(k)
        row.add(j)
        filled.append(row)
    return filled
