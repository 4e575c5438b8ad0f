"""What underflow can take from a product, and the one allowance for it that is used everywhere.

Doubles below 2^-1021 are the multiples of 2^-1074, so that a product, a quotient, and no sum, may be off by half of
that whatever its size: too little to count, until something large multiplies it. Every product of a network's numbers
is therefore either above ``TINY``, where it loses nothing, as does the bound of its rounding, or ``LOST`` is
added to its error for every product in it. Numbers above ``TINY`` keep their bits: adding ``LOST`` would change none.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.sparse as sp
import torch

TINY, LOST = 1e-280, 1e-318
"""Products below ``TINY`` may lose bits, or all of themselves, to underflow: less than ``LOST`` each."""

SAFE = 1e-140
"""Squares of what is above it, and sums of these, are above ``TINY``."""


def least(*matrices: sp.csr_array | np.ndarray | None) -> float:
    """The least modulus of a number that is not zero; infinity where there is none, and nothing can be lost."""
    found = math.inf
    for matrix in matrices:
        if matrix is not None:
            moduli = np.abs(matrix.data if isinstance(matrix, sp.csr_array) else matrix)
            found = min(found, float(np.min(moduli, initial=math.inf, where=moduli != 0.0)))
    return found


def pattern(*matrices: sp.csr_array | None) -> sp.csr_array:
    """Ones where one of the matrices has a number that is not zero."""
    given = [sp.csr_array((matrix != 0).astype(np.float64)) for matrix in matrices if matrix is not None]
    return sp.csr_array((sum(given[1:], given[0]) != 0).astype(np.float64))


def power_of_two(magnitude: float) -> float:
    """The power of two p with p <= magnitude < 2p, of a positive number."""
    return math.ldexp(1.0, math.frexp(magnitude)[1] - 1)


def times_power(value: float, scale: float) -> float:
    """A positive number times a power of two: exact, or the next double above where it underflows."""
    product = value * scale
    return product if product >= TINY else math.nextafter(product, math.inf)


def raised(value: float) -> float:
    """A bound that is off by a few units, raised by ``LOST`` where a few units of it may not be a number."""
    return value + LOST if 0.0 < value < TINY else value


def frobenius(matrices: torch.Tensor) -> torch.Tensor:
    """Frobenius norms of a batch, or of one matrix; divided by the largest entry where squares may underflow."""
    norms: torch.Tensor = torch.linalg.matrix_norm(matrices)
    if bool(((norms > SAFE) & (norms < 1.0 / SAFE)).all()):
        return norms
    moduli = matrices.abs()
    largest = moduli.amax(dim=(-2, -1), keepdim=True)
    unit = torch.where(largest == 0.0, torch.ones_like(largest), largest)
    found: torch.Tensor = torch.linalg.matrix_norm(moduli / unit) * largest[..., 0, 0]
    return found
