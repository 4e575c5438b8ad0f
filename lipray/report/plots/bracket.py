"""Plot: how the bracket closed over time."""

from __future__ import annotations

from lipray.report.course import Step
from lipray.report.numbers import lower_text, upper_text
from lipray.report.plots.canvas import drawing, legend, new_figure, to_page
from lipray.report.plots.palette import MUTED, SERIES
from lipray.report.plots.scales import drawable, is_wide, scale

MOST = 1500
"""Steps that are drawn; of more, every so-many-th, and the last."""


def bracket_plot(steps: tuple[Step, ...], length: float, attempts: tuple[float, ...] = ()) -> str | None:
    """Upper and lower bound as steps, and where each attempt began; ``None`` where there was no upper bound.

    Args:
        steps: the bracket's changes.
        length: seconds of work.
        attempts: when each process began.
    """
    shown = _thin([step for step in steps if drawable(step.upper)])
    if not shown:
        return None
    last = shown[-1]
    end = 1.03 * max(length, last.at) or 1.0
    with drawing():
        figure, axes = new_figure()
        uppers = [(step.at, step.upper) for step in shown if step.upper is not None]
        (upper,) = axes.step(*_until(uppers, end), where="post", color=SERIES[0])
        lowers = [
            (step.at, step.lower)
            for step in _thin([step for step in steps if step.lower > 0.0 and drawable(step.lower)])
        ]
        handles, labels = [upper], [f"upper bound, certified: {upper_text(last.upper)}"]
        if lowers:
            (lower,) = axes.step(*_until(lowers, end), where="post", color=SERIES[2])
            handles.append(lower)
            labels.append(f"lower bound, attained: {lower_text(last.lower)}")
        for begin in attempts[1:]:
            axes.axvline(begin, color=MUTED, linewidth=1.0, linestyle=(0, (2, 3)))
        figures = [value for _, value in (*uppers, *lowers)]
        wide = is_wide(figures)
        # The first pairs of inputs attain little, and would take most of the plot.
        low, high = max(min(figures), lowers[-1][1] / 20 if lowers else 0.0), max(figures)
        pad = (high - low) * 0.07 or 0.05 * abs(high) or 1.0
        scale(axes, "y", low / 1.2 if wide else max(0.0, low - pad), high * 1.2 if wide else high + pad, log=wide)
        scale(axes, "x", 0.0, end, log=False, times=True)
        axes.set_xlabel("time of work")
        legend(figure, handles, labels, columns=1)
        told = f"The upper bound was {upper_text(shown[0].upper)} at first and {upper_text(last.upper)} in the end."
        return to_page(figure, "bracket", told)


def _thin(steps: list[Step]) -> list[Step]:
    every = -(-len(steps) // MOST)
    return steps if every <= 1 else [*steps[:-1:every], steps[-1]]


def _until(points: list[tuple[float, float]], end: float) -> tuple[list[float], list[float]]:
    """Steps as two lists, the last value carried on to the end."""
    times, values = [at for at, _ in points], [value for _, value in points]
    return [*times, end], [*values, values[-1]]
