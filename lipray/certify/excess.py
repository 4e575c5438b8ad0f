"""What multipliers would prove if nothing were rounded: the figure that a verified bound is set beside.

The same recursion without what covers its rounding, in floating point. It is no bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from lipray.verify.elimination import Blocks, eliminate
from lipray.verify.torus.proof import Means, Setup, add_up, perform
from lipray.verify.torus.tail import factor_of, with_input


def unrounded_dense(blocks: Blocks, multipliers: Sequence[np.ndarray]) -> float:
    """The value of a sector form at multipliers; infinite where they are not feasible."""
    factor = eliminate(blocks, [torch.from_numpy(lam) for lam in multipliers], proof=False)
    if factor is None:
        return math.inf
    top = float(torch.linalg.eigvalsh(factor.gram).max()) if factor.gram.numel() else 0.0
    return math.sqrt(max(0.0, top)) * blocks.factor


def unrounded_torus(setup: Setup, multipliers: Sequence[np.ndarray], means: Means) -> float:
    """The value of a network on tori at multipliers; infinite where they are not feasible.

    Raises:
        LostBundleError: a bundle gave no result.
    """
    torus, tail = setup.split(multipliers)
    _, results = perform(setup, torus, means, proof=False)
    if not all(result.feasible for result in results):
        return math.inf
    if setup.tail is None:
        return math.sqrt(max(0.0, *(result.top for result in results)))
    factor = factor_of(add_up(results)[0], 0.0)
    if factor is None:
        return math.inf
    loaded = with_input(setup.tail, factor, proof=False)
    return unrounded_dense(replace(loaded, errors=tuple({} for _ in loaded.errors)), tail)
