"""What happens during a run, as values handed to a callback; the core itself prints nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lipray.partition.plan import Plan


@dataclass(frozen=True, slots=True)
class PlanReady:
    """The work is cut: ``tasks`` of all kinds will run, of which ``subproblems`` bound tiles."""

    plan: Plan
    tasks: int
    subproblems: int
    place: str


@dataclass(frozen=True, slots=True)
class SweepReady:
    """The work of all ``points`` of a sweep is cut: ``tasks`` are what they come to, those they share counted once."""

    points: int
    tasks: int
    place: str


@dataclass(frozen=True, slots=True)
class PointDone:
    """A point of a sweep has ended, ``done`` of ``points``.

    ``bound`` is its own, ``None`` where it has none; ``upper`` and ``lower`` are the best of all, where all points
    bound the same network.
    """

    point: str
    state: str
    bound: float | None
    done: int
    points: int
    upper: float | None = None
    lower: float | None = None


@dataclass(frozen=True, slots=True)
class TaskDone:
    """A task ended, well or (``failure`` names why) not; ``done`` of ``tasks`` have ended.

    ``share`` is the part of the expected work that is done, by the estimates of the plan.
    ``upper`` is the valid bound at this moment, with product bounds in the place of what is missing;
    ``None`` until every block has at least its product bound. ``stored``: the answer came from a store, proven again.
    ``status`` is a certificate's, ``began`` when (seconds since 1970) and ``where`` in which process work on it began.
    """

    label: str
    seconds: float
    done: int
    tasks: int
    share: float
    upper: float | None
    lower: float
    failure: str | None = None
    stored: bool = False
    status: str = ""
    began: float = 0.0
    where: str = ""


@dataclass(frozen=True, slots=True)
class LowerBoundImproved:
    """A pair of points attains a larger quotient than all before."""

    lower: float
    label: str


@dataclass(frozen=True, slots=True)
class UpperBoundImproved:
    """A problem that is still worked on has a better certified bound; ``upper`` and ``lower`` are the whole network's.

    ``way`` is how the problem's bound was reached.
    """

    label: str
    way: str
    upper: float | None
    lower: float


@dataclass(frozen=True, slots=True)
class RoundDone:
    """A round of a coordinated problem ended, the ``rounds``-th, ``seconds`` after its first began.

    ``share`` and the bracket are as in ``TaskDone``; ``limit`` is the problem's time limit in seconds, if it has one.
    """

    label: str
    rounds: int
    seconds: float
    limit: float | None
    share: float
    upper: float | None
    lower: float


@dataclass(frozen=True, slots=True)
class Silence:
    """Nothing has come back for so many ``seconds``; ``left`` tasks are not done."""

    seconds: float
    left: int


@dataclass(frozen=True, slots=True)
class TaskRetried:
    """A task was lost, stuck, or out of memory, and is tried again; ``why`` in one line, ``attempt`` counts from 1."""

    label: str
    kind: str
    why: str
    attempt: int


Event = (
    PlanReady
    | SweepReady
    | PointDone
    | TaskDone
    | LowerBoundImproved
    | UpperBoundImproved
    | RoundDone
    | Silence
    | TaskRetried
)
Listener = Callable[[Event], None]


def ignore(_event: Event) -> None:
    """Listen to nothing."""
