"""The interior-point method over many slices, working on the few that decide.

One inequality per slice (a spatial frequency), multipliers shared: of 144 frequencies some ten are tight at
the optimum. A primal-dual method runs on a small set of slices; each iterate is evaluated on all of them (a block
elimination, far cheaper than an iteration), and slices that are violated join while the method runs: slice f with Z_f
the nearest positive matrix to its violated slack and X_f = μ Z_f⁻¹, on the central path of its own block. Slices
whose X_f hardly matters leave. (Constraint reduction for block-diagonal SDP, Park & O'Leary 2015, with an infeasible
start; the direction is that of ``lipray.certify.interior``.) Multipliers that all slices accept, with a value
that the active ones' X proves to be least, are optimal for all.

The start is infeasible, X and Z multiples of the identity: from the closed form, which lies near the boundary on
deep chains, up to three times as many iterations were seen. What is returned is the best of the multipliers
evaluated on every slice, the start included. It is no certificate: that is made elsewhere, from the multipliers.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from lipray.certify.inequality import Inequality
from lipray.certify.interior import InteriorResult
from lipray.certify.narrowing import narrowed
from lipray.certify.scaled import ScaledProblem
from lipray.certify.slice_values import SliceValues

FIRST_SLICES = 8
"""Slices to begin with, at most; half by value at the start, half spread."""

START_Z, START_X = 3.0, 30.0
"""Z and the sum of X over slices begin as these multiples of the identity, where the scaled closed form has λ = ρ = 1.

Of (100, 100), (10, 10), (3, 3), (3, 30), (5, 1) on trained and random chains, this needed the fewest iterations."""

MATRICES = 22
"""Matrices of the inequality's order held for one active slice at the peak of an iteration."""

LEAVING = 1e-3
"""How much of the primal equation, weighted by the multipliers, slices may together take away when they leave."""

BLENDS = (1e-6, 1e-4, 1e-3, 1e-2, 0.05, 0.1, 0.2, 0.4, 0.7)
"""Shares of the start mixed into last multipliers that some slice refuses."""

SERIAL_ORDER = 160
"""Order up to which one thread is used."""

MARGIN = 1e-9
"""Relative shrinking of accepted multipliers. M((1 - t) λ) ⪰ t E_in where M(λ) ⪰ 0 and the bound squared grows by
1 / (1 - t): multipliers at the very edge made a recursion from the input come out 1e-4 too large."""

WEAK, FAINT = 1e-2, 1e-8
"""Rows of B whose strength, relative to their layer's strongest, is below ``WEAK`` begin with multipliers enlarged
in proportion, by 1 / ``FAINT`` at most: λ of a channel that is all but dead tends to infinity, and would take tens of
iterations to get there."""

RESTARTS = 2
"""How often a stalled run begins again, with the slices it has gathered."""


def minimise_over_slices(
    form: Inequality,
    start: torch.Tensor,
    value: float,
    *,
    tolerance: float = 1e-6,
    iterations: int = 80,
    deadline: float | None = None,
    memory: int = 2**31,
) -> InteriorResult:
    """Minimise the largest bound over all slices.

    Args:
        form: the inequality, (F, n, d + n) and (F, k, d + n).
        start: multipliers λ (length n, at ρ = 1), feasible for every slice.
        value: the bound squared they give.
        tolerance: relative duality gap of ρ at which to stop.
        iterations: at most this many.
        deadline: ``time.monotonic()`` at which to stop.
        memory: bytes to use beside ``form`` itself; decides how many slices may be active.

    Returns:
        The best multipliers found, evaluated on every slice in floating point; ``start`` where nothing better was
        found in time.
    """
    turns = 0
    with _threads(form.order):
        search = _Search(narrowed(form), start, value, tolerance, deadline, memory)
        while turns < iterations and not search.done and search.in_time():
            turns += 1
            if not search.iterate():
                break
        search.repair()
    return InteriorResult(
        search.best,
        (search.best_rho * search.value) ** 0.5,
        search.gap,
        turns,
        converged=search.done,
        slices=search.most,
    )


