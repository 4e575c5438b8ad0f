"""LipSDP-Neuron's matrix inequality as plain arrays, for the interior-point method and the SDP solver.

With s = (input, all activation outputs), v = B s and y = C s:

    ρ E_in + Σ_a λ_a (e_a (e_a - b_a)ᵀ + (e_a - b_a) e_aᵀ) - Cᵀ C ⪰ 0,   minimise ρ

(Fazlyab et al. 2019; the causal form of Pauli, Gramlich & Allgöwer 2024). It only serves to find
multipliers; what certifies them is ``lipray.verify.elimination``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lipray.verify.elimination import Blocks

Place = tuple[slice, slice]


@dataclass(frozen=True, slots=True)
class Inequality:
    """v = B s and y = C s, for one or several slices (frequencies) that share their multipliers.

    ``B`` is (F, n, d + n), ``C`` is (F, k, d + n), real or complex; ``places`` lists the (rows, columns) of B that
    may be nonzero.
    """

    B: torch.Tensor
    C: torch.Tensor
    inputs: int
    places: tuple[Place, ...]

    @property
    def order(self) -> int:
        """Order of the matrix inequality, d + n."""
        return int(self.B.shape[-1])


def is_chain(blocks: Blocks) -> bool:
    """Whether every layer reads the one before it only, and the output the last."""
    return all(set(blocks.maps[j]) == {j - 1} for j in range(1, blocks.depth + 2))


def reduced_order(blocks: Blocks) -> int:
    """Order of the inequality after ``assemble`` has replaced a wide input by its square factor."""
    readers = sum(blocks.sizes[j] for j in range(1, len(blocks.sizes)) if 0 in blocks.maps[j])
    return min(blocks.sizes[0], readers) + sum(blocks.widths)


def assemble(blocks: Blocks) -> Inequality:
    """One slice from a sector form; input and output are replaced by square factors where that is smaller.

    Only B_in B_inᵀ and Cᵀ C enter the inequality, so an input wider than the rows that read it, and an
    output wider than the signals it reads, are replaced through a QR factorisation.
    """
    last = len(blocks.sizes) - 1
    readers = [j for j in range(1, last + 1) if 0 in blocks.maps[j]]
    d = blocks.sizes[0]
    inputs = {j: blocks.maps[j][0] for j in readers}
    height = sum(blocks.sizes[j] for j in readers)
    if 0 < height < d:
        factor = torch.linalg.qr(torch.cat([inputs[j] for j in readers]).T, mode="r").R.T
        parts = torch.split(factor, [blocks.sizes[j] for j in readers])
        inputs, d = dict(zip(readers, parts, strict=True)), height
    starts, at = {0: 0}, d
    for j in range(1, last):
        starts[j], at = at, at + blocks.sizes[j]
    n = at - d
    B = torch.zeros(n, at, dtype=torch.float64)
    C = torch.zeros(blocks.sizes[last], at, dtype=torch.float64)
    places: list[Place] = []
    for j in range(1, last + 1):
        for k, stored in blocks.maps[j].items():
            matrix = inputs[j] if k == 0 else stored
            columns = slice(starts[k], starts[k] + matrix.shape[1])
            if j == last:
                C[:, columns] = matrix
                continue
            rows = slice(starts[j] - d, starts[j] - d + blocks.sizes[j])
            B[rows, columns] = matrix
            places.append((rows, columns))
    used = C.abs().sum(dim=0) > 0
    if 0 < int(used.sum()) < C.shape[0]:
        factor = torch.linalg.qr(C[:, used], mode="r").R
        C = torch.zeros(factor.shape[0], at, dtype=torch.float64)
        C[:, used] = factor
    return Inequality(B[None], C[None], d, tuple(places))
