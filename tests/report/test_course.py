"""The course of a run: seconds of work over all attempts, a bracket that only closes, and what went wrong."""

import pytest

from lipray.report.course import course_of
from lipray.run.record.history import EventLine, History


def course(*lines):
    return course_of(History(tuple(EventLine(**line) for line in lines)))


def ready(time, **more):
    return {"time": time, "event": "plan_ready", "place": "here", **more}


def done(time, seconds=1.0, **more):
    return {"time": time, "event": "task_done", "label": "block1", "seconds": seconds, "began": time - seconds, **more}


def test_time_between_attempts_does_not_count():
    found = course(ready(100.0), done(104.0, 2.0), ready(9000.0), done(9003.0, 3.0))
    assert found.attempts == (0.0, 4.0)
    assert found.length == 7.0
    assert [(span.start, span.end) for span in found.spans] == [(2.0, 4.0), (4.0, 7.0)]


def test_a_clock_that_is_wrong_stays_within_the_attempt():
    found = course(ready(100.0), done(104.0, 50.0), {**done(105.0), "began": 9999.0})
    assert all(0.0 <= span.start <= span.end <= found.length for span in found.spans)


def test_where_a_task_does_not_say_when_it_began_its_end_does():
    (span,) = course(ready(0.0), {**done(10.0, 4.0), "began": 0.0}).spans
    assert (span.start, span.end) == (6.0, 10.0)


def test_the_bracket_only_closes():
    found = course(
        ready(0.0),
        done(1.0, upper=None, lower=0.0),
        done(2.0, upper=9.0, lower=1.0),
        done(3.0, upper=9.0, lower=1.0),
        ready(50.0),
        done(51.0, upper=20.0, lower=0.0),
        done(52.0, upper=8.0, lower=2.0),
    )
    assert [(step.at, step.upper, step.lower) for step in found.steps] == [
        (0.0, None, 0.0),
        (2.0, 9.0, 1.0),
        (5.0, 8.0, 2.0),
    ]


@pytest.mark.parametrize(
    ("label", "more", "kind"),
    [
        ("block1 [0..1] product", {}, "product"),
        ("004 block1 [0..1] product", {}, "product"),
        ("block1/tile3", {}, "solve"),
        ("lower/7", {}, "lower"),
        ("012 lower/7", {}, "lower"),
        ("block1/tile3", {"stored": True}, "stored"),
    ],
)
def test_what_a_task_is(label, more, kind):
    assert course(ready(0.0), done(1.0, **more) | {"label": label}).spans[0].kind == kind


def test_rounds_that_all_workers_share_are_told_apart():
    beat = {"time": 2.0, "event": "round_done", "label": "block1", "rounds": 1, "seconds": 1.0, "upper": 5.0}
    assert course(ready(0.0), beat, done(3.0, 3.0)).spans[0].kind == "rounds"


def test_what_went_wrong_is_listed_and_drawn_nowhere():
    found = course(
        ready(0.0),
        {"time": 1.0, "event": "task_retried", "label": "a", "kind": "Lost", "why": "gone", "attempt": 2},
        {"time": 2.0, "event": "silence", "seconds": 600.0, "left": 3},
        done(3.0, 0.0, failure="OutOfMemory: 8 GiB: too much"),
    )
    assert [(item.kind, item.why, item.attempt) for item in found.retries] == [("Lost", "gone", 2)]
    assert [(item.kind, item.why) for item in found.failures] == [("OutOfMemory", "8 GiB: too much")]
    assert "600 s" in found.silences[0].why
    assert found.spans == ()


def test_no_events_are_no_course():
    assert course_of(History((), 2)).damaged == 2
