"""L-BFGS over log λ, for any measure of the bound that comes with its gradient.

The largest eigenvalue is smoothed as (tr P^p)^(1/p), p growing in stages, and minimised by L-BFGS with Armijo
backtracking (Nocedal & Wright 2006, algorithms 7.4 and 3.1); a step that leaves M ≻ 0 counts as an
infinite value. Any iterate is feasible, so stopping at any time is sound.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

POWERS = (16.0, 64.0, 256.0)
SHARES = (0.6, 0.85, 1.0)
"""Part of the time after which each of them ends."""
MEMORY = 30


@dataclass(frozen=True, slots=True)
class Point:
    """The logarithm of the smoothed value, λmax(P) itself, and the gradient of the former in log λ."""

    value: float
    top: float
    gradient: torch.Tensor


@dataclass(frozen=True, slots=True)
class Descent:
    """The best log λ found, its λmax(P), measures taken with gradient, and whether no tolerance was met."""

    theta: torch.Tensor
    value: float
    iterations: int
    stalled: bool


Measure = Callable[[torch.Tensor, float], Point | None]
"""From log λ and the power p to a ``Point``; ``None`` where infeasible."""


@dataclass(frozen=True, slots=True)
class State:
    """A descent before one of its iterations: from here it goes on as if it had never stopped.

    ``left`` iterations are left to the stage, ``used`` were used in all; ``steps`` and ``changes`` are those that the
    quasi-Newton direction remembers, ``history`` the stage's values.
    """

    stage: int
    left: int
    used: int
    theta: torch.Tensor
    point: Point
    steps: tuple[torch.Tensor, ...]
    changes: tuple[torch.Tensor, ...]
    history: tuple[float, ...]
    best_theta: torch.Tensor
    best_value: float


class _Watch:
    """The time left to a stage, in measures as long as the longest so far."""

    def __init__(self, deadline: float | None) -> None:
        self.start, self.deadline, self.until, self.longest = time.monotonic(), deadline, deadline, 0.0

    def begin(self, stage: int) -> None:
        """Let a stage have its share of the time."""
        if self.deadline is not None:
            self.until = self.start + SHARES[stage] * (self.deadline - self.start)

    def timed(self, measure: Measure, theta: torch.Tensor, power: float) -> Point | None:
        """Measure, and remember how long that took."""
        start = time.monotonic()
        point = measure(theta, power)
        self.longest = max(self.longest, time.monotonic() - start)
        return point

    def time_for_one_more(self) -> bool:
        """Whether another measure ends before the stage does."""
        return self.until is None or time.monotonic() + self.longest <= self.until


def minimise(
    measure: Measure,
    theta: torch.Tensor,
    *,
    iterations: int,
    tolerance: float,
    deadline: float | None = None,
    improved: Callable[[torch.Tensor, float], None] | None = None,
    begun: State | None = None,
    keep: Callable[[State], None] | None = None,
) -> Descent:
    """Minimise from a feasible ``theta``.

    Args:
        measure: the value and its gradient.
        theta: where to begin.
        iterations: at most this many, over all stages.
        tolerance: relative improvement per iteration below which a stage ends.
        deadline: ``time.monotonic()`` at which to stop.
        improved: told every better point.
        begun: go on from here instead of beginning at ``theta``.
        keep: told the state before every iteration.
    """
    best_theta, best_value = (theta, math.inf) if begun is None else (begun.best_theta, begun.best_value)
    used, stalled = (0 if begun is None else begun.used), True
    watch = _Watch(deadline)
    for stage, power in enumerate(POWERS):
        if begun is not None and stage < begun.stage:
            continue
        watch.begin(stage)
        if not watch.time_for_one_more():
            continue
        if begun is not None and stage == begun.stage:
            theta, current, left = begun.theta, begun.point, begun.left
            steps, changes, history = list(begun.steps), list(begun.changes), list(begun.history)
        else:
            measured = watch.timed(measure, theta, power)
            if measured is None:
                break
            current = measured
            if current.top < best_value:
                best_theta, best_value = theta, current.top
            steps, changes, history = [], [], [current.value]
            left = (iterations - used) // (len(POWERS) - stage)
        for turn in range(left):
            if not watch.time_for_one_more():
                break
            if keep is not None and (begun is None or used > begun.used):
                known = tuple(steps), tuple(changes), tuple(history)
                keep(State(stage, left - turn, used, theta, current, *known, best_theta, best_value))
            used += 1
            direction = _two_loop(current.gradient, steps, changes)
            slope = float(direction @ current.gradient)
            if slope >= 0.0:
                steps, changes = [], []
                direction, slope = -current.gradient, -float(current.gradient @ current.gradient)
            length = 1.0 if steps else 0.5 / max(float(current.gradient.abs().max()), 1e-300)
            length = min(length, 2.0 / max(float(direction.abs().max()), 1e-300))
            trial = None
            for _ in range(12):
                trial = watch.timed(measure, theta + length * direction, power)
                if trial is not None and trial.value <= current.value + 1e-4 * length * slope:
                    break
                trial, length = None, length * 0.4
                if not watch.time_for_one_more():
                    break
            if trial is None:
                break
            moved, turned = length * direction, trial.gradient - current.gradient
            if float(moved @ turned) > 1e-12 * float(moved.norm() * turned.norm()):
                steps, changes = [*steps, moved][-MEMORY:], [*changes, turned][-MEMORY:]
            theta, current = theta + moved, trial
            if current.top < best_value:
                best_theta, best_value = theta, current.top
                if improved is not None:
                    improved(theta, current.top)
            history = [*history, current.value][-7:]
            if len(history) > 6 and history[-7] - history[-1] < 6.0 * tolerance:
                stalled = False
                break
        else:
            stalled = False
    return Descent(best_theta, best_value, used, stalled=stalled)


def smoothed(values: torch.Tensor, power: float) -> tuple[float, float, torch.Tensor]:
    """Give log (Σ v^p)^(1/p), the largest v, and the weights whose sum with dv is the derivative of the former."""
    top = float(values.max())
    relative = (values / top).clamp(min=0.0)
    total = float((relative**power).sum())
    weights = relative ** (power - 1.0) / (total * top)
    return math.log(top) + math.log(total) / power, top, weights


def _two_loop(gradient: torch.Tensor, steps: list[torch.Tensor], changes: list[torch.Tensor]) -> torch.Tensor:
    q = gradient.clone()
    alphas = []
    for s, c in zip(reversed(steps), reversed(changes), strict=True):
        alpha = float(s @ q) / float(s @ c)
        alphas.append(alpha)
        q -= alpha * c
    if steps:
        q *= float(steps[-1] @ changes[-1]) / float(changes[-1] @ changes[-1])
    for s, c, alpha in zip(steps, changes, reversed(alphas), strict=True):
        q += (alpha - float(c @ q) / float(s @ c)) * s
    return -q
