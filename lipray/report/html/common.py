"""What the pages of runs and sweeps have in common: how it stands, the course of the work, and where it was done."""

from __future__ import annotations

from typing import Any

from lipray.report.course import Course
from lipray.report.html import commands
from lipray.report.html.render import Plot
from lipray.report.lanes import Lane, lanes_of
from lipray.report.plots.bracket import bracket_plot
from lipray.report.plots.timeline import resolution_of, timeline_plot
from lipray.run.record.listing import ListedRun
from lipray.run.record.records import ManifestRecord

STATES = {
    "finished": ("good", ""),
    "incomplete": ("warn", "The bounds are valid, but product bounds stand in for what failed."),
    "stopped": ("warn", "The bounds are valid, and the best there were when it ended."),
    "running": ("live", "The bounds are valid, and the best so far."),
    "lost": ("bad", "The bounds are valid, and the best that were written down."),
    "failed": ("bad", ""),
}
"""By state, its tone and what it means for the bounds."""

LISTED = 50
"""Lines of a list of what went wrong."""
LONGEST = 12
"""Tasks in the table of those that took longest."""


def standing(place: str, manifest: ManifestRecord, listed: ListedRun, course: Course) -> dict[str, Any]:
    """Values that every page has."""
    tone, meaning = STATES.get(listed.state, ("warn", ""))
    return {
        "place": place,
        "manifest": manifest,
        "listed": listed,
        "course": course,
        "tone": tone,
        "meaning": meaning,
        "called": commands.called(manifest),
        "resume": commands.resume(place, manifest),
        "options": commands.options(manifest),
        "longest": sorted(course.spans, key=lambda span: (span.start - span.end, span.label))[:LONGEST],
        "shown": LISTED,
    }


def course_plots(course: Course, listed: ListedRun) -> list[Plot]:
    """How the bracket closed, where there is anything to see; of a run under way up to when it was last heard of."""
    length = max(course.length, listed.seconds) if listed.state in ("running", "lost") else course.length
    figure = bracket_plot(course.steps, length, course.attempts)
    if figure is None:
        return []
    caption = "Valid at every moment: what is not solved yet has its product bound."
    if len(course.attempts) > 1:
        caption += " Dotted: the run was gone on with."
    return [Plot("Bound against time", figure, caption)]


def timeline(course: Course) -> Plot | None:
    """Who did what when, and how much of their time the workers were busy."""
    lanes = lanes_of(course.spans, resolution_of(course.length, _workers(course)))
    figure = timeline_plot(lanes, course.length, course.attempts)
    if figure is None:
        return None
    return Plot("Task timeline", figure, _busy(lanes, course))


def _workers(course: Course) -> int:
    return len({span.where for span in course.spans})


def _busy(lanes: tuple[Lane, ...], course: Course) -> str:
    tasks = "one task" if len(course.spans) == 1 else f"{len(course.spans):,} tasks"
    if course.stored:
        tasks += f", {course.stored:,} more answers from the store"
    share = sum(lane.busy for lane in lanes) / (len(lanes) * course.length) if course.length else 0.0
    lane = "one lane" if len(lanes) == 1 else f"{len(lanes):,} lanes, a process each"
    return f"{tasks[:1].upper()}{tasks[1:]}, in {lane}; busy {min(share, 1.0):.0%} of the time."
