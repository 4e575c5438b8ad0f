"""One tile's part of one step towards a common bound: its metric, and then its gradient.

A bundle is a value and its result depends on nothing else. The factorisation of the first half of a step is kept for
the second where the same process does both; elsewhere it is worked out again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from lipray.certify.descent import gradient, solve_back
from lipray.model.network import Network
from lipray.verify.elimination import Factor, eliminate
from lipray.verify.identity import ById
from lipray.verify.tile_bundle import TileBundle, TileResult, mirrored
from lipray.verify.tile_bundle import perform as perform_proof

KEPT = 16
"""Factorisations that a process remembers."""

LARGEST = 2**24
"""Entries of M up to which they are."""


@dataclass(frozen=True, slots=True)
class StepBundle:
    """A tile's network and multipliers; with ``directions`` (n, r) the gradient of <D Dᵀ, P> is asked for, not P."""

    network: Network
    multipliers: tuple[np.ndarray, ...]
    directions: np.ndarray | None = None

    @property
    def proof(self) -> bool:
        """Neither a step's metric nor its gradient proves anything."""
        return False

    @property
    def share(self) -> int:
        """How many of the problem's independent pieces it is."""
        return 1


@dataclass(frozen=True, slots=True)
class StepResult:
    """The metric P (n, n), not proven, or the derivative in λ, stacked; ``feasible`` is false where there is none."""

    feasible: bool
    metric: np.ndarray | None = None
    gradient: np.ndarray | None = None


AnyTileBundle = StepBundle | TileBundle
AnyTileResult = StepResult | TileResult

TileSpread = Callable[[Sequence[AnyTileBundle]], Sequence[AnyTileResult | None]]
"""Performs bundles of both kinds somewhere, results in order; ``None`` for one that was lost for good."""


def in_place(bundles: Sequence[AnyTileBundle]) -> list[AnyTileResult | None]:
    """Perform bundles one after the other, here."""
    return [perform_tile(bundle) for bundle in bundles]


def perform_tile(bundle: AnyTileBundle) -> AnyTileResult:
    """Do the work of one bundle."""
    if isinstance(bundle, TileBundle):
        return perform_proof(bundle)
    blocks = mirrored(bundle.network)
    if sum(blocks.widths) ** 2 <= LARGEST:
        factor = _remembered(ById(bundle.network), tuple(lam.tobytes() for lam in bundle.multipliers))
    else:
        factor = _factor(bundle.network, bundle.multipliers)
    if factor is None:
        return StepResult(feasible=False)
    if bundle.directions is None:
        return StepResult(True, metric=factor.gram.numpy())
    directions = torch.from_numpy(bundle.directions)
    pulled = gradient(blocks, factor, solve_back(blocks, factor, directions), directions)
    return StepResult(True, gradient=pulled.numpy())


@lru_cache(maxsize=KEPT)
def _remembered(key: ById, multipliers: tuple[bytes, ...]) -> Factor | None:
    return _factor(key.network, [np.frombuffer(lam).copy() for lam in multipliers])


def _factor(network: Network, multipliers: Sequence[np.ndarray]) -> Factor | None:
    return eliminate(mirrored(network), [torch.from_numpy(lam) for lam in multipliers], proof=False)
