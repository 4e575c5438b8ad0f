"""A figure to draw on, and what becomes of it: SVG that stands in a page, or in a file of its own.

In a page colours are custom properties, so that they follow the page from light to dark; text is text, in the page's
font. Equal figures give equal bytes.
"""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from lipray.report.labels import plain
from lipray.report.plots.palette import INK, LIGHT, MUTED, PAPER, RULE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 5.5
"""Inches of a plot that shares a line with another: small enough that its text can be read on a phone."""

_SVG = "http://www.w3.org/2000/svg"
_LINK = "{http://www.w3.org/1999/xlink}href"
_STYLE: dict[Any, object] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "lipray",
    "text.parse_math": False,
    "font.family": ["DejaVu Sans"],
    "font.size": 10.5,
    "axes.labelsize": 10.5,
    "axes.titlesize": 10.5,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "figure.facecolor": "none",
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
    "path.simplify": False,
}
_NAMES = {colour: name for name, colour in LIGHT.items()}
_COLOUR = re.compile("|".join(_NAMES))
_LONG = re.compile(r"(-?\d+\.\d{2})\d+")
_REFERENCE = re.compile(r"#([\w-]+)")
# Versions of matplotlib differ: the size in a shorthand with the family, or both apart.
_FONT = re.compile(r"font: (?:[^;]*? )?([\d.]+px) [^;]*|font-family: [^;]*;? ?")

ET.register_namespace("", _SVG)


@contextmanager
def drawing() -> Iterator[None]:
    """While inside, figures are made and written in the house's style, whatever the user's own."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield


def new_figure(width: float = WIDTH, height: float = 3.2) -> tuple[Figure, Axes]:
    """A figure of one plot, in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot()


def to_page(figure: Figure, name: str, told: str) -> str:
    """The figure as an element of a page.

    Args:
        figure: what was drawn.
        name: different from those of the page's other figures.
        told: what a reader hears who does not see it.
    """
    root = ET.fromstring(_written(figure))  # noqa: S314 - written by matplotlib a moment ago
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)
    used = {found for node in root.iter() for key, value in node.items() for found in _targets(key, value)}
    for node in root.iter():
        _settle(node, name, used)
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.set("role", "img")
    root.set("aria-label", plain(told))
    return ET.tostring(root, encoding="unicode")


def to_file(figure: Figure) -> bytes:
    """The figure as a file of its own, on the light paper, with its letters drawn: who shows it may lack the font."""
    figure.set_facecolor(PAPER)
    with mpl.rc_context({"svg.fonttype": "path"}):
        return "".join(f"{line.rstrip()}\n" for line in _written(figure).splitlines()).encode()


def legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str], columns: int = 2) -> None:
    """A legend below the plot, where it covers nothing."""
    figure.legend(handles, labels, loc="outside lower left", ncols=columns, handlelength=1.6, columnspacing=1.4)


def _written(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _targets(key: str, value: str) -> list[str]:
    if key == _LINK or "url(#" in value:
        return _REFERENCE.findall(value)
    return []


def _settle(node: ET.Element, name: str, used: set[str]) -> None:
    """Names that are the page's alone, colours by name, the page's font, and no more digits than can be seen."""
    for key, value in list(node.items()):
        if key == "id":
            if value in used:
                node.set(key, f"{name}-{value}")
            else:
                del node.attrib[key]
        elif key == _LINK:
            del node.attrib[key]
            node.set("href", f"#{name}-{value[1:]}")
        elif "url(#" in value:
            node.set(key, value.replace("url(#", f"url(#{name}-"))
        elif key == "style":
            styled = _FONT.sub(lambda found: f"font-size: {found[1]}" if found[1] else "", value)
            node.set(key, _COLOUR.sub(lambda found: f"var(--{_NAMES[found.group()]})", styled))
        elif key not in ("class", "viewBox"):
            node.set(key, " ".join(_LONG.sub(r"\1", value).split()))
