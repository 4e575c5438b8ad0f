"""One tile's metric from its multipliers: the independent pieces of a block's metric proof."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from lipray.errors import PlanError
from lipray.model.network import Network
from lipray.verify.elimination import Blocks, evaluate, prepare
from lipray.verify.identity import ById
from lipray.verify.sector import lower
from lipray.verify.transpose import transpose

REMEMBERED = 16
"""Tiles whose sector form a process keeps."""


@dataclass(frozen=True, slots=True)
class TileBundle:
    """A tile's network, and λ of every layer of its transposed sector form."""

    network: Network
    multipliers: tuple[np.ndarray, ...]

    @property
    def proof(self) -> bool:
        """What comes of it counts as proven."""
        return True

    @property
    def share(self) -> int:
        """How many of the problem's independent pieces it is."""
        return 1


@dataclass(frozen=True, slots=True)
class TileResult:
    """The metric P (n, n) on the tile's receptive field, proven; ``feasible`` is false where M is not."""

    feasible: bool
    metric: np.ndarray | None = None


def perform(bundle: TileBundle) -> TileResult:
    """Do the work of one bundle."""
    proven = evaluate(mirrored(bundle.network), bundle.multipliers)
    return TileResult(feasible=False) if proven is None else TileResult(True, proven.gram)


def mirrored(network: Network) -> Blocks:
    """The transposed sector form of a tile, prepared; the last few are remembered.

    Its layers are those of ``mirrored_layers``.

    Raises:
        PlanError: its constant is not that of its linear parts and slopes alone.
    """
    return _mirrored(ById(network))[1]


def mirrored_layers(network: Network) -> tuple[tuple[str, int], ...]:
    """Name and number of neurons of every layer of the transposed sector form of a tile, in its order.

    Raises:
        PlanError: as ``mirrored``.
    """
    return _mirrored(ById(network))[0]


@lru_cache(maxsize=REMEMBERED)
def _mirrored(key: ById) -> tuple[tuple[tuple[str, int], ...], Blocks]:
    form = transpose(lower(key.network))
    if form.factor != 1.0:
        raise PlanError(key.network.nodes[-1].name, "it has no metric")
    return form.neurons, prepare(form)
