"""The interior-point method over many slices, working on the few that decide.

One inequality per slice (a spatial frequency), multipliers shared: of 144 frequencies some ten are tight at
the optimum. A primal-dual method runs on a small set of slices, each iterate is evaluated on all of them (a block
elimination, far cheaper than an iteration), and slices that are violated join while the method runs: a slice f joins
with Z_f the nearest positive matrix to its violated slack and X_f = μ Z_f⁻¹, on the central path of its own block.
(Constraint reduction for block-diagonal SDP, Park & O'Leary 2015, with an infeasible start; the direction is
that of ``lipray.certify.interior``.) A solution whose other slices are all satisfied is optimal for all slices.

The start is infeasible, X and Z multiples of the identity: from the closed form, which lies near the boundary on deep
chains, three times as many iterations were seen. What is returned is the best of the multipliers whose value
was evaluated on every slice, the start included; it is still no certificate.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass

import torch

from lipray.certify.inequality import Inequality
from lipray.certify.interior import InteriorResult, ScaledProblem

FIRST_SLICES = 8
"""Slices to begin with, at most; half by value, half spread."""

START_SCALE = 100.0
"""X and Z begin as this multiple of the identity, in the scaled problem whose closed form has λ = 1, ρ = 1."""

MATRICES = 18
"""Matrices of the inequality's order held for one active slice, at the peak."""

