"""Axes that a reader can read: few ticks at round numbers, in plain text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeGuard

from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator

from lipray.report.numbers import seconds_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

WIDE = 8.0
"""Ratio of largest to smallest from which on an axis is logarithmic."""
_STEPS = ((1,), (1, 3), (1, 2, 5))
_TIMES = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 10800, 21600, 43200, 86400)
"""Steps of a linear axis of time, in seconds; beyond, days."""
_LOG_TIMES = (
    1e-3,
    3e-3,
    0.01,
    0.03,
    0.1,
    0.3,
    1,
    3,
    10,
    30,
    60,
    180,
    600,
    1800,
    3600,
    10800,
    36000,
    86400,
    259200,
    864000,
)


def figure_text(value: float) -> str:
    """A tick's number."""
    return f"{value:.4g}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-")


def time_text(seconds: float) -> str:
    """A tick's duration, in a unit of which it is a whole number where there is one."""
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit and seconds % unit == 0:
            return f"{seconds / unit:.0f} {name}"
    if seconds == 0 or seconds >= 120:
        return seconds_text(seconds) if seconds else "0"
    return f"{seconds:.4g} s" if seconds >= 1 else seconds_text(seconds)


def drawable(value: float | None) -> TypeGuard[float]:
    """Whether there is a place for a figure: it is finite, and not so large or small that axes overflow."""
    return value is not None and (value == 0.0 or 1e-200 < abs(value) < 1e200)


def is_wide(values: Sequence[float]) -> bool:
    """Whether positive values span so much that only a logarithmic axis shows them all."""
    positive = [value for value in values if value > 0.0]
    return bool(positive) and len(positive) == len(values) and max(positive) > WIDE * min(positive)


def scale(
    axes: Axes,
    which: str,
    low: float,
    high: float,
    *,
    log: bool,
    times: bool = False,
    most: int = 6,
) -> None:
    """Set the limits of an axis, its scale, and its ticks.

    Args:
        axes: the plot.
        which: ``x`` or ``y``.
        low: where it begins; positive if logarithmic.
        high: where it ends.
        log: logarithmic or not.
        times: of seconds, with ticks at round durations.
        most: ticks at most.
    """
    if not high > low:
        high = low * 1.1 if log else low + 1.0
    axis: Axis = axes.xaxis if which == "x" else axes.yaxis
    if which == "x":
        axes.set_xscale("log" if log else "linear")
        axes.set_xlim(low, high)
    else:
        axes.set_yscale("log" if log else "linear")
        axes.set_ylim(low, high)
    ticks = (round_times if times else round_numbers)(low, high, log=log, most=most)
    text = time_text if times else figure_text
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FixedFormatter([text(tick) for tick in ticks]))
    axes.grid(visible=True, axis="x" if which == "x" else "y")


def round_numbers(low: float, high: float, *, log: bool, most: int = 6) -> list[float]:
    """Round numbers from ``low`` to ``high``, no more than ``most`` of them."""
    if log and high > 3.0 * low:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        for steps in reversed(_STEPS):
            found = [step * 10.0**power for power in range(first, last + 1) for step in steps]
            inside = [tick for tick in found if low <= tick <= high]
            if len(inside) <= most:
                return inside
        every = math.ceil((last - first + 1) / most)
        return [10.0**power for power in range(first, last + 1, every) if low <= 10.0**power <= high]
    ticks = MaxNLocator(nbins=most - 1, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [float(tick) for tick in ticks if low <= tick <= high]


def round_times(low: float, high: float, *, log: bool, most: int = 6) -> list[float]:
    """Durations that a clock shows in round numbers, from ``low`` to ``high`` seconds."""
    if log and high > 3.0 * low:
        found = [tick for tick in _LOG_TIMES if low <= tick <= high]
        return found[:: -(-len(found) // most)] if found else []
    if high - low < most:
        return round_numbers(low, high, log=False, most=most)
    step = next((step for step in _TIMES if (high - low) / step <= most), 0)
    step = step or 86400 * math.ceil((high - low) / most / 86400)
    return [float(number * step) for number in range(math.ceil(low / step), math.floor(high / step) + 1)]
