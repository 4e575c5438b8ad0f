"""Plot: how many sub-problems ended which way."""

from __future__ import annotations

from collections.abc import Mapping

from lipray.report.labels import short
from lipray.report.plots.canvas import WIDTH, drawing, new_figure, to_page
from lipray.report.plots.palette import INK, QUIET, SERIES

COLOURS = {
    "converged": SERIES[2],
    "closed_form": SERIES[5],
    "iteration_limit": SERIES[1],
    "time_limit": SERIES[1],
    "stalled": SERIES[6],
    "fallback": SERIES[4],
    "missing": SERIES[4],
}
"""From what is as tight as the method gives to what has no certificate."""


def status_plot(counts: Mapping[str, int]) -> str | None:
    """A bar per status, in the order of ``COLOURS``; ``None`` where there is nothing to count."""
    rows = [
        (status, counts[status]) for status in (*COLOURS, *sorted(set(counts) - set(COLOURS))) if counts.get(status)
    ]
    if not rows:
        return None
    most = max(count for _, count in rows)
    with drawing():
        figure, axes = new_figure(WIDTH, 0.35 + 0.34 * len(rows))
        for row, (status, count) in enumerate(rows):
            axes.barh(row, count, height=0.6, color=COLOURS.get(status, QUIET), linewidth=0)
            axes.annotate(f"{count:,}", (count, row), (4, 0), textcoords="offset points", va="center", ha="left")
        axes.set_yticks(range(len(rows)), [short(status.replace("_", " ")) for status, _ in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.set_xlim(0.0, most * 1.15)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        told = ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in rows)
        return to_page(figure, "statuses", f"Sub-problems by status: {told}.")
