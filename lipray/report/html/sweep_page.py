"""The report of a sweep: the table of its points, what an option changes, and what a bound costs."""

from __future__ import annotations

from collections import Counter

from lipray.report.html.common import course_plots, standing, timeline
from lipray.report.html.render import Plot, render
from lipray.report.plots.lines import bound_plot, core_time_plot, longest_plot
from lipray.report.plots.pareto import pareto_plot
from lipray.report.plots.statuses import status_plot
from lipray.report.read_sweep import SweepFacts
from lipray.report.series import lines_of
from lipray.run.record.sweep_records import SweepRecord, comparable

FAILURES = 50


def sweep_page(facts: SweepFacts, links: dict[str, str], table: str | None = None) -> bytes:
    """The page of a sweep, finished or not.

    Args:
        facts: what its folder tells.
        links: by point, where the table leads to.
        table: the name of the file beside the page that holds the table.
    """
    record = facts.record
    alike = comparable(record)
    known = [row.upper for row in record.rows if row.upper is not None]
    return render(
        "sweep.html",
        **standing(facts.place, facts.manifest, facts.listed, facts.course),
        record=record,
        final=facts.final,
        alike=alike,
        best=min(known, default=None) if alike else None,
        lower=_lower(record),
        alone=sum(row.core_seconds for row in record.rows),
        states=Counter(row.state for row in record.rows),
        reasons=_reasons(record),
        plots=_plots(facts),
        timeline=timeline(facts.course),
        failures=_failures(facts),
        links=links,
        table=table,
    )


def _plots(facts: SweepFacts) -> list[Plot]:
    record, plots = facts.record, []
    lower = _lower(record)
    lines = lines_of(record.axes, record.rows)
    if lines is not None:
        against = f"against {lines.option.replace('_', ' ')}"
        gaps = "Crosses at the bottom: no bound; the table says why."
        for title, figure, caption in (
            (f"Bound {against}", bound_plot(lines, lower), gaps),
            (f"Time {against}", core_time_plot(lines), "All sub-problems of a point on one core, as if it were alone."),
            (f"Longest sub-problem {against}", longest_plot(lines), "What no number of workers shortens."),
        ):
            if figure is not None:
                plots.append(Plot(title, figure, caption))
    pareto = pareto_plot(record, lower) if comparable(record) else None
    if pareto is not None:
        plots.append(
            Plot(
                "Bound against core-seconds", pareto, "Filled: no other point is better in both. Named as in the table."
            )
        )
    plots += course_plots(facts.course, facts.listed)
    counts = _statuses(facts)
    statuses = status_plot(counts)
    if statuses is not None:
        plots.append(Plot("Solver status", statuses, "Distinct sub-problems of all points, product bounds aside."))
    return plots


def _lower(record: SweepRecord) -> float | None:
    """The best lower bound, where all points bound one network."""
    found = [row.lower for row in record.rows if row.lower]
    return max(found) if found and comparable(record) else None


def _statuses(facts: SweepFacts) -> Counter[str]:
    rows = {row.key: row for result in facts.results.values() for row in result.subproblems if row.method != "product"}
    return Counter(row.status for row in rows.values())


def _reasons(record: SweepRecord) -> dict[tuple[str, str], list[str]]:
    """Why points have no bound, and which."""
    told: dict[tuple[str, str], list[str]] = {}
    for row in record.rows:
        if row.why:
            told.setdefault((row.state, row.why), []).append(row.point)
    return told


def _failures(facts: SweepFacts) -> list[tuple[str, str, str, str]]:
    """What failed in which point."""
    found = [
        (point, item.label, item.kind, item.why)
        for point, result in sorted(facts.results.items())
        for item in result.failures
    ]
    left = len(found) - FAILURES
    return [*found[:FAILURES], ("", f"… and {left} more", "", "")] if left > 0 else found
