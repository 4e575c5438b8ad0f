"""What a run tells Ray's metrics."""

import importlib
import sys
from collections import defaultdict
from types import SimpleNamespace
from typing import ClassVar

import pytest

from lipray.run.events import LowerBoundImproved, PlanReady, RoundDone, TaskDone, TaskRetried


class Series:
    """A metric that remembers."""

    known: ClassVar[dict[str, list]] = defaultdict(list)

    def __init__(self, name, *_args, tag_keys=()):
        self.name, self.keys = name, tag_keys

    def set_default_tags(self, tags):
        self.tags = tags

    def _note(self, value, tags=None):
        assert set(self.tags | (tags or {})) == set(self.keys)
        Series.known[self.name].append((value, tags or {}))

    inc = set = observe = _note


@pytest.fixture
def ray_metrics(monkeypatch):
    """The module over series that remember; Ray, which must not be imported before it is started, is not."""
    metrics = SimpleNamespace(Counter=Series, Gauge=Series, Histogram=Series)
    monkeypatch.setitem(sys.modules, "ray.util.metrics", metrics)
    monkeypatch.delitem(sys.modules, "lipray.run.ray.metrics", raising=False)
    yield importlib.import_module("lipray.run.ray.metrics")
    del sys.modules["lipray.run.ray.metrics"]


def test_events_become_series(monkeypatch, ray_metrics):
    monkeypatch.setattr(Series, "known", defaultdict(list))
    heard = []
    metrics = ray_metrics.Metrics("r", heard.append)
    done = {"label": "t", "seconds": 2.0, "done": 1, "tasks": 4, "share": 0.1, "upper": None, "lower": 0.0}
    events = [
        PlanReady(None, 4, 3, "here"),
        TaskDone(**done),
        TaskDone(**done | {"upper": 3.0, "failure": "Stuck: it hung"}),
        TaskDone(**done | {"upper": float("inf"), "stored": True}),
        LowerBoundImproved(1.5, "t"),
        TaskRetried("t", "Stuck", "it hung", 2),
        RoundDone("t", 7, 1.0, None, 0.5, 2.5, 1.5),
    ]
    for event in events:
        metrics(event)
    assert heard == events
    assert Series.known["lipray_tasks_planned"] == [(4, {})]
    assert [tags["state"] for _, tags in Series.known["lipray_tasks_total"]] == ["done", "failed", "stored"]
    assert Series.known["lipray_task_seconds"] == [(2.0, {})]
    assert Series.known["lipray_retries_total"] == [(1, {"kind": "Stuck"})]
    assert Series.known["lipray_rounds"] == [(7, {})]
    assert [value for value, _ in Series.known["lipray_upper_bound"]] == [3.0, 2.5]
    assert Series.known["lipray_lower_bound"][-1] == (1.5, {})


def test_without_ray_nothing_is_exported():
    from lipray.run.serial import SerialExecutor
    from lipray.run.session import measured

    assert measured(SerialExecutor(1), print, "r") is print
