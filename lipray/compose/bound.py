"""What an estimate returns: the composed bound, its parts, and the lower bound beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from lipray.certify.certificate import Certificate
from lipray.compose.margins import margin_bounds
from lipray.verify.outward import product_up


@dataclass(frozen=True, slots=True)
class BlockBound:
    """The certified bound of one block, and what each way to get it would have given.

    ``alternatives`` maps "sum", "overlap", "product", and for a block solved whole its method and the ways that
    method went through (those that exist), to valid bounds of the block; ``upper`` is the one used.
    ``fallbacks`` names tiles whose certificate was missing. ``stages`` are bounds of the block's map up to some of its
    nodes, by name. ``gram`` is the shape matrix of the block's output for unit inputs, where there is one.
    """

    label: str
    upper: float
    source: str
    alternatives: Mapping[str, float]
    subproblems: int
    distinct: int
    fallbacks: tuple[str, ...] = ()
    stages: tuple[tuple[str, float], ...] = ()
    gram: np.ndarray | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Bound:
    """A bracket [lower, upper] of the network's l2 Lipschitz constant.

    ``upper`` is certified; ``lower`` is attained by the recorded pair of points (``witness``), 0 where
    none was sought. ``certificate`` holds every sub-problem's certificate by key.
    """

    upper: float
    lower: float
    method: str
    blocks: tuple[BlockBound, ...]
    certificate: Mapping[str, Certificate] = field(repr=False)
    figures: Mapping[str, float] = field(default_factory=dict)
    witness: tuple[np.ndarray, np.ndarray] | None = field(default=None, repr=False)
    seconds: float = 0.0

    @property
    def gap(self) -> float:
        """Upper / lower, at least 1; infinity where the lower bound is 0 and the upper is not."""
        if self.upper == 0.0:
            return 1.0
        return self.upper / self.lower if self.lower > 0.0 else float("inf")

    @property
    def pairwise(self) -> np.ndarray | None:
        """Upper bounds of Lip(f_i - f_j) for all pairs of outputs, (K, K), from the last block's shape matrix.

        What certified radii need: a margin m between outputs i and j survives perturbations up to
        m / pairwise[i, j]. ``None`` where the last block has no shape matrix (it was tiled, left to its product bound,
        ends in a map or in softmax).
        """
        gram = self.blocks[-1].gram if self.blocks else None
        if gram is None:
            return None
        return margin_bounds(gram, product_up(block.upper for block in self.blocks[:-1]), self.upper)
