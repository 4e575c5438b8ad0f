"""Plot: accuracy against the l2 radius, as certified and as far as an attack got."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np

from lipray.report.plots.canvas import drawing, legend, new_figure, to_file
from lipray.report.plots.palette import MUTED, PAPER, SERIES
from lipray.report.plots.scales import scale

MOST = 0.995
"""Share of the finite radii that the axis has room for."""


def accuracy_files(
    certified: np.ndarray, empirical: np.ndarray | None, correct: np.ndarray, marks: Sequence[float] = ()
) -> dict[str, bytes]:
    """The plot as SVG and PNG, by suffix.

    Args:
        certified: radius of every input.
        empirical: distance at which each was broken, infinity where it was not; ``None`` without an attack.
        correct: whether each is of its class.
        marks: radii to mark.
    """
    shown = [certified, *(() if empirical is None else (empirical,))]
    finite = np.concatenate([values[np.isfinite(values)] for values in shown])
    end = float(max([1e-12, *marks, np.quantile(finite, MOST) if len(finite) else 0.0])) * 1.05
    with drawing():
        figure, axes = new_figure(height=3.6)
        (line,) = axes.step(*survival(certified, correct, end), where="post", color=SERIES[0])
        handles, labels = [line], ["correct and certified (verified-robust accuracy)"]
        if empirical is not None:
            (line,) = axes.step(*survival(empirical, correct, end), where="post", color=SERIES[1])
            handles.append(line)
            labels.append("correct and not broken by the attack")
        for mark in marks:
            axes.axvline(mark, color=MUTED, linewidth=1.0, linestyle=(0, (2, 3)))
        scale(axes, "x", 0.0, end, log=False)
        scale(axes, "y", 0.0, 1.0, log=False)
        axes.set_xlabel("l2 radius, in the units of the data")
        axes.set_ylabel("share of the data")
        legend(figure, handles, labels, columns=1)
        vector = to_file(figure)
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=160, facecolor=PAPER, metadata={"Software": None})
    return {"svg": vector, "png": picture.getvalue()}


def survival(radii: np.ndarray, correct: np.ndarray, end: float) -> tuple[np.ndarray, np.ndarray]:
    """The share of all inputs that are correct with a radius above r, as steps in r from 0 to ``end``."""
    own = np.sort(radii[correct])
    places = np.unique(np.clip(own[own <= end], 0.0, end))
    places = np.concatenate([[0.0], places, [end]])
    above = len(own) - np.searchsorted(own, places, side="right")
    return places, above / max(1, len(radii))