@contextlib.contextmanager
def _threads(order: int) -> Iterator[None]:
    """One thread for small matrices: more gain nothing there, and on a busy machine wait for each other.

    A chain of order 64 took 0.7 s by one thread; by two, beside two other processes on two cores, 60 s.
    """
    known = torch.get_num_threads()
    if order <= SERIAL_ORDER:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(known)


@dataclass(slots=True)
class _Point:
    """An iterate on the active slices: primal X, dual Z, and op(y) - C*C - Z, ``None`` once that is zero."""

    X: torch.Tensor
    Z: torch.Tensor
    residual: torch.Tensor | None

    def only(self, keep: list[int]) -> _Point:
        """The iterate on some of its slices."""
        return _Point(self.X[keep], self.Z[keep], None if self.residual is None else self.residual[keep])


class _Search:
    """The state of a run: the active slices, their iterate, and the best multipliers evaluated on all slices."""

    def __init__(
        self,
        form: Inequality,
        start: torch.Tensor,
        value: float,
        tolerance: float,
        deadline: float | None,
        memory: int,
    ) -> None:
        self.form, self.start, self.value = form, start, value
        self.tolerance, self.deadline = tolerance, deadline
        self.lap, self.last = 0.0, time.monotonic()
        self.values = SliceValues(form, memory)
        self.limit = max(1, memory // (MATRICES * form.B.element_size() * form.order**2))
        self.best, self.best_rho = start, 1.0
        self.gap, self.done, self.feasible = float("inf"), False, False
        self.stalled, self.restarts = 0, 0
        self.left: set[int] = set()
        self.at_start = self.values(start, value)
        self.unit = self.start / self._strength()
        self.active = self._first()
        self.most = len(self.active)
        self._begin()

    def _begin(self) -> None:
        n, count = len(self.start), len(self.active)
        self.y = torch.ones(n + 1, dtype=torch.float64)
        self.y[n] = 2.0
        self.problem = self._problem(self.active)
        eye = torch.eye(self.form.order, dtype=self.form.B.dtype).expand(count, -1, -1)
        Z = START_Z * eye
        self.point = _Point(START_X / count * eye, Z, self.problem.slack(self.y) - Z)

    def _strength(self) -> torch.Tensor:
        """Each multiplier's row of B, weighted by the start, relative to the strongest of its layer; 1 unless weak."""
        signals = torch.cat([torch.ones(self.form.inputs, dtype=torch.float64), 1.0 / self.start])
        power = torch.zeros_like(self.start)
        for rows, columns in self.form.places:
            power[rows] += (self.form.B[:, rows, columns].abs().square() @ signals[columns]).amax(0)
        for rows, _ in self.form.places:
            power[rows] /= power[rows].max().clamp(min=1e-300)
        return (power / WEAK).clamp(FAINT, 1.0)

    def _problem(self, slices: list[int]) -> ScaledProblem:
        part = Inequality(self.form.B[slices], self.form.C[slices], self.form.inputs, self.form.places)
        return ScaledProblem(part, self.unit, self.value)

    def in_time(self) -> bool:
        """Whether another iteration as long as the longest so far ends before the deadline."""
        now = time.monotonic()
        self.lap, self.last = max(self.lap, now - self.last), now
        return self.deadline is None or now + self.lap < self.deadline

    def iterate(self) -> bool:
        """One step on the active slices, then a look at all; false when the method can go no further."""
        step = self._step()
        self.stalled = 0 if step > 0.03 else self.stalled + 1
        if step == 0.0 or self.stalled > 4:
            self.restarts += 1
            self.stalled = 0
            if self.restarts > RESTARTS or self.gap < 1e-3:
                return False
            self.start, self.value, self.best_rho = self.best, self.value * self.best_rho, 1.0
            self.unit = self.start
            self._begin()
            return True
        self.feasible = self.feasible or self.point.residual is None
        if self.feasible and bool((self.y > 0).all()):
            self._look()
        return True

    def repair(self) -> None:
        """Where the last multipliers were not accepted, mix in as much of the start as gives the best value."""
        n = len(self.start)
        if self.done or not bool((self.y > 0).all()):
            return
        reached = self.y[:n] / self.y[n]
        for share in BLENDS:
            if self.deadline is not None and time.monotonic() > self.deadline:
                return
            self._accept((1.0 - share) * reached + share * self.start / self.unit)

    def _accept(self, scaled: torch.Tensor) -> torch.Tensor:
        """Evaluate λ (in the scaled problem) on every slice; keep it where it is the best."""
        values = self.values(self.unit * scaled, self.value)
        top = float(values.max())
        if 0.0 < top < (1.0 - MARGIN) * self.best_rho:
            self.best, self.best_rho = self.unit * scaled * ((1.0 - MARGIN) / top), top / (1.0 - MARGIN)
        return values

    def _look(self) -> None:
        """Evaluate the iterate on all slices; the worst of the violated ones join, idle ones leave."""
        n = len(self.start)
        values = self._accept(self.y[:n])
        X, rho = self.point.X, float(self.y[n])
        missing = (self.problem.adjoint(X) - self.problem.b).abs() @ self.y.abs()
        bound = float((X * self.problem.CC.mT).real.sum()) - float(missing)
        self.gap = (self.best_rho - bound) / self.best_rho if abs(bound) < 1e6 else float("inf")
        if self.gap < self.tolerance:
            self.done = True
            return
        wanted = self._violated(values, rho * (1.0 + 0.1 * self.tolerance))
        full = len(self.active) + len(wanted) - self.limit
        idle = self._idle(values, 0.98 * rho, crowded=full > 0)
        if full > 0:
            self._leave(idle[:full])
        elif not wanted and len(idle) > len(self.active) // 4:
            self._leave(idle)
        joining = wanted[: max(0, self.limit - len(self.active))]
        if joining:
            self._join(joining)

    def _violated(self, values: torch.Tensor, threshold: float) -> list[int]:
        """The worst violated slices, without twins (conjugate frequencies) of each other or of active ones."""
        # Among those for which no ρ is enough, the start's values decide.
        values = torch.where(torch.isinf(values), 1e30 * (1.0 + self.at_start), values)
        most = max(6, len(self.active) // 4)
        chosen = _largest(values, most, threshold, set(self.active))
        self.left -= set(chosen)
        return chosen

    def _first(self) -> list[int]:
        """The largest values at the start, and some spread over the rest."""
        count = len(self.at_start)
        size = min(FIRST_SLICES, self.limit, count)
        chosen = _largest(self.at_start, (size + 1) // 2, -1.0, set())
        for index in torch.linspace(0, count - 1, 2 * size).round().long().tolist():
            if len(chosen) < size and index not in chosen:
                chosen.append(index)
        return chosen

    def _idle(self, values: torch.Tensor, threshold: float, *, crowded: bool) -> list[int]:
        """Positions in ``active`` of satisfied slices that hardly matter, least first.

        A slice leaves once, so that none goes to and fro, unless room is needed.
        """
        X, problem = self.point.X, self.problem
        pairs = 2.0 * torch.diagonal(problem.times_V(X)[:, problem.d :], dim1=1, dim2=2).real.abs()
        corner = torch.diagonal(X, dim1=1, dim2=2).real[:, : problem.d].sum(1, keepdim=True)
        shares = torch.cat([pairs, corner], dim=1) @ (self.y / self.y[-1])
        order = torch.argsort(shares)
        if not crowded:
            order = order[torch.cumsum(shares[order], 0) < LEAVING]
        return [
            i
            for i in order.tolist()
            if float(values[self.active[i]]) < threshold and (crowded or self.active[i] not in self.left)
        ]

    def _leave(self, positions: list[int]) -> None:
        gone = set(positions)
        keep = [i for i in range(len(self.active)) if i not in gone]
        if not keep or not gone:
            return
        self.left |= {self.active[i] for i in gone}
        self.active = [self.active[i] for i in keep]
        self.problem = self._problem(self.active)
        self.point = self.point.only(keep)

    def _join(self, slices: list[int]) -> None:
        old = self.point
        mu = _inner(old.X, old.Z) / (len(self.active) * self.form.order)
        slack = self._problem(slices).slack(self.y)
        values, vectors = torch.linalg.eigh(slack)
        lifted = torch.maximum(values.abs(), 1e-3 * values.amax(dim=-1, keepdim=True))[:, None, :]
        Z, X = (vectors * lifted) @ vectors.mH, (vectors * (mu / lifted)) @ vectors.mH
        rest = torch.zeros_like(old.Z) if old.residual is None else old.residual
        self.active = self.active + slices
        self.most = max(self.most, len(self.active))
        self.problem = self._problem(self.active)
        self.point = _Point(torch.cat([old.X, X]), torch.cat([old.Z, Z]), torch.cat([rest, slack - Z]))

    def _step(self) -> float:
        """One predictor-corrector step; the longer of its two step lengths, 0 where none is possible."""
        problem = self.problem
        X, Z, residual = self.point.X, self.point.Z, self.point.residual
        L = problem.factor(Z)
        if L is None:
            return 0.0
        G = problem.inverse(L)
        del L
        GV, XV = problem.times_V(G), problem.times_V(X)
        schur = problem.schur(X, XV, G, GV)
        if schur is None:
            return 0.0
        order = problem.count * problem.m
        xz = _inner(X, Z)
        XR = None if residual is None else X @ residual
        centre = problem.adjoint(G, GV)

        def direction(target: float, fixed: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            """Direction (dy, dX, dZ) towards X Z = target · I, from X dZ = X op(dy) + fixed."""
            rhs = target * centre - problem.b
            if fixed is not None:
                rhs -= problem.adjoint_of_product(fixed, G, GV)
            dy = problem.solve(schur, rhs)
            moved = problem.times_op(X, XV, dy)
            if fixed is not None:
                moved += fixed
            moved = moved @ G
            dX = target * G - X
            dX -= (moved + moved.mH) / 2
            dZ = problem.op(dy)
            if residual is not None:
                dZ += residual
            return dy, dX, dZ

        dy, dX, dZ = direction(0.0, XR)
        dual, primal = _reach(Z, dZ, 0.95, 0.1), _reach(X, dX, 0.95, 0.1)
        after = xz + primal * _inner(dX, Z) + dual * _inner(X, dZ) + primal * dual * _inner(dX, dZ)
        shortest = min(dual, primal)
        sigma = min(0.8, max(1e-6, max(after / xz, 0.0) ** 3))
        second = problem.times_op(dX, problem.times_V(dX), dy)
        if residual is not None and XR is not None:
            second += XR
            second += dX @ residual
        del dX, dZ
        dy, dX, dZ = direction(sigma * xz / order, second)
        fraction = 0.9 + 0.08 * shortest
        dual, primal = _reach(Z, dZ, fraction, 0.05), _reach(X, dX, fraction, 0.05)
        self.y = self.y + dual * dy
        if residual is not None:
            residual = residual * (1.0 - dual) if dual < 1.0 else None
        Z = problem.slack(self.y) if residual is None else Z + dual * dZ
        self.point = _Point(X + primal * dX, Z, residual)
        return max(dual, primal)


def _largest(values: torch.Tensor, most: int, threshold: float, taken: set[int]) -> list[int]:
    """Indices of the largest values above a threshold that are not taken, and not twins of those."""
    seen = values[sorted(taken)].tolist()
    chosen: list[int] = []
    for index in torch.argsort(values, descending=True).tolist():
        here = float(values[index])
        if len(chosen) >= most or here <= threshold:
            break
        if index not in taken and all(abs(here - other) > 1e-9 * here for other in seen):
            chosen.append(index)
            seen.append(here)
    return chosen


def _inner(A: torch.Tensor, B: torch.Tensor) -> float:
    return float((A * B.mT).real.sum())


def _reach(S: torch.Tensor, dS: torch.Tensor, fraction: float, precision: float) -> float:
    """min(1, fraction · the largest a with S + a dS ≻ 0), by Cholesky of those slices that still fail."""
    low, high, a = 0.0, 1.0 / fraction, 1.0 / fraction
    while high > 1e-9:
        _, info = torch.linalg.cholesky_ex(torch.add(S, dS, alpha=a))
        failing = torch.nonzero(info)[:, 0]
        if len(failing) > 0:
            high = a
            if len(failing) < len(S):
                S, dS = S[failing], dS[failing]
        elif a == high:
            return 1.0
        else:
            low = a
        if high - low <= precision * high:
            break
        a = (low + high) / 2
    return fraction * low