BLENDS = (1e-6, 1e-4, 1e-3, 1e-2, 0.05, 0.1, 0.2, 0.4, 0.7)
"""Shares of the start mixed into multipliers that no slice evaluation has accepted yet."""


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
        The best multipliers found, whose value was evaluated on every slice in floating point; ``start`` where
        nothing better was found in time.
    """
    search = _Search(form, start, value, tolerance, deadline, memory)
    turns = 0
    while turns < iterations and search.in_time():
        turns += 1
        if not search.iterate() or search.done:
            break
    search.repair()
    return InteriorResult(
        search.best, (search.best_rho * value) ** 0.5, search.gap, turns, converged=search.done, slices=search.used
    )


class SliceValues:
    """Smallest ρ for given λ, slice by slice, by block elimination from the output to the input.

    The last activation layer's block of M is eliminated first; what is left on the input after all is ρ I - P,
    so the slice needs ρ = λmax(P) (the mirror recursion of a chain, any graph by the blocks that fill in).
    """

    def __init__(self, form: Inequality, memory: int) -> None:
        self.form, self.d = form, form.inputs
        cuts = {0, form.inputs, form.order}
        for rows, columns in form.places:
            cuts |= {rows.start + self.d, rows.stop + self.d, columns.start, columns.stop}
        edges = sorted(cuts)
        self.groups = [slice(a, b) for a, b in itertools.pairwise(edges)]
        self.inputs = [i for i, group in enumerate(self.groups) if group.stop <= self.d]
        self.read = [i for i, group in enumerate(self.groups) if bool((form.C[..., group] != 0).any())]
        self.pairs = [
            (i, j)
            for i, row in enumerate(self.groups)
            for j, column in enumerate(self.groups)
            if any(
                rows.start + self.d <= row.start < rows.stop + self.d and columns.start <= column.start < columns.stop
                for rows, columns in form.places
            )
        ]
        self.chunk = max(1, memory // (2 * 16 * form.order**2))

    def __call__(self, multipliers: torch.Tensor, scale: float) -> torch.Tensor:
        """Values ρ (F,) for λ, the output scaled by 1/√scale; infinite where no ρ is enough."""
        count = self.form.B.shape[0]
        parts = [
            self._chunk(slice(at, min(at + self.chunk, count)), multipliers, scale)
            for at in range(0, count, self.chunk)
        ]
        return torch.cat(parts)

    def _chunk(self, where: slice, multipliers: torch.Tensor, scale: float) -> torch.Tensor:
        B, C, d = self.form.B[where], self.form.C[where], self.d
        blocks: dict[tuple[int, int], torch.Tensor] = {}

        def add(i: int, j: int, part: torch.Tensor) -> None:
            blocks[i, j] = blocks[i, j] + part if (i, j) in blocks else part

        for i, group in enumerate(self.groups):
            if i not in self.inputs:
                lam = 2.0 * multipliers[group.start - d : group.stop - d]
                add(i, i, torch.diag(lam.to(B.dtype)).expand(B.shape[0], -1, -1))
        for i, j in self.pairs:
            rows, columns = self.groups[i], self.groups[j]
            rows = slice(rows.start - d, rows.stop - d)
            add(i, j, -multipliers[rows, None] * B[:, rows, columns])
        for i in self.read:
            for j in self.read:
                if j <= i:
                    add(i, j, C[..., self.groups[i]].mH @ C[..., self.groups[j]] / -scale)
        bad = torch.zeros(B.shape[0], dtype=torch.bool)
        for i in reversed(range(len(self.inputs), len(self.groups))):
            L, info = torch.linalg.cholesky_ex(blocks.pop((i, i)))
            bad |= info != 0
            below = [j for j in range(i) if (i, j) in blocks]
            solved = {j: torch.linalg.solve_triangular(L, blocks.pop((i, j)), upper=False) for j in below}
            for j in below:
                for k in below:
                    if k <= j:
                        add(j, k, -(solved[j].mH @ solved[k]))
        P = torch.zeros(B.shape[0], d, d, dtype=B.dtype)
        for i in self.inputs:
            for j in self.inputs:
                if (i, j) in blocks:
                    P[:, self.groups[i], self.groups[j]] = -blocks[i, j]
        P[bad] = 0.0
        finite = torch.isfinite(torch.linalg.matrix_norm(P))
        P[~finite] = 0.0
        values: torch.Tensor = torch.linalg.eigvalsh(P)[:, -1]
        values[bad | ~finite] = float("inf")
        return values


@dataclass(slots=True)
class _Point:
    """An iterate on the active slices: primal X, dual slack Z (not yet that of y where ``residual`` says)."""

    X: torch.Tensor
    Z: torch.Tensor
    residual: torch.Tensor | None


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
        self.values = SliceValues(form, memory)
        self.limit = max(1, memory // (MATRICES * 16 * form.order**2))
        self.best, self.best_rho = start, 1.0
        self.gap, self.done, self.feasible = float("inf"), False, False
        self.lap, self.last = 0.0, time.monotonic()
        n, m = form.B.shape[1], form.order
        self.y = torch.ones(n + 1, dtype=torch.float64)
        self.y[n] = 2.0
        self.active = self._first()
        self.used = len(self.active)
        self.problem = self._problem(self.active)
        eye = torch.eye(m, dtype=form.B.dtype).expand(self.used, m, m)
        Z = START_SCALE * eye
        self.point = _Point(START_SCALE / self.used * eye, Z, self.problem.slack(self.y) - Z)

    def in_time(self) -> bool:
        """Whether another iteration as long as the longest so far ends before the deadline."""
        now = time.monotonic()
        self.lap, self.last = max(self.lap, now - self.last), now
        return self.deadline is None or now + self.lap < self.deadline

    def iterate(self) -> bool:
        """One step on the active slices, then all slices; false when the method can go no further."""
        if not self._step():
            return False
        if self.point.residual is None:
            self.feasible = True
        if self.feasible:
            self._look()
        return True

    def repair(self) -> None:
        """Where the last multipliers were never accepted, mix in as much of the start as gives the best value."""
        n = len(self.start)
        if self.done or not bool((self.y > 0).all()):
            return
        reached = self.y[:n] / self.y[n]
        for share in BLENDS:
            if self.deadline is not None and time.monotonic() > self.deadline:
                return
            self._accept((1.0 - share) * reached + share)

    def _accept(self, scaled: torch.Tensor) -> torch.Tensor:
        """Evaluate λ (in the scaled problem) on every slice; keep it where it is the best."""
        values = self.values(self.start * scaled, self.value)
        top = float(values.max())
        if 0.0 < top < self.best_rho:
            self.best, self.best_rho = self.start * scaled / top, top
        return values

    def _look(self) -> None:
        """Evaluate the iterate on all slices, and let the worst of the violated ones join."""
        n = len(self.start)
        if not bool((self.y > 0).all()):
            return
        values = self._accept(self.y[:n])
        X = self.point.X
        infeasibility = float((self.problem.adjoint(X) - self.problem.b).abs().max())
        bound = float((X * self.problem.CC.mT).real.sum())
        self.gap = (self.best_rho - bound) / self.best_rho if infeasibility < self.tolerance else float("inf")
        if self.gap < self.tolerance:
            self.done = True
            return
        rho = float(self.y[n])
        joining = self._pick(values, rho * (1.0 + 0.1 * self.tolerance))
        if joining:
            self._join(joining)

    def _pick(self, values: torch.Tensor, threshold: float) -> list[int]:
        """The worst violated slices, without twins (conjugate frequencies) of each other or of active ones."""
        taken = values[self.active].tolist()
        room = min(max(4, len(self.active) // 2), self.limit - len(self.active))
        chosen: list[int] = []
        active = set(self.active)
        for index in torch.argsort(values, descending=True).tolist():
            here = float(values[index])
            if len(chosen) >= room or here <= threshold:
                break
            twin = here < float("inf") and any(abs(here - other) <= 1e-9 * here for other in taken)
            if index not in active and not twin:
                chosen.append(index)
                taken.append(here)
        return chosen

    def _first(self) -> list[int]:
        """The largest values at the start, and some spread over the rest."""
        values = self.values(self.start, self.value)
        self.active = []
        count = len(values)
        size = min(FIRST_SLICES, self.limit, count)
        chosen = self._pick_first(values, (size + 1) // 2)
        for index in torch.linspace(0, count - 1, size).round().long().tolist():
            if index not in chosen and len(chosen) < size:
                chosen.append(index)
        return chosen

    @staticmethod
    def _pick_first(values: torch.Tensor, size: int) -> list[int]:
        chosen: list[int] = []
        for index in torch.argsort(values, descending=True).tolist():
            if all(abs(float(values[index] - values[other])) > 1e-9 * float(values[index]) for other in chosen):
                chosen.append(index)
            if len(chosen) == size:
                break
        return chosen

    def _problem(self, slices: list[int]) -> ScaledProblem:
        part = Inequality(self.form.B[slices], self.form.C[slices], self.form.inputs, self.form.places)
        return ScaledProblem(part, self.start, self.value)

    def _join(self, slices: list[int]) -> None:
        old = self.point
        mu = float((old.X * old.Z.mT).real.sum()) / (len(self.active) * self.form.order)
        slack = self._problem(slices).slack(self.y)
        values, vectors = torch.linalg.eigh(slack)
        floor = values.amax(dim=-1, keepdim=True) * 1e-3
        lifted = torch.maximum(values.abs(), floor)
        Z = (vectors * lifted[:, None, :]) @ vectors.mH
        X = mu * (vectors / lifted[:, None, :]) @ vectors.mH
        rest = torch.zeros_like(old.Z) if old.residual is None else old.residual
        self.active = self.active + slices
        self.used = max(self.used, len(self.active))
        self.problem = self._problem(self.active)
        self.point = _Point(torch.cat([old.X, X]), torch.cat([old.Z, Z]), torch.cat([rest, slack - Z]))

    def _step(self) -> bool:
        """One predictor-corrector step from a point whose dual equation may not hold yet."""
        problem, point = self.problem, self.point
        X, Z, residual = point.X, point.Z, point.residual
        L = problem.factor(Z)
        if L is None:
            return False
        G = problem.inverse(L)
        GV, XV = problem.times_V(G), problem.times_V(X)
        schur = problem.schur(X, XV, G, GV)
        if schur is None:
            return False
        order = problem.count * problem.m
        mu = _inner(X, Z) / order
        XR = None if residual is None else X @ residual

        def direction(target: float, second: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            fixed = XR if second is None else second if XR is None else XR + second
            rhs = -problem.b
            if target > 0.0:
                rhs = rhs + target * aG
            if fixed is not None:
                rhs = rhs - problem.adjoint_of_product(fixed, G, GV)
            dy = problem.solve(schur, rhs)
            moved = problem.times_op(X, XV, dy)
            if fixed is not None:
                moved += fixed
            dX = moved @ G
            dX = -X - (dX + dX.mH) / 2
            if target > 0.0:
                dX += target * G
            dZ = problem.op(dy)
            if residual is not None:
                dZ += residual
            return dy, dX, dZ

        aG = problem.adjoint(G, GV)
        _, dX, dZ = direction(0.0, None)
        dual, primal = _reach(Z, dZ, 0.95), _reach(X, dX, 0.95)
        after = (_inner(X, Z) + primal * _inner(dX, Z) + dual * _inner(X, dZ) + primal * dual * _inner(dX, dZ)) / order
        sigma = min(0.8, max(1e-3, (after / mu) ** 2)) if after > 0.0 else 0.1
        dy, dX, dZ = direction(sigma * mu, dX @ dZ)
        dual, primal = _reach(Z, dZ, 0.9), _reach(X, dX, 0.9)
        if max(dual, primal) < 1e-6:
            return False
        self.y = self.y + dual * dy
        X = X + primal * dX
        if residual is not None:
            residual = residual * (1.0 - dual) if dual < 1.0 else None
        Z = problem.slack(self.y) if residual is None else Z + dual * dZ
        self.point = _Point(X, Z, residual)
        return True


def _inner(A: torch.Tensor, B: torch.Tensor) -> float:
    return float((A * B.mT).real.sum())


def _reach(S: torch.Tensor, dS: torch.Tensor, fraction: float) -> float:
    """min(1, fraction · the largest a with S + a dS ≻ 0), by Cholesky of those slices that still fail."""
    low, high = 0.0, 1.0 / fraction
    failing = torch.arange(S.shape[0])

    def still(a: float) -> torch.Tensor:
        _, info = torch.linalg.cholesky_ex(S[failing] + a * dS[failing])
        return failing[info != 0]

    left = still(high)
    if len(left) == 0:
        return 1.0
    failing = left
    while high - low > 0.03 * high and high > 1e-9:
        middle = (low + high) / 2
        left = still(middle)
        if len(left) == 0:
            low = middle
        else:
            high, failing = middle, left
    return fraction * low
