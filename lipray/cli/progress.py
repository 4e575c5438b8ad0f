"""Progress on stderr: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from lipray.report.numbers import lower_text, seconds_text, upper_text
from lipray.run.events import (
    Event,
    Listener,
    PlanReady,
    PointDone,
    RoundDone,
    SweepReady,
    TaskDone,
    UpperBoundImproved,
    ignore,
)

EVERY = 5.0
"""Seconds between plain lines."""
BEAT = 60.0
"""Seconds between plain lines about the rounds of one problem."""


@contextmanager
def show_progress(*, quiet: bool) -> Iterator[Listener]:
    """A listener that shows events on stderr while inside; ``quiet`` shows nothing."""
    if quiet:
        yield ignore
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(console)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[bracket]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        yield _Bar(bar)


def bracket_text(event: TaskDone | UpperBoundImproved | RoundDone) -> str:
    """The bracket as it stands."""
    upper = "?" if event.upper is None else upper_text(event.upper)
    return f"[{lower_text(event.lower)}, {upper}]"


def point_text(event: PointDone) -> str:
    """A point of a sweep that has ended."""
    bound = "no bound" if event.bound is None else f"bound {upper_text(event.bound)}"
    return f"point {event.point} {event.state}: {bound} ({event.done}/{event.points} points)"


class _Bar:
    """Events as a progress bar; failures as lines above it."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._place = ""
        self._task: TaskID = bar.add_task("planning", total=None, bracket="")

    def __call__(self, event: Event) -> None:
        if isinstance(event, PlanReady | SweepReady):
            self._bar.update(self._task, description=f"0/{event.tasks} tasks on {event.place}", total=1.0)
            self._place = event.place
        elif isinstance(event, TaskDone):
            done = f"{event.done}/{event.tasks} tasks on {self._place}"
            self._bar.update(self._task, description=done, completed=event.share, bracket=f"\\{bracket_text(event)}")
            if event.failure is not None:
                self._bar.console.print(f"failed: {event.label}: {event.failure}", markup=False, style="yellow")
        elif isinstance(event, RoundDone):
            done = f"{event.label}: round {event.rounds} on {self._place}"
            self._bar.update(self._task, description=done, completed=event.share, bracket=f"\\{bracket_text(event)}")
        elif isinstance(event, UpperBoundImproved):
            self._bar.update(self._task, bracket=f"\\{bracket_text(event)}")
        elif isinstance(event, PointDone):
            self._bar.console.print(point_text(event), markup=False, highlight=False)


@dataclass(slots=True)
class _Lines:
    """Events as lines: the plan, every failure, every few seconds how far it is, and the end."""

    console: Console
    start: float = field(default_factory=time.monotonic)
    last: float = 0.0
    beat: float = field(default_factory=time.monotonic)

    def __call__(self, event: Event) -> None:
        if isinstance(event, PlanReady):
            blocks = len(event.plan.blocks)
            self._line(f"{blocks} block(s), {event.subproblems} sub-problem(s), {event.tasks} task(s) on {event.place}")
        elif isinstance(event, SweepReady):
            self._line(f"{event.points} point(s), {event.tasks} task(s) between them on {event.place}")
        elif isinstance(event, PointDone):
            self._line(point_text(event))
        elif isinstance(event, TaskDone):
            now = time.monotonic()
            if event.failure is not None:
                self._line(f"failed: {event.label}: {event.failure}")
            if now - self.last >= EVERY or event.done == event.tasks:
                self.last = now
                elapsed = now - self.start
                left = elapsed / event.share * (1 - event.share) if event.share > 0.02 else None
                eta = "" if left is None or event.done == event.tasks else f", about {seconds_text(left)} left"
                self._line(f"{event.done}/{event.tasks} tasks, bound {bracket_text(event)}{eta}")
        elif isinstance(event, UpperBoundImproved):
            self._line(f"{event.label}: bound {bracket_text(event)} by {event.way}")
        elif isinstance(event, RoundDone) and time.monotonic() - self.beat >= BEAT:
            self.beat = time.monotonic()
            limit = "" if event.limit is None else f" of at most {seconds_text(event.limit)}"
            self._line(f"{event.label}: {event.rounds} rounds in {seconds_text(event.seconds)}{limit}")

    def _line(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
