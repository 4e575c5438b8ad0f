"""Plot: who worked on what, lane by lane."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from matplotlib.patches import Patch, PathPatch
from matplotlib.path import Path

from lipray.report.labels import short
from lipray.report.lanes import Lane
from lipray.report.numbers import seconds_text
from lipray.report.plots.canvas import drawing, legend, new_figure, to_page
from lipray.report.plots.palette import INK, MUTED, PAPER, QUIET, SERIES
from lipray.report.plots.scales import scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, TALLEST = 12.0, 10.0
"""Inches: as wide as two plots side by side, and as tall as a page lets one see at once."""
BARS = 12_000
"""Bars of all lanes together, beyond which a report would grow heavy."""
NAMED = 24
"""Lanes with a name each; of more, their nodes are named."""

COLOURS = {
    "solve": (SERIES[0], "sub-problem"),
    "rounds": (SERIES[3], "rounds shared by all workers"),
    "lower": (SERIES[2], "search for the lower bound"),
    "product": (SERIES[1], "product bound"),
    "stored": (QUIET, "from the store, proven again"),
}


def resolution_of(length: float, lanes: int) -> float:
    """Seconds that are too short to be told apart in a timeline of so many lanes."""
    return length * max(1 / 1800, lanes / BARS) if length > 0.0 else 0.0


def timeline_plot(lanes: Sequence[Lane], length: float, attempts: tuple[float, ...] = ()) -> str | None:
    """A lane per process, a bar per task, coloured by what was done; ``None`` where nothing was.

    Args:
        lanes: with bars no shorter than ``resolution_of`` allows for.
        length: seconds of work.
        attempts: when each process that drove the run began.
    """
    if not lanes:
        return None
    pitch = min(0.3, (TALLEST - 1.3) / len(lanes))
    with drawing():
        figure, axes = new_figure(WIDTH, 1.3 + pitch * len(lanes))
        thin = resolution_of(length, len(lanes))
        kinds = [kind for kind in COLOURS if any(bar.kind == kind for lane in lanes for bar in lane.bars)]
        for kind in kinds:
            _bars(axes, lanes, kind, thin)
        for begin in attempts[1:]:
            axes.axvline(begin, color=MUTED, linewidth=1.0, linestyle=(0, (2, 3)))
        _names(axes, lanes)
        scale(axes, "x", 0.0, (length or 1.0) * 1.002, log=False, times=True, most=9)
        axes.set_xlabel("time of work")
        handles = [Patch(color=COLOURS[kind][0]) for kind in kinds]
        legend(figure, handles, [COLOURS[kind][1] for kind in kinds], columns=len(kinds))
        tasks = sum(bar.tasks for lane in lanes for bar in lane.bars)
        return to_page(figure, "timeline", f"{tasks} tasks in {len(lanes)} lanes over {seconds_text(length)}.")


def _bars(axes: Axes, lanes: Sequence[Lane], kind: str, thin: float) -> None:
    """All bars of a kind as two shapes, which keeps the figure small: the wide ones have edges, the thin ones none."""
    height = 0.36 if len(lanes) <= NAMED else 0.44
    for wide in (False, True):
        corners: list[tuple[float, float]] = []
        for row, lane in enumerate(lanes):
            for bar in lane.bars:
                if bar.kind == kind and (bar.end - bar.start >= 3 * thin) == wide:
                    end = max(bar.end, bar.start + thin)
                    corners += [(bar.start, row - height), (end, row - height), (end, row + height)]
                    corners += [(bar.start, row + height), (bar.start, row - height)]
        if corners:
            codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY] * (len(corners) // 5)
            edge = {"edgecolor": PAPER, "linewidth": 0.5 if len(lanes) <= NAMED else 0.2}
            style = edge if wide else {"linewidth": 0.0}
            axes.add_patch(PathPatch(Path(corners, codes), facecolor=COLOURS[kind][0], **style))


def _names(axes: Axes, lanes: Sequence[Lane]) -> None:
    """Names of lanes, or where there are many of the nodes they are on."""
    alone = len({lane.node for lane in lanes}) == 1
    if len(lanes) <= NAMED:
        rows: list[float] = list(range(len(lanes)))
        names = [_name(lane, alone=alone) for lane in lanes]
    else:
        rows, names, first = [], [], 0
        for node, group in groupby(lanes, key=lambda lane: lane.node):
            count = len(list(group))
            if first:
                axes.axhline(first - 0.5, color=MUTED, linewidth=0.4)
            rows.append(first + (count - 1) / 2)
            names.append(
                f"{short(node or 'driver', 24)}, {count} workers" if count > 1 else short(node or "driver", 24)
            )
            first += count
        every = -(-len(rows) // NAMED)
        rows, names = rows[::every], names[::every]
    axes.set_yticks(rows, names)
    axes.set_ylim(len(lanes) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0, labelcolor=INK)


def _name(lane: Lane, *, alone: bool) -> str:
    if not lane.node:
        return "driver"
    return f"worker {lane.number}" if alone else f"{short(lane.node, 20)} #{lane.number}"
