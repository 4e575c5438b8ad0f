"""The frequency and hybrid methods: set up, choose the closed form, optimise, and prove.

Frequency: one multiplier per channel, on tori until the maps end. Hybrid: the same first, and then the torus is left
for the dense window where memory allows, one multiplier per neuron from there, starting from the frequency method's
answer. A window is a restriction of its torus, so that where later layers read nothing outside their windows the
hybrid bound is the smaller of the two from the start; otherwise optimisation has to make it so. The smaller is kept.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable

import numpy as np
import torch

from lipray.certify import lbfgs
from lipray.certify.active_set import minimise_over_slices
from lipray.certify.certificate import Certificate, Status
from lipray.certify.checkpoint import Shelf, from_arrays, name_of, to_arrays
from lipray.certify.excess import unrounded_torus
from lipray.certify.frequency.bundle import AnySpread, in_place
from lipray.certify.frequency.objective import certify_blend, measure
from lipray.certify.frequency.slices import slices, slices_bytes, slices_order
from lipray.certify.frequency.start import closed_start, tied_start
from lipray.certify.frequency.working import choose_working
from lipray.partition.subproblem import Subproblem
from lipray.partition.switch import choose_switch
from lipray.verify.prove import Proof
from lipray.verify.torus.proof import LostBundleError, Means, Multipliers, Proven, Setup, certify, set_up

INTERIOR_POINT_ORDER = 1200
"""Largest order of one frequency's inequality given to the interior-point method."""

INTERIOR_ITERATIONS = 200
DESCENT_ITERATIONS = 3000
DESCENT_TOLERANCE = 1e-5
"""Relative improvement per iteration below which first-order steps end a stage."""

FREQUENCY_SHARE = 0.4
"""Part of the time limit that the hybrid method gives to the frequency method before it."""

PROOF_EVERY = 12.0
"""While first-order steps go on, a better point is proven when this many times a proof's seconds have passed."""

LEAST_PAUSE = 20.0
"""Seconds between such proofs, at least."""

Report = Callable[[Certificate, str], None]
"""Told of every better certificate, and how it was reached."""

EXCESS_SECONDS = 5.0
"""The answer is evaluated without its rounding too, where a proof takes no longer than this."""


def solve_frequency(
    problem: Subproblem, spread: AnySpread = in_place, report: Report | None = None, shelf: Shelf | None = None
) -> Certificate | None:
    """Certify by shape matrices on tori; ``None`` if not even the closed form could be proven.

    Args:
        problem: the sub-problem, its method "frequency" or "hybrid".
        spread: performs bundles; the default does so here, one after the other.
        report: called with every better certified bound.
        shelf: keeps the state of first-order steps, and has that of an earlier process, to go on from.

    Raises:
        PlanError: the network has no torus, or the torus cannot be left where ``switch`` says.
    """
    run = _Run(problem, spread, report, shelf)
    return run.certificate() if run.solve() else None


