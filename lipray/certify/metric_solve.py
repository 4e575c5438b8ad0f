"""A block solved by its tiles together: every tile's metric, and one proof of their sum.

The closed form of every distinct tile comes first; from then on there is a bound. Then all multipliers are optimised
for the sum (``lipray.certify.metric``). Whatever comes of that, the bound is what ``lipray.verify.prove`` makes of it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch

from lipray.certify.certificate import Certificate, Status
from lipray.certify.checkpoint import Shelf
from lipray.certify.closed_form import closed_form
from lipray.certify.ellipsoid import BLENDS, DESCENT_TOLERANCE
from lipray.certify.metric import Multipliers, Tiling, minimise
from lipray.certify.tile_step import TileSpread, in_place
from lipray.errors import VerificationError
from lipray.partition.subproblem import Subproblem
from lipray.verify.metric import places
from lipray.verify.prove import Problem, Proof, pose, prove
from lipray.verify.tile_bundle import mirrored
from lipray.verify.tiles import cut_tiles, distinct_tiles, tile_windows
from lipray.verify.torus.proof import LostBundleError, Means

ITERATIONS = 200

Report = Callable[[Certificate, str], None]


def solve_metric(
    problem: Subproblem, spread: TileSpread = in_place, report: Report | None = None, shelf: Shelf | None = None
) -> Certificate | None:
    """Certify a block by its tiles' metrics; ``None`` if not even the closed form could be proven.

    Args:
        problem: the block; ``settings.tiles`` is the partition factor.
        spread: performs a round's bundles, one per distinct tile; the default does so here.
        report: called with every better certified bound.
        shelf: keeps the state of first-order steps, and has that of an earlier process, to go on from.

    Raises:
        PlanError: the block cannot be cut into so many tiles.
        LostBundleError: tiles of the closed form's proof gave no result.
    """
    return _Run(problem, spread, report, shelf).certificate()


class _Run:
    """The best proven answer so far."""

    def __init__(self, problem: Subproblem, spread: TileSpread, report: Report | None, shelf: Shelf | None) -> None:
        self.problem, self.spread, self.report, self.shelf = problem, spread, report, shelf
        self.start = time.monotonic()
        limit = problem.settings.time_limit
        self.deadline = None if limit is None else self.start + limit
        network = problem.network
        self.windows = tile_windows(network.output_shape, problem.settings.tiles)
        tiles = cut_tiles(network, self.windows)
        kinds = distinct_tiles(tiles)
        fields = [torch.from_numpy(places(tile.field, network.input_shape)) for tile in tiles]
        self.tiling = Tiling(
            tuple(kind.network for kind in kinds),
            tuple(mirrored(kind.network).widths for kind in kinds),
            tuple(torch.stack([fields[tile] for tile in kind.tiles]) for kind in kinds),
            math.prod(network.input_shape),
        )
        posed = pose(problem.label, network, Proof("metric", windows=self.windows))
        self.layers = tuple(zip(posed.names, posed.widths, strict=True))
        self.best: tuple[float, Proof] | None = None
        self.figures: dict[str, float] = {}

    def certificate(self) -> Certificate | None:
        """Go through the steps; the best answer as a value."""
        settings = self.problem.settings
        began = time.monotonic()
        base: Multipliers = tuple(closed_form(mirrored(network)) for network in self.tiling.networks)
        first = self._prove(base)
        if first is None:
            return None
        self.figures["closed_form"] = first
        self._tell(Status.CLOSED_FORM, 0, "closed form")
        status, used = Status.CLOSED_FORM, 0
        deadline = None if self.deadline is None else self.deadline - 2.0 * (time.monotonic() - began)
        if first == 0.0 or not self.layers:
            status = Status.CONVERGED
        elif settings.iterations != 0 and (deadline is None or time.monotonic() < deadline):
            limit = ITERATIONS if settings.iterations is None else settings.iterations
            tolerance = max(settings.tolerance, DESCENT_TOLERANCE)
            found = minimise(
                self.tiling,
                base,
                self.spread,
                iterations=limit,
                tolerance=tolerance,
                deadline=deadline,
                shelf=self.shelf,
            )
            used = found.iterations
            late = deadline is not None and time.monotonic() >= deadline
            status = Status.TIME_LIMIT if late else Status.ITERATION_LIMIT if used >= limit else Status.STALLED
            if math.isfinite(found.value):
                self.figures["solver"] = math.sqrt(found.value)
                self._blend(found.multipliers, base)
        elif settings.iterations != 0:
            status = Status.TIME_LIMIT
        self._tell(status, used, "optimised")
        return self._value(status, used)

    def _blend(self, found: Multipliers, base: Multipliers) -> None:
        """Prove what was found, mixed with as little of the closed form as the proof needs."""
        try:
            for share in BLENDS:
                pairs = [zip(one, other, strict=True) for one, other in zip(found, base, strict=True)]
                mixed = tuple(tuple((1.0 - share) * a + share * b for a, b in own) for own in pairs)
                if self._prove(mixed) is not None:
                    return
        except LostBundleError:
            return  # what was proven before stands

    def _prove(self, multipliers: Multipliers) -> float | None:
        proof = Proof("metric", tuple(lam for own in multipliers for lam in own), self.layers, windows=self.windows)
        problem = Problem(self.problem.label, self.problem.network, proof, 0.0)
        settings = self.problem.settings
        try:
            bound = prove(problem, Means(self.spread, settings.memory, settings.workers)).bound
        except VerificationError:
            return None
        if self.best is None or bound < self.best[0]:
            self.best = bound, proof
        return bound

    def _tell(self, status: Status, used: int, way: str) -> None:
        if self.report is not None:
            self.report(self._value(status, used), way)

    def _value(self, status: Status, used: int) -> Certificate:
        assert self.best is not None  # noqa: S101 (something was proven)
        bound, proof = self.best
        seconds = time.monotonic() - self.start
        return Certificate(self.problem.key(), "metric", bound, status, proof, None, dict(self.figures), used, seconds)
