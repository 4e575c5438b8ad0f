"""One level on the torus: from the shape matrices that enter to those that leave, rounding included.

The input's parts x come with shape matrices Q̄(ω) ⪰ those of all increments. As in ``lipray.verify.elimination``,
at every frequency

    M = diag(Q̄⁻¹, 0) + Σ_a λ_a (e_a (e_a - b_a)* + (e_a - b_a) e_a*)  ≻ 0,      Γ ⪰ C M⁻¹ C*,

and then Γ(ω) bounds the shape matrix of what leaves, with λ shared by all frequencies: averaging the inequality over
translations keeps it feasible, and the average is block-circulant. The input is eliminated exactly,
M / Q̄⁻¹ = M_uu - M_u0 Q̄ M_0u, so that only products with Q̄ are needed and never its inverse; Q̄ may be singular.

Rounding is that of ``lipray.verify.elimination``: entries of the scaled matrix lie within [0, 4] on the diagonal,
Cholesky's backward error has row sums of at most 4 γ (neurons of touching blocks), and the diagonal is lowered
beforehand by that and by all that the entries' own errors can amount to (``lipray.verify.torus.rounding``),
frequency by frequency.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from lipray.verify.elimination import powers_of_two
from lipray.verify.linear_maps import UNIT
from lipray.verify.torus.levels import Expression, Level
from lipray.verify.torus.rounding import lowering
from lipray.verify.torus.symbols import Symbol

Choice = Callable[[int, torch.Tensor], torch.Tensor]
"""From the number of a layer and its shape matrices (F, n, n) to multipliers λ (n,)."""


@dataclass(frozen=True, slots=True)
class LevelFactor:
    """The factorisation of one level, and what leaves it.

    ``gram`` (F / folded, m, m) bounds the shape matrix of what leaves, all outputs stacked and aliases summed:
    s^-D Σ Γ(ω), exactly Hermitian. ``rows[j][k]`` are the blocks of the factor
    (kept on request, for gradients), the last row that of the outputs; ``scales`` the powers of two of the layers.
    """

    gram: torch.Tensor
    multipliers: tuple[torch.Tensor, ...]
    scales: tuple[torch.Tensor, ...]
    rows: tuple[dict[int, torch.Tensor], ...]


def eliminate_level(
    level: Level,
    shape: torch.Tensor | None,
    multipliers: Sequence[torch.Tensor] | Choice,
    *,
    folded: int = 1,
    proof: bool,
    keep: bool = False,
) -> LevelFactor | None:
    """Carry shape matrices through one level; ``None`` where M is not (provably) positive definite.

    Args:
        level: the level at F frequencies.
        shape: Q̄ of the stacked parts, (F, d, d), exactly Hermitian; ``None`` for the identity.
        multipliers: λ per layer, or how to choose them from the layer's shape matrices.
        folded: how many successive frequencies alias to one of the next level's.
        proof: lower the diagonal so that completion is a proof; without, the result is an estimate.
        keep: keep the blocks of the factor.
    """
    return _Elimination(level, shape, folded, proof=proof, keep=keep).run(multipliers)


class _Elimination:
    def __init__(self, level: Level, shape: torch.Tensor | None, folded: int, *, proof: bool, keep: bool) -> None:
        self.level, self.shape, self.folded, self.proof, self.keep = level, shape, folded, proof, keep
        self.parts = len(level.parts)
        self.starts = [sum(level.parts[:i]) for i in range(self.parts + 1)]
        self.count = level.count
        self.depth = len(level.layers)
        # The outputs are one stacked row after the layers.
        self.reads = [layer.reads for layer in level.layers]
        self.rows: list[dict[int, torch.Tensor] | None] = []
        self.scales: list[torch.Tensor] = []
        self.lams: list[torch.Tensor] = []
        self.filled = self._fill()
        self.readers: dict[int, torch.Tensor] = {}
        self.spread: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def run(self, multipliers: Sequence[torch.Tensor] | Choice) -> LevelFactor | None:
        given = None if callable(multipliers) else list(multipliers)
        if given is not None:
            for lam in given:
                if not bool(torch.isfinite(lam).all()) or float(lam.min()) < 1e-290 or float(lam.max()) > 1e290:
                    return None
            self.scales = [_scale(lam) for lam in given]
            self.lams = given
        below: list[torch.Tensor] | None = None
        if self.proof and given is not None:
            below, self.least = lowering(self.level, self.filled, self.lams, self.scales, self.shape)
        last_use = self._last_use()
        for j in range(self.depth):
            row = self._row(j)
            Q = self._square(j, row)
            if given is None:
                assert callable(multipliers)  # noqa: S101 (narrows the type)
                lam = multipliers(j, Q)
                self.lams.append(lam)
                self.scales.append(_scale(lam))
            lam, scale = self.lams[j], self.scales[j]
            weight = lam / scale
            S = Q.mul_((-weight[:, None] * weight).to(Q.dtype))
            S.diagonal(dim1=-2, dim2=-1).add_(2.0 * lam / scale**2)
            if below is not None:
                S.diagonal(dim1=-2, dim2=-1).sub_(below[j])
            L, info = torch.linalg.cholesky_ex(S)
            if bool((info != 0).any()):
                return None
            for part in row.values():
                part.mul_(weight[:, None])
            row[j] = L
            self.rows.append(row)
            if not self.keep:
                for k in range(j):
                    if last_use[k] <= j:
                        self.rows[k] = None
        row, gram, diagonal = self._outputs()
        folded = 1 if self.phased else self.folded
        summed = None
        if below is not None:
            columns = sum(part.shape[-1] for part in row.values())
            own, summed = self._inflate(diagonal, below[-1], columns)
            gram.diagonal(dim1=-2, dim2=-1).add_(_over_aliases(own, folded))
        if self.phased:
            gram = self._in_phases(gram)
        if summed is not None:
            gram.diagonal(dim1=-2, dim2=-1).add_(_over_aliases(self._over_phases(summed), self.folded))
        gram = (gram + gram.mH) / (2.0 * self.folded)
        rows = (*(row if row is not None else {} for row in self.rows), row) if self.keep else ()
        return LevelFactor(gram, tuple(self.lams), tuple(self.scales), rows)

    # -- rows that read the parts

    def _times_shape(self, reads: Expression, rows: int) -> torch.Tensor | None:
        """W Q̄ for the rows of an expression, (F, rows, d)."""
        result: torch.Tensor | None = None
        for part in range(self.parts):
            if part not in reads:
                continue
            symbol = reads[part]
            block = slice(self.starts[part], self.starts[part + 1])
            if self.shape is None:
                if result is None:
                    result = torch.zeros(self.count, rows, self.starts[-1], dtype=torch.complex128)
                result[:, :, block] = symbol.dense(self.count)
                continue
            stripe = self.shape[:, block]
            product = symbol.values[:, :, None] * stripe if symbol.diagonal else symbol.values @ stripe
            result = product if result is None else result + product
        return result

    def _times_reads(self, left: torch.Tensor, reads: Expression) -> torch.Tensor:
        """Left W* for the rows of an expression."""
        result: torch.Tensor | None = None
        for part in range(self.parts):
            if part not in reads:
                continue
            symbol = reads[part]
            stripe = left[:, :, self.starts[part] : self.starts[part + 1]]
            product = stripe * symbol.values.conj()[:, None, :] if symbol.diagonal else stripe @ symbol.values.mH
            result = product if result is None else result + product
        assert result is not None  # noqa: S101 (only called for rows that read the parts)
        return result

    def _gram(self, j: int, k: int) -> torch.Tensor | None:
        """B_j0 Q̄ B_k0*, for layers j >= k."""
        if not (self._reads_parts(self.reads[j]) and self._reads_parts(self.reads[k])):
            return None
        if j not in self.readers:
            product = self._times_shape(self.reads[j], self.level.layers[j].size)
            assert product is not None  # noqa: S101
            self.readers[j] = product
        return self._times_reads(self.readers[j], self.reads[k])

    def _reads_parts(self, reads: Expression) -> bool:
        return any(source < self.parts for source in reads)

    # -- the factorisation

    def _row(self, j: int) -> dict[int, torch.Tensor]:
        """Blocks L_jk left of the diagonal, not yet weighed by λ_j / s_j."""
        row: dict[int, torch.Tensor] = {}
        reads = self.reads[j]
        for k in range(j):
            if k not in self.filled[j]:
                continue
            part = self._entry(reads, j, k)
            solved = self._solve(row, part, k)
            if solved is not None:
                row[k] = solved
        self.readers.pop(j, None)
        return row

    def _entry(self, reads: Expression, j: int, k: int) -> torch.Tensor | None:
        part: torch.Tensor | None = None
        if self.parts + k in reads:
            part = _columns(reads[self.parts + k], -1.0 / self.scales[k], self.count)
        gram = self._gram(j, k)
        if gram is not None:
            gram = gram * (-self.lams[k] / self.scales[k])
            part = gram if part is None else part + gram
        return part

    def _solve(self, row: dict[int, torch.Tensor], part: torch.Tensor | None, k: int) -> torch.Tensor | None:
        """Subtract what earlier columns hold, and divide by L_kk*."""
        other = self.rows[k]
        assert other is not None  # noqa: S101 (kept as long as it is needed)
        for i, left in row.items():
            if i in other:
                product = left @ other[i].mH
                part = product.neg_() if part is None else part - product
        if part is None:
            return None
        result: torch.Tensor = torch.linalg.solve_triangular(other[k].mH, part, upper=True, left=False)
        return result

    def _square(self, j: int, row: dict[int, torch.Tensor]) -> torch.Tensor:
        """Shape matrix of the layer's pre-activation: what its row holds, squared; Hermitian up to rounding."""
        gram = self._gram(j, j)
        self.readers.pop(j, None)
        size = self.level.layers[j].size
        if not row:
            if gram is None:
                return torch.zeros(self.count, size, size, dtype=torch.complex128)
            return gram.clone() if gram.shape[0] == self.count else gram.expand(self.count, -1, -1).clone()
        wide = _wide(list(row.values()))
        total = wide @ wide.mH
        return total if gram is None else total.add_(gram)

    def _outputs(self) -> tuple[dict[int, torch.Tensor], torch.Tensor, torch.Tensor]:
        """The outputs' row of the factor; C M⁻¹ C*, outputs stacked and aliases summed; its diagonals before."""
        outputs, sizes = self.level.outputs, self.level.output_sizes
        height = sum(sizes)
        starts = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
        places = [slice(a, b) for a, b in itertools.pairwise(starts)]
        row: dict[int, torch.Tensor] = {}
        shaped = [self._times_shape(reads, size) for reads, size in zip(outputs, sizes, strict=True)]
        for k in range(self.depth):
            if k not in self.filled[-1]:
                continue
            part: torch.Tensor | None = None
            for place, reads, product in zip(places, outputs, shaped, strict=True):
                own = self._output_entry(reads, product, k)
                if own is not None:
                    if part is None:
                        part = torch.zeros(self.count, height, own.shape[-1], dtype=torch.complex128)
                    part[:, place] = own
            solved = self._solve(row, part, k)
            if solved is not None:
                row[k] = solved
        folded = 1 if self.phased else self.folded
        gram = torch.zeros(self.count // folded, height, height, dtype=torch.complex128)
        diagonal = torch.zeros(self.count, height, dtype=torch.float64)
        for place, product in zip(places, shaped, strict=True):
            if product is None:
                continue
            for other, reads in zip(places, outputs, strict=True):
                if self._reads_parts(reads):
                    block = self._times_reads(product, reads)
                    if place == other:
                        diagonal[:, place] += block.diagonal(dim1=-2, dim2=-1).real
                    gram[:, place, other] += _over_aliases(block.expand(self.count, -1, -1), folded)
        if row:
            wide = _wide(list(row.values()))
            if self.proof:
                diagonal += torch.linalg.vector_norm(wide, dim=-1).square()
            # Aliases side by side in one wide matrix: the product sums over them.
            wide = wide.reshape(-1, folded, *wide.shape[1:]).transpose(1, 2).flatten(2)
            gram += wide @ wide.mH
        return row, gram, diagonal

    @property
    def phased(self) -> bool:
        """Whether an output is handed on in phases, so that aliases cannot be summed before these are formed."""
        return any(wave is not None for wave in self.level.waves)

    def _in_phases(self, gram: torch.Tensor) -> torch.Tensor:
        """Σ over aliases of (e e*) ∘ Γ: the joint shape matrix of all outputs in all their phases."""
        sizes = self.level.output_sizes
        starts = [0, *itertools.accumulate(sizes)]
        places = [slice(a, b) for a, b in itertools.pairwise(starts)]
        ones = torch.ones(self.count, 1, dtype=torch.complex128)
        waves = [ones if wave is None else wave for wave in self.level.waves]
        total = sum(size * wave.shape[1] for size, wave in zip(sizes, waves, strict=True))
        result = torch.zeros(self.count // self.folded, total, total, dtype=torch.complex128)
        ends = [0, *itertools.accumulate(size * wave.shape[1] for size, wave in zip(sizes, waves, strict=True))]
        for a, left in enumerate(waves):
            for b, right in enumerate(waves):
                block = gram[:, places[a], places[b]].reshape(-1, self.folded, sizes[a] * sizes[b])
                turns = left[:, :, None] * right[:, None, :].conj()
                turns = turns.reshape(-1, self.folded, left.shape[1] * right.shape[1])
                summed = turns.mT @ block
                summed = summed.reshape(-1, left.shape[1], right.shape[1], sizes[a], sizes[b]).transpose(2, 3)
                summed = summed.reshape(-1, left.shape[1] * sizes[a], right.shape[1] * sizes[b])
                result[:, ends[a] : ends[a + 1], ends[b] : ends[b + 1]] = summed
        return result

    def _output_entry(self, reads: Expression, product: torch.Tensor | None, k: int) -> torch.Tensor | None:
        part: torch.Tensor | None = None
        if self.parts + k in reads:
            part = _columns(reads[self.parts + k], 1.0 / self.scales[k], self.count)
        if product is not None and self._reads_parts(self.reads[k]):
            gram = self._times_reads(product, self.reads[k]) * (self.lams[k] / self.scales[k])
            part = gram if part is None else part + gram
        return part

    # -- structure

    def _fill(self) -> list[set[int]]:
        """Columns (layers) of each row that may be nonzero; the outputs' row comes last."""
        filled: list[set[int]] = []
        touches: list[bool] = []
        stacked = [*self.reads, {source: s for reads in self.level.outputs for source, s in reads.items()}]
        for j, reads in enumerate(stacked):
            row = {source - self.parts for source in reads if source >= self.parts}
            touches.append(self._reads_parts(reads))
            for k in range(min(j, self.depth)):
                if (row & filled[k]) or (touches[j] and touches[k]):
                    row.add(k)
            row.add(j)
            filled.append(row)
        return filled

    def _last_use(self) -> list[int]:
        last = list(range(self.depth))
        for j, row in enumerate(self.filled):
            for k in row:
                if k < self.depth:
                    last[k] = max(last[k], j)
        return last

    def _inflate(self, diagonal: torch.Tensor, share: torch.Tensor, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What the outputs' shape matrices are raised by on the diagonal, to cover rounding: (F, m) each.

        First each frequency's share of the factorisation's; then that of the sum over aliases and of the waves of
        phases, whose error |error_ab| <= γ sqrt(Γ_aa Γ_bb) per alias is below γ m diag(Γ) as a matrix.
        """
        size = torch.maximum(diagonal, self.least**2) * (1.0 + 8.0 * UNIT)
        channels = sum(
            n * (1 if wave is None else wave.shape[1])
            for n, wave in zip(self.level.output_sizes, self.level.waves, strict=True)
        )
        gamma = 4.0 * (self.folded * (columns + 4) + 40) * UNIT * channels
        return (share * size + 1e-300) * (1.0 + 1e-9), gamma * size * (1.0 + 1e-9)

    def _over_phases(self, values: torch.Tensor) -> torch.Tensor:
        """Numbers per output channel, repeated for every phase it is handed on in."""
        pieces = torch.split(values, list(self.level.output_sizes), dim=1)
        repeated = [
            piece if wave is None else piece.repeat(1, wave.shape[1])
            for piece, wave in zip(pieces, self.level.waves, strict=True)
        ]
        return torch.cat(repeated, dim=1)


def _over_aliases(values: torch.Tensor, folded: int) -> torch.Tensor:
    return values.reshape(-1, folded, *values.shape[1:]).sum(dim=1)


def _wide(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def _scale(lam: torch.Tensor) -> torch.Tensor:
    return powers_of_two(lam.cpu()).to(lam)


def _columns(symbol: Symbol, factors: torch.Tensor, count: int) -> torch.Tensor:
    """The map as (F, m, n), its columns times ``factors``."""
    if symbol.diagonal:
        return torch.diag_embed((symbol.values * factors).expand(count, -1))
    return symbol.values * factors
