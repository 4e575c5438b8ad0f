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
"""Lines with an entry each in the legend; of more, only colours are named, and no points are marked."""


def bound_plot(lines: Lines, lower: float | None) -> str | None:
    """Bounds; the best lower bound as a line, where the points bound one network."""
    return _page(lines, "bounds", "upper bound", lambda row: row.upper, floor=lower)


def core_time_plot(lines: Lines) -> str | None:
    """What the sub-problems of each point take on one core."""
    return _page(lines, "core-time", "time of one core", lambda row: row.core_seconds, times=True)


def longest_plot(lines: Lines) -> str | None:
    """What the longest sub-problem of each point takes, which no number of workers shortens."""
    return _page(lines, "longest", "longest sub-problem", lambda row: row.critical_seconds, times=True)


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
    handles, labels = _entries(lines)
    columns = 2 if max(map(len, labels)) <= 26 else 1
    figure, axes = new_figure(height=2.65 + 0.19 * -(-(len(labels) + 2) // columns))
    bottom = low / 1.35 if wide else max(0.0, low - 1.8 * pad)
    scale(axes, "y", bottom, high * 1.2 if wide else high + pad, log=wide, times=times)
    broken = [line for line in lines.lines if any(_value(row, value) is None for row in line.rows)]
    for line in lines.lines:
        aside = broken.index(line) - (len(broken) - 1) / 2 if line in broken and len(broken) <= NAMED else 0.0
        _points(axes, line, value, 0.05 * aside, _style(line, marked=len(lines.lines) <= NAMED))
    if floor:
        axes.axhline(floor, color=MUTED, linewidth=1.2, linestyle=(0, (2, 2)))
    places = range(len(lines.values))
    axes.set_xticks(places, [short(str(item), 14) for item in lines.values])
    axes.set_xlim(-0.35, len(places) - 0.65)
    axes.set_xlabel(lines.option.replace("_", " "))
    axes.set_ylabel(label)
    if floor:
        handles.append(Line2D([], [], color=MUTED, linewidth=1.2, linestyle=(0, (2, 2))))
        labels.append("lower bound, attained")
    if broken:
        handles.append(Line2D([], [], color=MUTED, marker="x", linestyle="none"))
        labels.append("no bound")
    legend(figure, handles, labels, columns)
    return figure


def _entries(lines: Lines) -> tuple[list[Line2D], list[str]]:
    """What the legend says of the lines."""
    if len(lines.lines) <= NAMED:
        styles = [_style(line, marked=True) for line in lines.lines]
        return [Line2D([], [], **style) for style in styles], [short(line.label, 40) for line in lines.lines]
    colours = [SERIES[number % len(SERIES)] for number in range(len(lines.colours[:NAMED]))]
    return [Line2D([], [], color=colour) for colour in colours], [short(name, 40) for name in lines.colours[:NAMED]]


def _points(
    axes: Axes, line: Line, value: Callable[[SweepRow], float | None], aside: float, style: dict[str, Any]
) -> None:
    """One line, broken where a point is missing, which is marked at the bottom, a little ``aside`` of others."""
    found = [_value(row, value) for row in line.rows]
    figures = [float("nan") if item is None else item for item in found]
    axes.plot(range(len(figures)), figures, **style, clip_on=False)
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


def _style(line: Line, *, marked: bool) -> dict[str, Any]:
    style: dict[str, Any] = {"color": _colour(line), "linestyle": DASHES[line.mark % len(DASHES)]}
    if not marked:
        return {"color": _colour(line), "linewidth": 0.9, "alpha": 0.7, "marker": ".", "markersize": 3}
    return style | {"marker": MARKS[line.mark % len(MARKS)], "markerfacecolor": PAPER, "markeredgewidth": 1.5}


def _colour(line: Line) -> str:
    return SERIES[line.colour % len(SERIES)]