class _Run:
    """The best proven answer so far, and the figures along the way."""

    def __init__(
        self, problem: Subproblem, spread: AnySpread, report: Report | None, shelf: Shelf | None = None
    ) -> None:
        settings = problem.settings
        self.problem, self.settings, self.report, self.shelf = problem, settings, report, shelf
        self.means = Means(spread, settings.memory, settings.workers, settings.device)
        self.start = time.monotonic()
        self.deadline = None if settings.time_limit is None else self.start + settings.time_limit
        self.best: tuple[Setup, Proven] | None = None
        self.figures: dict[str, float] = {}
        self.labels: tuple[str, ...] = ()
        self.solver = math.inf
        self.proof_seconds = 0.0
        self.last_proof = self.start
        self.status, self.iterations = Status.CLOSED_FORM, 0

    def solve(self) -> bool:
        """Go through the set-ups; whether anything was proven."""
        network, settings = self.problem.network, self.settings
        plain = set_up(network)
        self.labels = level_labels(plain)
        switch = choose_switch(network, settings, self.problem.method)
        began = time.monotonic()
        closed = closed_start(plain, self.means)
        self.proof_seconds = time.monotonic() - began
        if closed is None:
            return False
        self.figures["closed_form"] = closed.bound
        self._take(plain, closed, "closed form")
        share = 1.0 if switch is None else FREQUENCY_SHARE
        try:
            answer = self._improve(plain, closed.multipliers, closed, share)
            self.figures["frequency"] = answer.bound
            if switch is not None:
                self._hybrid(plain, answer, switch)
        except LostBundleError:
            # What was proven before stands.
            late = self.deadline is not None and time.monotonic() > self.deadline
            self.status = Status.TIME_LIMIT if late else Status.STALLED
        self._excess()
        return True

    def certificate(self) -> Certificate:
        """The best answer as a value."""
        assert self.best is not None  # noqa: S101 (solve returned True)
        setup, proven = self.best
        layers = tuple(zip(setup.names, setup.sizes, strict=True))
        tori = setup.problem.torus.tori
        return Certificate(
            self.problem.key(),
            self.problem.method,
            proven.bound,
            self.status,
            Proof("torus", proven.multipliers, layers, setup.cut, setup.window, tori),
            proven.gram,
            dict(self.figures),
            self.iterations,
            time.monotonic() - self.start,
            stages=tuple((k, v) for k, v in zip(self.labels, proven.stages, strict=False) if math.isfinite(v)),
        )

    def _hybrid(self, plain: Setup, answer: Proven, cut: int) -> None:
        """Leave the torus after node ``cut``, from the frequency method's multipliers."""
        setup = set_up(self.problem.network, cut, window=True)
        closed = closed_start(setup, self.means)
        if closed is None:
            return
        base = closed.multipliers
        tied = tied_start(setup, plain, answer.multipliers, base)
        proven = certify_blend(setup, tied, base, self.means) or closed
        self.figures["hybrid_tied"] = proven.bound
        self._take(setup, proven, "hybrid")
        proven = self._improve(setup, base, proven, 1.0)
        self.figures["hybrid"] = proven.bound

    def _improve(self, setup: Setup, base: Multipliers, known: Proven, share: float) -> Proven:
        """Optimise from what is known, and prove; the better of the two."""
        if self.settings.iterations == 0 or known.bound == 0.0 or not setup.sizes:
            return known
        now = time.monotonic()
        # What is found has to be proven in time, too.
        deadline = None if self.deadline is None else now + share * (self.deadline - now) - self.proof_seconds
        if deadline is not None and deadline <= now:
            self.status = Status.TIME_LIMIT
            return known
        found, status, used = self._optimise(setup, known, deadline)
        self.iterations += used
        self.status = status
        proven = certify_blend(setup, found, base, self.means)
        better = proven is not None and proven.bound < known.bound
        if better and proven is not None:
            self._take(setup, proven, "optimised")
        if self.best is not None and self.best[0] is setup:
            self.figures["solver"] = self.solver
        return proven if better and proven is not None else known

    def _optimise(self, setup: Setup, known: Proven, deadline: float | None) -> tuple[Multipliers, Status, int]:
        settings = self.settings
        order = slices_order(setup)
        sizes = list(setup.sizes)
        ends = np.cumsum(sizes)[:-1]
        room = settings.memory // 2
        if order is not None and order <= INTERIOR_POINT_ORDER and slices_bytes(setup) <= room:
            limit = INTERIOR_ITERATIONS if settings.iterations is None else settings.iterations
            result = minimise_over_slices(
                slices(setup),
                torch.from_numpy(np.concatenate(known.multipliers)),
                known.bound**2,
                tolerance=settings.tolerance,
                iterations=limit,
                deadline=deadline,
                memory=settings.memory // 4,
            )
            status = self._status(result.converged, result.iterations >= limit, deadline)
            self.solver = result.value
            return tuple(np.split(result.multipliers.numpy(), ends)), status, result.iterations
        limit = DESCENT_ITERATIONS if settings.iterations is None else settings.iterations
        theta = torch.log(torch.from_numpy(np.concatenate(known.multipliers)))
        reference = known.bound**2
        working = choose_working(setup, known, self.means)
        self.last_proof = time.monotonic()
        lost = False

        def measured(point: torch.Tensor, power: float) -> lbfgs.Point | None:
            """Measure; once a bundle was lost, nothing more, so that the best point so far is what is left."""
            nonlocal lost
            try:
                return None if lost else measure(working, point, power, self.means, reference)
            except LostBundleError:
                lost = True
                return None

        tolerance = max(settings.tolerance, DESCENT_TOLERANCE)
        name = name_of(theta, setup.cut, setup.window, working.setup.groups, tolerance, settings.iterations)
        begun, keep = self._shelved(name, len(theta))
        found = lbfgs.minimise(
            measured,
            theta,
            iterations=limit,
            tolerance=tolerance,
            deadline=deadline,
            improved=lambda point, _: self._prove_now_and_then(setup, point),
            begun=begun,
            keep=keep,
        )
        status = self._status(converged=False, exhausted=found.iterations >= limit, deadline=deadline)
        self.solver = math.sqrt(found.value)
        return tuple(np.split(torch.exp(found.theta).numpy(), ends)), status, found.iterations

    def _shelved(self, name: str, size: int) -> tuple[lbfgs.State | None, Callable[[lbfgs.State], None] | None]:
        """What an earlier process left of a descent, and where this one's states go."""
        if self.shelf is None:
            return None, None
        shelf = self.shelf
        arrays = shelf.load(name)
        begun = None if arrays is None else from_arrays(arrays, size)
        return begun, lambda state: shelf.save(name, to_arrays(state))

    def _prove_now_and_then(self, setup: Setup, theta: torch.Tensor) -> None:
        """Prove what an optimiser has reached, so that a long run always has a recent bound to show."""
        now = time.monotonic()
        if now - self.last_proof < max(LEAST_PAUSE, PROOF_EVERY * self.proof_seconds):
            return
        parts = torch.split(torch.exp(theta), list(setup.sizes))
        try:
            proven = certify(setup, [part.numpy() for part in parts], self.means)
        except LostBundleError:
            proven = None
        if proven is not None:
            self._take(setup, proven, "optimising")
        self.last_proof = time.monotonic()

    def _status(self, converged: bool, exhausted: bool, deadline: float | None) -> Status:
        if converged:
            return Status.CONVERGED
        if deadline is not None and time.monotonic() > deadline:
            return Status.TIME_LIMIT
        return Status.ITERATION_LIMIT if exhausted else Status.STALLED

    def _take(self, setup: Setup, proven: Proven, how: str) -> None:
        if self.best is None or proven.bound < self.best[1].bound:
            self.best = setup, proven
            if self.report is not None:
                self.report(self.certificate(), how)

    def _excess(self) -> None:
        """Evaluate the answer without what covers its rounding, where that is quick."""
        late = self.deadline is not None and time.monotonic() + self.proof_seconds > self.deadline
        if self.best is None or late or self.proof_seconds > EXCESS_SECONDS:
            return
        setup, proven = self.best
        with contextlib.suppress(LostBundleError):
            self.figures["unrounded"] = unrounded_torus(setup, proven.multipliers, self.means)


def level_labels(setup: Setup) -> tuple[str, ...]:
    """A name for each level: its torus' sides, and its first and last node."""
    torus, nodes = setup.problem.torus, setup.network.nodes
    labels = []
    for index, sides in enumerate(torus.sides):
        names = [nodes[i].name for i in range(torus.cut + 1) if torus.level[i] == index]
        span = names[0] if len(names) == 1 else f"{names[0]}..{names[-1]}"
        labels.append(f"{span} on {'x'.join(map(str, sides))}")
    return tuple(labels)
