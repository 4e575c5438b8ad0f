"""A run's figures for Ray's dashboard and Prometheus; where no agent exports them they go nowhere.

Series are tagged by run, and counters by what became of a task, never by the task: a label per sub-problem would be a
series per sub-problem.
"""

from __future__ import annotations

import math

from ray.util.metrics import Counter, Gauge, Histogram

from lipray.run.events import (
    Event,
    Listener,
    LowerBoundImproved,
    PlanReady,
    RoundDone,
    SweepReady,
    TaskDone,
    TaskRetried,
    UpperBoundImproved,
)

BOUNDARIES = [0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0]
"""Seconds that the histogram of tasks tells apart."""


class Metrics:
    """A listener that counts, and hands on.

    ``lipray_tasks_total`` by ``state`` (done, failed, stored), ``lipray_tasks_planned``, ``lipray_retries_total`` by
    ``kind``, ``lipray_task_seconds``, ``lipray_rounds``, ``lipray_upper_bound`` and ``lipray_lower_bound``.
    """

    def __init__(self, run: str, notify: Listener) -> None:
        self._notify = notify
        tags = {"run": run}
        self._tasks = Counter("lipray_tasks_total", "Tasks ended", tag_keys=("run", "state"))
        self._retries = Counter("lipray_retries_total", "Tasks tried again", tag_keys=("run", "kind"))
        self._seconds = Histogram("lipray_task_seconds", "Seconds of a task", BOUNDARIES, tag_keys=("run",))
        self._planned = Gauge("lipray_tasks_planned", "Tasks of the plan", tag_keys=("run",))
        self._rounds = Gauge("lipray_rounds", "Rounds of the problem that is coordinated now", tag_keys=("run",))
        self._upper = Gauge("lipray_upper_bound", "Certified upper bound so far", tag_keys=("run",))
        self._lower = Gauge("lipray_lower_bound", "Attained lower bound so far", tag_keys=("run",))
        for metric in (
            self._tasks,
            self._retries,
            self._seconds,
            self._planned,
            self._rounds,
            self._upper,
            self._lower,
        ):
            metric.set_default_tags(tags)

    def __call__(self, event: Event) -> None:
        """Count an event and hand it on."""
        if isinstance(event, PlanReady | SweepReady):
            self._planned.set(event.tasks)
        elif isinstance(event, TaskDone):
            state = "failed" if event.failure is not None else "stored" if event.stored else "done"
            self._tasks.inc(1, tags={"state": state})
            if state == "done":
                self._seconds.observe(event.seconds)
        elif isinstance(event, TaskRetried):
            self._retries.inc(1, tags={"kind": event.kind})
        elif isinstance(event, RoundDone):
            self._rounds.set(event.rounds)
        if isinstance(event, TaskDone | RoundDone | UpperBoundImproved):
            self._bounds(event.upper, event.lower)
        elif isinstance(event, LowerBoundImproved):
            self._bounds(None, event.lower)
        self._notify(event)

    def _bounds(self, upper: float | None, lower: float) -> None:
        if upper is not None and math.isfinite(upper):
            self._upper.set(upper)
        self._lower.set(lower)
