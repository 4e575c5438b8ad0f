"""Lanes of a timeline: one per process that did tasks, and bars that are wide enough to be seen."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lipray.report.course import Span


@dataclass(frozen=True, slots=True)
class Bar:
    """Tasks of one kind that follow each other closely, ``tasks`` of them, as one bar."""

    kind: str
    start: float
    end: float
    tasks: int = 1


@dataclass(frozen=True, slots=True)
class Lane:
    """What was done in one place, one task after the other: on ``node``, the ``number``-th there; busy for seconds."""

    node: str
    number: int
    bars: tuple[Bar, ...]
    busy: float


def lanes_of(spans: Sequence[Span], resolution: float) -> tuple[Lane, ...]:
    """The lanes of a timeline, node by node.

    A process has a lane; where it ended before another began on its node, that one takes the lane over.

    Args:
        spans: the tasks.
        resolution: seconds below which bars, and gaps between bars of one kind, are not told apart.
    """
    processes: dict[tuple[str, str], list[Span]] = {}
    for span in spans:
        node, _, process = span.where.rpartition(":")
        processes.setdefault((node, process), []).append(span)
    nodes: dict[str, list[list[Span]]] = {}
    for (node, _), own in sorted(processes.items(), key=_place):
        own.sort(key=lambda span: (span.start, span.end, span.label))
        shared = next((lane for lane in nodes.get(node, []) if lane[-1].end <= own[0].start), None)
        if shared is None:
            nodes.setdefault(node, []).append(own)
        else:
            shared.extend(own)
    return tuple(
        Lane(node, number, bars_of(lane, resolution), sum(span.end - span.start for span in lane))
        for node, lanes in nodes.items()
        for number, lane in enumerate(lanes, start=1)
    )


def _place(item: tuple[tuple[str, str], list[Span]]) -> tuple[list[tuple[int, str]], float, str]:
    """Nodes by name, numbers in it by size; on a node by when a process began."""
    (node, process), spans = item
    words = [(int(word), "") if word.isdecimal() else (-1, word) for word in re.split(r"(\d+)", node)]
    return words, min(span.start for span in spans), process


def bars_of(spans: Sequence[Span], resolution: float) -> tuple[Bar, ...]:
    """The bars of a lane, in the order in which they begin; those too short to be seen are drawn as one."""
    bars: list[Bar] = []
    for span in spans:
        last = bars[-1] if bars else None
        if last is not None and _one(last, span, resolution):
            kind = span.kind if span.end - span.start > last.end - last.start else last.kind
            bars[-1] = Bar(kind, last.start, max(last.end, span.end), last.tasks + 1)
        else:
            bars.append(Bar(span.kind, span.start, span.end))
    return tuple(bars)


def _one(bar: Bar, span: Span, resolution: float) -> bool:
    """Whether a task is drawn as one with the bar before it."""
    if span.end - bar.start < resolution:
        return True
    short = min(bar.end - bar.start, span.end - span.start) < 3 * resolution
    return bar.kind == span.kind and span.start - bar.end < resolution and short
