"""The course of a run from its events: who did what when, how the bracket closed, and what went wrong on the way.

Times are seconds of work: what lies between two attempts, when no driver was there, is left out.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from lipray.run.record.history import EventLine, History

KINDS = ("product", "solve", "rounds", "lower", "stored")
"""What a task is: a block's product bound, a sub-problem, one whose rounds all workers shared, a bundle of starts of
the lower bound's search, or an answer from the store that was proven again."""

_READY = frozenset({"plan_ready", "sweep_ready"})


@dataclass(frozen=True, slots=True)
class Span:
    """A task that was done, from ``start`` to ``end``, in the process ``where``: empty in the driver's."""

    label: str
    kind: str
    status: str
    where: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Step:
    """From ``at`` on, the bracket of the whole network; ``upper`` is ``None`` until there is one."""

    at: float
    upper: float | None
    lower: float


@dataclass(frozen=True, slots=True)
class Incident:
    """Something that did not go as planned: a task that was tried again or failed, or nothing heard for a long time."""

    at: float
    label: str
    kind: str
    why: str
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class Course:
    """A run from its first plan to its last event, ``length`` seconds of work later.

    ``attempts`` are when (in seconds of work) each process began to drive it; ``places`` where tasks ran, each once.
    """

    spans: tuple[Span, ...] = ()
    steps: tuple[Step, ...] = ()
    retries: tuple[Incident, ...] = ()
    failures: tuple[Incident, ...] = ()
    silences: tuple[Incident, ...] = ()
    attempts: tuple[float, ...] = ()
    places: tuple[str, ...] = ()
    length: float = 0.0
    stored: int = 0
    damaged: int = 0


def course_of(history: History) -> Course:
    """What the events come to."""
    events = history.events
    if not events:
        return Course(damaged=history.damaged)
    clock = _Clock(events)
    rounds = {event.label for event in events if event.event == "round_done"}
    done = [event for event in events if event.event == "task_done"]
    return Course(
        spans=tuple(_span(event, clock, rounds) for event in done if event.seconds > 0.0 and not event.failure),
        steps=_steps(events, clock),
        retries=tuple(
            Incident(clock.at(event.time), event.label, event.kind, event.why, event.attempt)
            for event in events
            if event.event == "task_retried"
        ),
        failures=tuple(
            Incident(clock.at(event.time), event.label, *_kind_and_why(event.failure))
            for event in done
            if event.failure
        ),
        silences=tuple(
            Incident(clock.at(event.time), "", "silence", f"nothing for {event.seconds:.0f} s, {event.left} tasks left")
            for event in events
            if event.event == "silence"
        ),
        attempts=clock.attempts,
        places=tuple(dict.fromkeys(event.place for event in events if event.place)),
        length=clock.length,
        stored=sum(event.stored for event in done),
        damaged=history.damaged,
    )


class _Clock:
    """Seconds of work at a time since 1970: attempts stand one after the other, without what lies between them."""

    def __init__(self, events: Sequence[EventLine]) -> None:
        starts = [0, *(index for index, event in enumerate(events) if index and event.event in _READY), len(events)]
        self._begins: list[float] = []
        self._ends: list[float] = []
        self._offsets: list[float] = []
        spent = 0.0
        for first, after in pairwise(starts):
            times = [event.time for event in events[first:after]]
            self._begins.append(times[0])
            self._ends.append(max(times))
            self._offsets.append(spent)
            spent += self._ends[-1] - self._begins[-1]
        self.length = spent
        self.attempts = tuple(self._offsets)

    def at(self, time: float, attempt: int | None = None) -> float:
        """Seconds of work at a time, within the bounds of its attempt."""
        number = self.attempt(time) if attempt is None else attempt
        return self._offsets[number] + min(max(time, self._begins[number]), self._ends[number]) - self._begins[number]

    def attempt(self, time: float) -> int:
        """The attempt that a time belongs to."""
        return max(0, bisect_right(self._begins, time) - 1)


def _span(event: EventLine, clock: _Clock, rounds: set[str]) -> Span:
    attempt = clock.attempt(event.time)
    began = event.began or event.time - event.seconds
    start = clock.at(began, attempt)
    kind = "stored" if event.stored else "rounds" if event.label in rounds else _kind(event.label)
    return Span(
        event.label, kind, event.status, event.where, start, max(start, clock.at(began + event.seconds, attempt))
    )


def _kind(label: str) -> str:
    """What a task is by its label; in a sweep the point's name stands before it."""
    if label.endswith(" product"):
        return "product"
    return "lower" if label.rpartition(" ")[2].startswith("lower/") else "solve"


def _steps(events: Sequence[EventLine], clock: _Clock) -> tuple[Step, ...]:
    """Changes of the bracket. A valid bound stays one: what an attempt had, the next one has from its beginning on."""
    steps: list[Step] = []
    upper: float | None = None
    lower = 0.0
    for event in events:
        if event.upper is not None:
            upper = event.upper if upper is None else min(upper, event.upper)
        if event.lower is not None:
            lower = max(lower, event.lower)
        step = Step(clock.at(event.time), upper, lower)
        if not steps or (step.upper, step.lower) != (steps[-1].upper, steps[-1].lower):
            steps.append(step)
    return tuple(steps)


def _kind_and_why(failure: str) -> tuple[str, str]:
    kind, _, why = failure.partition(": ")
    return kind, why
