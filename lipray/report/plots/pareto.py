"""Plot: what a bound costs. Points below and to the left are better; the front is what nothing else beats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.lines import Line2D

from lipray.report.labels import short
from lipray.report.plots.canvas import drawing, legend, new_figure, to_page
from lipray.report.plots.palette import INK, MUTED, PAPER, SERIES
from lipray.report.plots.scales import drawable, is_wide, scale
from lipray.report.series import name_of, pareto_front
from lipray.run.record.records import Swept
from lipray.run.record.sweep_records import SweepRecord, SweepRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEAST = 1e-3
"""Seconds that stand for less, on a logarithmic axis."""
APART = 0.07
"""Of the plot's width or height, between two points that are both named."""
_TOGETHER = 3


def pareto_plot(record: SweepRecord, lower: float | None) -> str | None:
    """Bound against core-seconds, a mark per point, the front as a line with its points' names.

    Args:
        record: of points that bound one network.
        lower: the best lower bound, drawn as a line.

    Returns:
        The figure; ``None`` where no point has a bound.
    """
    rows = [row for row in record.rows if drawable(row.upper) and drawable(row.core_seconds)]
    if not rows:
        return None
    front = pareto_front(rows)
    lower = lower if drawable(lower) else None
    first = next((name for name, values in record.axes.items() if len(values) > 1), None)
    kinds: tuple[Swept, ...] = record.axes[first] if first is not None else ()
    with drawing():
        figure, axes = new_figure(height=3.6)
        log = _frame(axes, rows, lower)
        if lower:
            axes.axhline(lower, color=MUTED, linewidth=1.2, linestyle=(0, (2, 2)))
        axes.step(*_along(front, axes.get_xlim()[1]), where="post", color=INK, linewidth=1.2)
        on_front = {(_cost(row), row.upper) for row in front}
        for row in sorted(rows, key=lambda row: (_cost(row), row.upper) in on_front):
            colour = SERIES[kinds.index(row.swept[first]) % len(SERIES)] if first is not None else SERIES[0]
            face = colour if (_cost(row), row.upper) in on_front else PAPER
            axes.plot(
                _cost(row),
                row.upper or 0.0,
                "o",
                color=colour,
                markerfacecolor=face,
                markeredgewidth=1.5,
                clip_on=False,
            )
        _names(axes, front, rows, log=log)
        axes.set_xlabel("time of one core, logarithmic")
        axes.set_ylabel("upper bound")
        handles = [
            Line2D([], [], marker="o", linestyle="none", color=SERIES[n % len(SERIES)]) for n in range(len(kinds))
        ]
        labels = [short(name_of(first or "", kind), 26) for kind in kinds]
        handles.append(Line2D([], [], color=INK, linewidth=1.2))
        labels.append("Pareto front")
        if lower:
            handles.append(Line2D([], [], color=MUTED, linewidth=1.2, linestyle=(0, (2, 2))))
            labels.append("lower bound, attained")
        legend(figure, handles, labels)
        return to_page(
            figure, "pareto", f"Bound against core-seconds; {len(front)} of {len(rows)} points are on the front."
        )


def _cost(row: SweepRow) -> float:
    return max(row.core_seconds, LEAST)


def _frame(axes: Axes, rows: Sequence[SweepRow], lower: float | None) -> bool:
    """Axes with room for names to the left of points and below; whether the bounds' is logarithmic."""
    costs = [_cost(row) for row in rows]
    span = math.log(max(costs) / min(costs)) or 1.0
    scale(
        axes,
        "x",
        min(costs) / math.exp(0.2 * span),
        max(costs) * math.exp(0.08 * span),
        log=True,
        times=True,
    )
    bounds = [row.upper for row in rows if row.upper is not None] + ([lower] if lower else [])
    wide = is_wide(bounds)
    low, high = min(bounds), max(bounds)
    pad = (high - low) * 0.1 or 0.05 * high or 1.0
    scale(axes, "y", low / 1.4 if wide else max(0.0, low - pad), high * 1.2 if wide else high + pad, log=wide)
    return wide


def _along(front: Sequence[SweepRow], end: float) -> tuple[list[float], list[float]]:
    bounds = [row.upper or 0.0 for row in front]
    return [*(_cost(row) for row in front), end], [*bounds, bounds[-1]]


def _names(axes: Axes, front: Sequence[SweepRow], rows: Sequence[SweepRow], *, log: bool) -> None:
    """Names below and to the left, where a front has nothing; of points too close to each other, the first."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    named: list[tuple[float, float]] = []
    for row in front:
        cost, bound = _cost(row), row.upper or 0.0
        across = math.log(cost / left) / math.log(right / left)
        up = math.log(bound / bottom) / math.log(top / bottom) if log else (bound - bottom) / (top - bottom)
        if any(abs(across - x) < 2 * APART and abs(up - y) < APART for x, y in named):
            continue
        named.append((across, up))
        same = [other.point for other in rows if (_cost(other), other.upper) == (cost, row.upper)]
        text = ", ".join(same[:_TOGETHER]) + (" …" if len(same) > _TOGETHER else "")
        axes.annotate(
            text,
            (cost, bound),
            (-5, -5),
            textcoords="offset points",
            ha="right",
            va="top",
            fontsize=9.5,
            bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.8},
        )
