"""Plot: what each part of a network adds to its bound. The bound is a product, so the lengths add up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard

from matplotlib.patches import Patch

from lipray.report.labels import short
from lipray.report.numbers import upper_text
from lipray.report.plots.canvas import WIDTH, drawing, legend, new_figure, to_page
from lipray.report.plots.palette import INK, QUIET, SERIES
from lipray.report.plots.scales import drawable, scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST = 60
"""Parts with a name of their own; of more, every so-many-th is named."""


@dataclass(frozen=True, slots=True)
class Part:
    """A block, or a stretch of one: its factor, and the one that the product of norms gives; ``None`` is infinity."""

    label: str
    factor: float | None
    product: float | None = None


def contribution_plot(parts: Sequence[Part], name: str, told: str, *, factor: str = "bound") -> str | None:
    """A bar per part from 1 to its factor, on a logarithmic axis, its product bound behind it.

    Args:
        parts: in the order of the network.
        name: of the figure in its page.
        told: what it shows, in words.
        factor: what a part's own bar is called.

    Returns:
        The figure, ``None`` where no part has a finite factor.
    """
    finite = [value for part in parts for value in (part.factor, part.product) if _drawn(value)]
    if not any(_drawn(part.factor) for part in parts):
        return None
    low, high = min([1.0, *finite]), max([1.0, *finite])
    span = math.log(high / low) or 1.0
    # Room for the figures beside the bars.
    low, high = low / math.exp(0.16 * span) if low < 1.0 else low, high * math.exp(0.2 * span)
    every = -(-len(parts) // MOST)
    with drawing():
        figure, axes = new_figure(WIDTH, 1.25 + 0.3 * min(len(parts), MOST))
        for row, part in enumerate(parts):
            _bar(axes, row, part.product, QUIET, 0.72, alpha=0.3)
            _bar(axes, row, part.factor, SERIES[0], 0.44)
            if every == 1:
                _number(axes, row, part, low)
        axes.axvline(1.0, color=INK, linewidth=0.9)
        axes.set_yticks(range(0, len(parts), every), [short(part.label) for part in parts[::every]])
        axes.set_ylim(len(parts) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.spines["left"].set_visible(False)
        scale(axes, "x", low, high, log=True, most=5)
        axes.set_xlabel("factor, logarithmic")
        handles, labels = [Patch(color=SERIES[0])], [factor]
        if any(part.product is not None for part in parts):
            handles.append(Patch(color=QUIET, alpha=0.3))
            labels.append("product of norms")
        legend(figure, handles, labels)
        return to_page(figure, name, told)


def _drawn(value: float | None) -> TypeGuard[float]:
    return drawable(value) and value > 0.0


def _bar(axes: Axes, row: int, value: float | None, colour: str, height: float, alpha: float = 1.0) -> None:
    if _drawn(value):
        left, right = min(1.0, value), max(1.0, value)
        axes.barh(row, right - left, left=left, height=height, color=colour, alpha=alpha, linewidth=0)


def _number(axes: Axes, row: int, part: Part, low: float) -> None:
    """The factor in figures, beyond what is drawn; where it is infinite or zero, that."""
    ends = [value for value in (part.factor, part.product) if _drawn(value)]
    place = max([1.0, *ends])
    axes.annotate(
        upper_text(part.factor, 4),
        (max(place, low), row),
        (4, 0),
        textcoords="offset points",
        va="center",
        ha="left",
        fontsize=9.5,
    )
