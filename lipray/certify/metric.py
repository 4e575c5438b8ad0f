"""Multipliers of all tiles of a block, optimised together for the composition of their metrics.

The value is λmax(S), S = Σ_i E_iᵀ P_i(λ_i) E_i (``lipray.verify.metric``). Every P_i is matrix-convex in its
multipliers, hence so is S, and the weighting D Dᵀ of S that is the derivative of the smoothed λmax gives every tile its
own task: the derivative of <E_i D (E_i D)ᵀ, P_i> in λ_i. So one step is a map (metrics), a reduction (the sum and its
weighting), and a map (gradients). Tiles with the same network share their multipliers.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lipray.certify import lbfgs
from lipray.certify.checkpoint import Shelf, from_arrays, name_of, to_arrays
from lipray.certify.descent import weigh
from lipray.certify.lbfgs import Point
from lipray.certify.tile_step import StepBundle, StepResult, TileSpread
from lipray.model.network import Network
from lipray.verify.torus.proof import LostBundleError

LIMIT = 600.0
"""Logarithms of multipliers stay below this."""

KEPT_COLUMNS = 1e-10
"""Share of the largest weight of a direction below which a tile is not told of it."""

Multipliers = tuple[tuple[np.ndarray, ...], ...]
"""λ of the layers of every distinct tile's transposed sector form."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """Distinct tiles of a block, and where their metrics come to lie.

    ``widths[k]`` are the layers of the k-th tile's transposed sector form; ``places[k]`` (copies, n_k) holds, for every
    tile that is one, the indices of its receptive field in the block's flattened input of ``size`` entries.
    """

    networks: tuple[Network, ...]
    widths: tuple[tuple[int, ...], ...]
    places: tuple[torch.Tensor, ...]
    size: int

    def sum(self, metrics: Sequence[np.ndarray]) -> torch.Tensor:
        """S from the distinct tiles' metrics."""
        total = torch.zeros(self.size, self.size, dtype=torch.float64)
        for metric, places in zip(metrics, self.places, strict=True):
            own = torch.from_numpy(metric)
            for at in places:
                total[at[:, None], at] += own
        return total

    def split(self, values: torch.Tensor) -> Multipliers:
        """Stacked numbers, one per neuron of every distinct tile, as those of every layer."""
        parts = iter(torch.split(values, [width for own in self.widths for width in own]))
        return tuple(tuple(part.numpy() for part in itertools.islice(parts, len(own))) for own in self.widths)


@dataclass(frozen=True, slots=True)
class Found:
    """The best multipliers, their unproven λmax(S), steps taken, and whether no tolerance was met."""

    multipliers: Multipliers
    value: float
    iterations: int
    stalled: bool


def minimise(
    tiling: Tiling,
    start: Multipliers,
    spread: TileSpread,
    *,
    iterations: int,
    tolerance: float = 1e-5,
    deadline: float | None = None,
    shelf: Shelf | None = None,
) -> Found:
    """Minimise λmax(S) from feasible multipliers.

    Args:
        tiling: the distinct tiles.
        start: multipliers of every distinct tile.
        spread: performs a round's bundles.
        iterations: at most so many evaluations with gradient.
        tolerance: relative improvement per step below which a stage ends.
        deadline: ``time.monotonic()`` at which to stop.
        shelf: keeps the state of the descent, and has that of an earlier process.

    Returns:
        The best multipliers, also where a bundle was lost on the way; the value is infinite where none was measured.
    """
    theta = torch.log(torch.from_numpy(np.concatenate([lam for tile in start for lam in tile])))
    name = name_of(theta, "metric", iterations, tolerance)
    kept = None if shelf is None else shelf.load(name)
    lost = False

    def measured(point: torch.Tensor, power: float) -> Point | None:
        """Measure; once a bundle was lost, nothing more, so that the best point so far is what is left."""
        nonlocal lost
        try:
            return None if lost else measure(tiling, spread, point, power)
        except LostBundleError:
            lost = True
            return None

    found = lbfgs.minimise(
        measured,
        theta,
        iterations=iterations,
        tolerance=tolerance,
        deadline=deadline,
        begun=None if kept is None else from_arrays(kept, len(theta)),
        keep=None if shelf is None else lambda state: shelf.save(name, to_arrays(state)),
    )
    return Found(tiling.split(torch.exp(found.theta)), found.value, found.iterations, stalled=found.stalled)


def measure(tiling: Tiling, spread: TileSpread, theta: torch.Tensor, power: float) -> Point | None:
    """Give log (tr S^p)^(1/p), λmax(S), and the gradient in log λ: two rounds of bundles.

    Raises:
        LostBundleError: a bundle gave no result.
    """
    if not bool(torch.isfinite(theta).all()) or float(theta.abs().max()) > LIMIT:
        return None
    multipliers = tiling.split(torch.exp(theta))
    tiles = list(zip(tiling.networks, multipliers, strict=True))
    metrics = _results(spread([StepBundle(network, lams) for network, lams in tiles]))
    if not all(result.feasible for result in metrics):
        return None
    weighed = weigh(tiling.sum([result.metric for result in metrics if result.metric is not None]), power)
    if weighed is None:
        return None
    value, top, directions = weighed
    asked = [
        StepBundle(network, lams, _columns(directions, places))
        for (network, lams), places in zip(tiles, tiling.places, strict=True)
    ]
    pulled = _results(spread(asked))
    if not all(result.feasible for result in pulled):
        return None
    slopes = np.concatenate([result.gradient for result in pulled if result.gradient is not None])
    return Point(value, top, torch.from_numpy(slopes) * torch.exp(theta))


def _columns(directions: torch.Tensor, places: torch.Tensor) -> np.ndarray:
    """What a tile and its copies are asked about, as one matrix C with C Cᵀ = Σ E D Dᵀ Eᵀ; never wider than high."""
    stacked = torch.cat([directions[at] for at in places], dim=1)
    if stacked.shape[1] <= stacked.shape[0]:
        return stacked.numpy()
    values, vectors = torch.linalg.eigh(stacked @ stacked.T)
    kept = values > KEPT_COLUMNS * values[-1].clamp(min=1e-300)
    columns: np.ndarray = (vectors[:, kept] * values[kept].sqrt()).numpy()
    return columns


def _results(results: Sequence[object]) -> list[StepResult]:
    if any(result is None for result in results):
        raise LostBundleError("the metric of a tile was lost")
    return [result for result in results if isinstance(result, StepResult)]
