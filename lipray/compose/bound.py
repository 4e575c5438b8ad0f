"""What an estimate returns: the composed bound, its parts, and the lower bound beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from lipray.certify.certificate import Certificate


@dataclass(frozen=True, slots=True)
class BlockBound:
    """The certified bound of one block, and what each way to get it would have given.

    ``alternatives`` maps "sum", "overlap", "product" (those that exist) to valid bounds of the block;
    ``upper`` is the one used. ``fallbacks`` names tiles whose certificate was missing.
    """

    label: str
    upper: float
    source: str
    alternatives: Mapping[str, float]
    subproblems: int
    distinct: int
    fallbacks: tuple[str, ...] = ()


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
