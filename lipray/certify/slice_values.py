"""The value of given multipliers on every slice of an inequality, cheaply."""

from __future__ import annotations

import itertools

import torch

from lipray.certify.inequality import Inequality


class SliceValues:
    """Smallest ρ for given λ, slice by slice, by block elimination from the output to the input.

    The last activation layer's block of M is eliminated first; what is left on the input after all is ρ I - P,
    so the slice needs ρ = λmax(P) (the mirror recursion of a chain, any graph by the blocks that fill in).
    """

    def __init__(self, form: Inequality, memory: int) -> None:
        self.form, self.d = form, form.inputs
        cuts = {0, form.inputs, form.order}
        for rows, columns in form.places:
            cuts |= {rows.start + self.d, rows.stop + self.d, columns.start, columns.stop}
        edges = sorted(cuts)
        self.groups = [slice(a, b) for a, b in itertools.pairwise(edges)]
        self.inputs = [i for i, group in enumerate(self.groups) if group.stop <= self.d]
        self.read = [i for i, group in enumerate(self.groups) if bool((form.C[..., group] != 0).any())]
        self.pairs = [
            (i, j)
            for i, row in enumerate(self.groups)
            for j, column in enumerate(self.groups)
            if any(
                rows.start + self.d <= row.start < rows.stop + self.d and columns.start <= column.start < columns.stop
                for rows, columns in form.places
            )
        ]
        self.chunk = max(1, memory // (2 * 16 * form.order**2))

    def __call__(self, multipliers: torch.Tensor, scale: float) -> torch.Tensor:
        """Values ρ (F,) for λ, the output scaled by 1/√scale; infinite where no ρ is enough."""
        count = self.form.B.shape[0]
        parts = [
            self._chunk(slice(at, min(at + self.chunk, count)), multipliers, scale)
            for at in range(0, count, self.chunk)
        ]
        return torch.cat(parts)

    def _chunk(self, where: slice, multipliers: torch.Tensor, scale: float) -> torch.Tensor:
        B, C, d = self.form.B[where], self.form.C[where], self.d
        blocks: dict[tuple[int, int], torch.Tensor] = {}

        def add(i: int, j: int, part: torch.Tensor) -> None:
            blocks[i, j] = blocks[i, j] + part if (i, j) in blocks else part

        for i, group in enumerate(self.groups):
            if i not in self.inputs:
                lam = 2.0 * multipliers[group.start - d : group.stop - d]
                add(i, i, torch.diag(lam.to(B.dtype)).expand(B.shape[0], -1, -1))
        for i, j in self.pairs:
            rows, columns = self.groups[i], self.groups[j]
            rows = slice(rows.start - d, rows.stop - d)
            add(i, j, -multipliers[rows, None] * B[:, rows, columns])
        for i in self.read:
            for j in self.read:
                if j <= i:
                    add(i, j, C[..., self.groups[i]].mH @ C[..., self.groups[j]] / -scale)
        bad = torch.zeros(B.shape[0], dtype=torch.bool)
        for i in reversed(range(len(self.inputs), len(self.groups))):
            L, info = torch.linalg.cholesky_ex(blocks.pop((i, i)))
            bad |= info != 0
            below = [j for j in range(i) if (i, j) in blocks]
            solved = {j: torch.linalg.solve_triangular(L, blocks.pop((i, j)), upper=False) for j in below}
            for j in below:
                for k in below:
                    if k <= j:
                        add(j, k, -(solved[j].mH @ solved[k]))
        P = torch.zeros(B.shape[0], d, d, dtype=B.dtype)
        for i in self.inputs:
            for j in self.inputs:
                if (i, j) in blocks:
                    P[:, self.groups[i], self.groups[j]] = -blocks[i, j]
        P[bad] = 0.0
        finite = torch.isfinite(torch.linalg.matrix_norm(P))
        P[~finite] = 0.0
        values: torch.Tensor = torch.linalg.eigvalsh(P)[:, -1]
        values[bad | ~finite] = float("inf")
        return values
