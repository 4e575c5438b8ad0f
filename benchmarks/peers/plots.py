"""Bound against time, a small plot per network: every way that has a valid bound, its gap factor over its seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from harness import Row
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lipray.report.plots.canvas import drawing, legend, to_file
from lipray.report.plots.palette import MUTED, PAPER, SERIES
from lipray.report.plots.scales import scale
from peers.derive import shown
from peers.tables import SUMMARY, order

FAMILIES = (
    ("products and LipLT", MUTED, "o", ("SVD product", "LipLT", "lipray, product")),
    ("ECLipsE-Fast", SERIES[1], "^", ("ECLipsE-Fast", "lipray, closed form")),
    ("ECLipsE", SERIES[1], "s", ("ECLipsE",)),
    ("LipSDP by Clarabel", SERIES[3], "P", ("LipSDP, Clarabel",)),
    ("LipSDP by SCS", SERIES[4], "X", ("LipSDP, SCS", "LipSDP, SCS, tight")),
    ("LipSDP by SDPA", SERIES[5], "v", ("LipSDP, SDPA",)),
    ("lipray, whole", SERIES[0], "D", ("lipray, ellipsoid", "lipray, ellipsoid to 1 %", "lipray, auto")),
    ("lipray, on tori", SERIES[2], "D", ("lipray, frequency", "lipray, hybrid")),
    ("lipray, space", SERIES[6], ".", ("lipray, space",)),
)
"""Legend, colour, mark, and the rows (by how their names begin) of every family."""
ACROSS = 3
CEILING = 1e3
"""Gap factors above this are drawn at it."""


def family_of(name: str) -> int:
    """Which family a row belongs to, -1 for none."""
    exact = [place for place, (*_, names) in enumerate(FAMILIES) if name in names]
    if exact:
        return exact[0]
    return next((at for at, (*_, names) in enumerate(FAMILIES) if any(name.startswith(f"{n}, ") for n in names)), -1)


def draw(rows: Mapping[str, Mapping[str, Row]], names: Sequence[str]) -> Figure | None:
    """Small plots of the networks that have something to draw."""
    points = {name: _points(rows[name]) for name in names if name in rows}
    points = {name: found for name, found in points.items() if len(found) > 1}
    if not points:
        return None
    down = -(-len(points) // ACROSS)
    figure = Figure(figsize=(8.4, 2.15 * down + 0.75), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots(down, ACROSS, squeeze=False)
    for place in axes.flat[len(points) :]:
        place.set_visible(False)
    for place, (name, found) in zip(axes.flat, points.items(), strict=False):
        for family, seconds, gap in found:
            _, colour, mark, _ = FAMILIES[family]
            place.plot(
                [seconds],
                [gap],
                marker=mark,
                color=colour,
                markerfacecolor=PAPER,
                markeredgewidth=1.3,
                linestyle="none",
            )
        times, gaps = [item[1] for item in found], [item[2] for item in found]
        scale(place, "x", min(times) / 2.0, max(times) * 2.0, log=True, times=True)
        scale(place, "y", 0.93, max(gaps) * 1.25, log=True)
        place.axhline(1.0, color=MUTED, linewidth=0.9, linestyle=(0, (2, 2)))
        place.set_title(name, loc="left")
    for line in axes[:, 0]:
        line.set_ylabel("bound ÷ attained")
    used = sorted({family for found in points.values() for family, *_ in found})
    handles = [
        Line2D([], [], color=FAMILIES[at][1], marker=FAMILIES[at][2], markerfacecolor=PAPER, linestyle="none")
        for at in used
    ]
    legend(figure, handles, [FAMILIES[at][0] for at in used], 5)
    return figure


def _points(rows: Mapping[str, Row]) -> list[tuple[int, float, float]]:
    found = []
    for name, row in shown(rows).items():
        family = family_of(name)
        if family >= 0 and name in order() and row.get("gap") is not None and row.get("seconds"):
            found.append((family, max(row["seconds"], 1e-3), min(row["gap"], CEILING)))
    return sorted(found)


def save(rows: Mapping[str, Mapping[str, Row]], groups: Mapping[str, Sequence[str]], folder: Path) -> list[str]:
    """Write ``peers.svg`` of the README's networks and ``peers-GROUP.svg`` of each group; names of what was written."""
    written = []
    with drawing():
        mpl.rcParams.update({"font.size": 8.5, "axes.titlesize": 9, "axes.labelsize": 8.5})
        mpl.rcParams.update({"xtick.labelsize": 8, "ytick.labelsize": 8, "legend.fontsize": 8.5})
        for name, networks in {"peers": SUMMARY, **{f"peers-{key}": value for key, value in groups.items()}}.items():
            figure = draw(rows, networks)
            if figure is not None:
                (folder / f"{name}.svg").write_bytes(to_file(figure))
                written.append(name)
    return written
