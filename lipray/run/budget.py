"""The clock of an estimate: what is left of its budget, and how that is shared out."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from lipray.partition.choice import default_limit
from lipray.partition.plan import RoundWork
from lipray.partition.subproblem import Settings

SEARCH_SHARE = 1 / 6
"""Part of a budget that the search for a lower bound may take, by estimate."""
SOLVE_SHARE = 2 / 3
"""Part of a budget for the sub-problems that are solved each by one task; the rest is for what comes before."""
BUDGET_SPENT = "BudgetSpent"
"""The kind of failure of what a budget left no time for."""
OUT_OF_TIME = "OutOfTime"
"""The kind of failure of what was not done at a deadline."""
SPENT = frozenset({BUDGET_SPENT, OUT_OF_TIME})
"""Kinds of failure that say only that there was no time."""
GRACE, LEAST_GRACE = 0.02, 2.0
"""What is under way is cut short when the time for it is exceeded by this share and these seconds."""
LEAST = 0.01
"""Seconds given where nothing is left."""
SLACK = 2.0
"""An estimate is off by this factor at times: a closed form is tried if half of it fits what is left."""


@dataclass(frozen=True, slots=True)
class Clock:
    """The budget of a run in seconds, ``None`` without one, and when it began (``time.monotonic``)."""

    budget: float | None
    start: float

    @classmethod
    def begin(cls, budget: float | None) -> Clock:
        """Start the clock now."""
        return cls(budget, time.monotonic())

    @property
    def left(self) -> float:
        """Seconds left, infinity without a budget, never negative."""
        return math.inf if self.budget is None else max(0.0, self.start + self.budget - time.monotonic())

    @property
    def deadline(self) -> float | None:
        """When what is not done is given up (``time.monotonic``), ``None`` without a budget."""
        return None if self.budget is None else cut(self.start, self.budget)

    @property
    def search(self) -> float | None:
        """Seconds that the search for a lower bound may take."""
        return None if self.budget is None else SEARCH_SHARE * self.budget

    def solve_limit(self, count: int, width: int, limit: float | None) -> float | None:
        """Time limit of each sub-problem that is solved by one task, ``width`` of them at a time.

        Args:
            count: how many there are.
            width: how many run at one time.
            limit: the limit that holds anyway.
        """
        if self.budget is None or not count:
            return limit
        waves = math.ceil(count / width)
        share = SOLVE_SHARE * self.budget / waves
        return share if limit is None else min(share, limit)


def cut(start: float, seconds: float) -> float:
    """When to cut short what began at ``start`` and has so many seconds."""
    return start + (1.0 + GRACE) * seconds + LEAST_GRACE


def round_limit(work: RoundWork, settings: Settings, width: int, left: float, share: float) -> float | None:
    """Time limit (seconds) of a problem whose rounds are shared by ``width`` workers, ``None`` for no limit.

    Within a budget it is the problem's ``share`` of what is ``left``; the solver keeps what its last proof takes.
    Without one, and without a number of iterations, a multiple of the closed form.
    """
    limit = settings.time_limit
    if math.isfinite(left):
        mine = max(share * left, LEAST)
        return mine if limit is None else min(mine, limit)
    return default_limit(settings, work.closed_form_seconds / width)


def affordable(work: RoundWork, width: int, left: float) -> bool:
    """Whether the closed form may be expected to be done in about the time that is left."""
    return work.closed_form_seconds / width <= SLACK * left
