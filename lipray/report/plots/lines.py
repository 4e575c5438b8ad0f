"""Plot: a figure of a sweep's points against one of its options."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from matplotlib.lines import Line2D

from lipray.report.labels import short
from lipray.report.plots.canvas import drawing, legend, new_figure, to_page
from lipray.report.plots.palette import MUTED, PAPER, SERIES
from lipray.report.plots.scales import drawable, is_wide, scale
from lipray.report.series import Line, Lines
from lipray.run.record.sweep_records import SweepRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKS = "osD^vPX*"
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
NAMED = 14
"""Lines with an entry in the legend."""


def bound_plot(lines: Lines, lower: float | None) -> str | None:
    """Bounds; the best lower bound as a line, where the points bound one network."""
    return _page(lines, "bounds", "upper bound", lambda row: row.upper, floor=lower)


def core_time_plot(lines: Lines) -> str | None:
    """What the sub-problems of each point take on one core."""
    return _page(lines, "core-time", "time of one core", lambda row: row.core_seconds, times=True)


def longest_plot(lines: Lines) -> str | None:
    """What the longest sub-problem of each point takes, which no number of workers shortens."""
    return _page(lines, "longest", "time of the longest sub-problem", lambda row: row.critical_seconds, times=True)


def bound_figure(lines: Lines, lower: float | None) -> Figure | None:
    """The plot of bounds as a figure, to be drawn and written in the house's style."""
    return _draw(lines, "upper bound", lambda row: row.upper, lower)


def _page(
    lines: Lines,
    name: str,
    label: str,
    value: Callable[[SweepRow], float | None],
    *,
    times: bool = False,
    floor: float | None = None,
) -> str | None:
    with drawing():
        figure = _draw(lines, label, value, floor, times=times)
        along = lines.option.replace("_", " ")
        return (
            None
            if figure is None
            else to_page(figure, name, f"{label.capitalize()} against {along}, a line per choice.")
        )


def _draw(
    lines: Lines,
    label: str,
    value: Callable[[SweepRow], float | None],
    floor: float | None,
    *,
    times: bool = False,
) -> Figure | None:
    figures = [found for line in lines.lines for row in line.rows if (found := _value(row, value)) is not None]
    if not figures:
        return None
    floor = floor if drawable(floor) else None
    every = [*figures, floor] if floor else figures
    wide = is_wide(every)
    low, high = min(every), max(every)
    pad = (high - low) * 0.08 or 0.05 * high or 1.0
    entries = min(len(lines.lines), NAMED) + 2
    figure, axes = new_figure(height=3.0 + 0.19 * ((entries + 1) // 2))
    bottom = low / 1.35 if wide else max(0.0, low - 1.8 * pad)
    scale(axes, "y", bottom, high * 1.2 if wide else high + pad, log=wide, times=times)
    broken = [line for line in lines.lines if any(_value(row, value) is None for row in line.rows)]
    for line in lines.lines:
        aside = broken.index(line) - (len(broken) - 1) / 2 if line in broken and len(broken) <= NAMED else 0.0
        _points(axes, line, value, 0.05 * aside)
    if floor:
        axes.axhline(floor, color=MUTED, linewidth=1.2, linestyle=(0, (2, 2)))
    places = range(len(lines.values))
    axes.set_xticks(places, [short(str(item), 14) for item in lines.values])
    axes.set_xlim(-0.35, len(places) - 0.65)
    axes.set_xlabel(lines.option.replace("_", " "))
    axes.set_ylabel(label)
    handles = [_handle(line) for line in lines.lines[:NAMED]]
    labels = [short(line.label, 40) for line in lines.lines[:NAMED]]
    if len(lines.lines) > NAMED:
        handles.append(Line2D([], [], linestyle="none"))
        labels.append(f"and {len(lines.lines) - NAMED} more")
    if floor:
        handles.append(Line2D([], [], color=MUTED, linewidth=1.2, linestyle=(0, (2, 2))))
        labels.append("lower bound, attained")
    if broken:
        handles.append(Line2D([], [], color=MUTED, marker="x", linestyle="none"))
        labels.append("no bound")
    legend(figure, handles, labels, columns=2 if max(map(len, labels)) <= 26 else 1)
    return figure


def _points(axes: Axes, line: Line, value: Callable[[SweepRow], float | None], aside: float) -> None:
    """One line, broken where a point is missing, which is marked at the bottom, a little ``aside`` of others."""
    found = [_value(row, value) for row in line.rows]
    figures = [float("nan") if item is None else item for item in found]
    axes.plot(range(len(figures)), figures, **_style(line), clip_on=False)
    gaps = [place for place, item in enumerate(found) if item is None]
    axes.plot(
        [place + aside for place in gaps],
        [0.025] * len(gaps),
        linestyle="none",
        marker="x",
        markersize=5,
        color=_colour(line),
        transform=axes.get_xaxis_transform(),
    )


def _value(row: SweepRow | None, value: Callable[[SweepRow], float | None]) -> float | None:
    found = None if row is None or row.upper is None else value(row)
    return found if drawable(found) else None


def _style(line: Line) -> dict[str, Any]:
    return {
        "color": _colour(line),
        "marker": MARKS[line.mark % len(MARKS)],
        "linestyle": DASHES[line.mark % len(DASHES)],
        "markerfacecolor": PAPER,
        "markeredgewidth": 1.5,
    }


def _colour(line: Line) -> str:
    return SERIES[line.colour % len(SERIES)]


def _handle(line: Line) -> Line2D:
    return Line2D([], [], **_style(line))
