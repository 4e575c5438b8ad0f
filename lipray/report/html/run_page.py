"""The report of a run: its bracket, where it comes from, how it came about, and how to check it."""

from __future__ import annotations

from collections import Counter
from typing import Any

from lipray.report.html import commands
from lipray.report.html.common import LISTED, course_plots, standing, timeline
from lipray.report.html.render import Plot, render
from lipray.report.plots.contribution import Part, contribution_plot
from lipray.report.plots.statuses import status_plot
from lipray.report.read_run import RunFacts
from lipray.run.record.records import BlockRecord, ResultRecord, SubproblemRecord

ROWS = 60
"""Sub-problems in the table: those without a certificate, then those that took longest."""


def run_page(facts: RunFacts, table: str | None = None) -> bytes:
    """The page of a run, finished or not.

    Args:
        facts: what its folder tells.
        table: the name of the file beside the page that holds all sub-problems.
    """
    result = facts.result
    return render(
        "run.html",
        **standing(facts.place, facts.manifest, facts.listed, facts.course),
        result=result,
        plan=facts.plan,
        verify=commands.verify(facts.place, facts.manifest),
        plots=_plots(facts),
        timeline=timeline(facts.course),
        ways=[] if result is None else _ways(result),
        reasons={} if facts.plan is None else {block.label: block.reason for block in facts.plan.blocks},
        rows=[] if result is None else _rows(result),
        excess=None if result is None else _excess(result),
        advice=Counter() if result is None else Counter(row.advice for row in result.subproblems if row.advice),
        failures=_failures(facts),
        table=table,
    )


def _plots(facts: RunFacts) -> list[Plot]:
    plots = course_plots(facts.course, facts.listed)
    if facts.result is not None:
        plots += _contributions(facts.result)
    counts = _statuses(facts)
    figure = status_plot(counts)
    if figure is not None:
        caption = (
            "Converged: as tight as the method gives. Every status but fallback and missing has its own certificate."
        )
        plots.append(Plot("Solver status", figure, caption))
    return plots


def _contributions(result: ResultRecord) -> list[Plot]:
    plots = []
    parts = [Part(block.label, block.upper, _product(block)) for block in result.blocks]
    told = f"The factors of {len(parts)} blocks, and their product bounds."
    figure = contribution_plot(parts, "blocks", told)
    if figure is not None:
        many = "The bound of the network is the product of its blocks': lengths add up." if len(parts) > 1 else ""
        caption = f"{many} Pale: the product of the layers' norms.".strip()
        plots.append(Plot("Contribution per block", figure, caption))
    for number, block in enumerate(block for block in result.blocks if len(block.stages) > 1):
        figure = contribution_plot(_stages(block), f"stages-{number}", f"Growth within {block.label}.", factor="growth")
        if figure is not None:
            caption = "By how much the bound of the block's map grows from one of its layers to the next."
            plots.append(Plot(f"Within {block.label}", figure, caption))
    return plots


def _stages(block: BlockRecord) -> list[Part]:
    parts, before = [], 1.0
    for stage in block.stages:
        known = stage.upper is not None and before > 0.0
        parts.append(Part(stage.after, stage.upper / before if known and stage.upper is not None else None))
        before = stage.upper or 0.0
    return parts


def _product(block: BlockRecord) -> float | None:
    return block.closed_forms.get("product", block.alternatives.get("product"))


def _statuses(facts: RunFacts) -> Counter[str]:
    """Sub-problems by status, product bounds aside where there is more than they; of a run under way, those so far."""
    if facts.result is not None:
        rows = facts.result.subproblems
        return Counter(row.status for row in rows if row.method != "product") or Counter(row.status for row in rows)
    return Counter(
        span.status for span in facts.course.spans if span.status and span.kind in ("solve", "rounds", "stored")
    )


def _ways(result: ResultRecord) -> list[str]:
    """Ways to bound a block that are worth a column: those that differ from how some block was bounded."""
    names = {name for block in result.blocks for name in (*block.alternatives, *block.closed_forms)}
    order = {"diagonal": 0, "overlap": 0, "sum": 1, "product": 9}
    kept = [name for name in names if any(block.source != name for block in result.blocks)]
    return sorted(kept, key=lambda name: (order.get(name, 5), name))


def _rows(result: ResultRecord) -> list[SubproblemRecord]:
    return sorted(result.subproblems, key=lambda row: (row.bound is not None, -row.seconds, row.label))[:ROWS]


def _excess(result: ResultRecord) -> float | None:
    """The most that rounding adds to any sub-problem's bound, relatively."""
    return max((row.excess for row in result.subproblems if row.excess is not None), default=None)


def _failures(facts: RunFacts) -> list[dict[str, Any]]:
    """What failed in the end; of a run without a result, what has failed so far."""
    if facts.result is not None:
        found = [(item.label, item.kind, item.why, item.attempts) for item in facts.result.failures]
    else:
        found = [(item.label, item.kind, item.why, item.attempt) for item in facts.course.failures]
    names = ("label", "kind", "why", "attempts")
    kept = [dict(zip(names, item, strict=True)) for item in found[:LISTED]]
    left = len(found) - len(kept)
    return [*kept, dict(zip(names, (f"… and {left} more", "", "", 0), strict=True))] if left else kept
