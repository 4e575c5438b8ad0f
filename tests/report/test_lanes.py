"""Lanes: a process each, all work shown, and few bars however many tasks there are."""

import random

import pytest

from lipray.report.course import Span
from lipray.report.lanes import bars_of, lanes_of
from lipray.report.plots.timeline import BARS, resolution_of


def span(start, end, where="", kind="solve", label="t"):
    return Span(label, kind, "converged", where, start, end)


def test_a_lane_per_process_and_nodes_in_the_order_of_their_numbers():
    spans = [span(0, 2, "10.0.0.10:5"), span(0, 3, "10.0.0.2:7"), span(1, 2, "10.0.0.2:6"), span(4, 5, "10.0.0.2:7")]
    lanes = lanes_of(spans, 0.0)
    assert [(lane.node, lane.number, len(lane.bars), lane.busy) for lane in lanes] == [
        ("10.0.0.2", 1, 2, 4),
        ("10.0.0.2", 2, 1, 1),
        ("10.0.0.10", 1, 1, 2),
    ]


def test_a_process_that_follows_another_takes_its_lane():
    lanes = lanes_of([span(0, 2, "n:1"), span(0, 4, "n:2"), span(2, 3, "n:3"), span(3.5, 5, "n:4")], 0.0)
    assert [len(lane.bars) for lane in lanes] == [3, 1]


def test_bars_that_can_be_told_apart_stay_apart():
    assert len(bars_of([span(0, 10), span(10, 20), span(20, 30, kind="lower")], 0.5)) == 3


@pytest.mark.parametrize("lanes", [1, 40, 80])
def test_all_work_is_shown_in_few_bars(lanes):
    draw, spans = random.Random(2), []  # noqa: S311 - tasks
    for place in range(lanes):
        clock = 0.0
        while clock < 300.0:
            took = draw.expovariate(2.0)
            spans.append(span(clock, clock + took, f"n:{place}", draw.choice(["solve", "lower", "product"])))
            clock += took
    resolution = resolution_of(301.0, lanes)
    found = lanes_of(spans, resolution)
    assert sum(bar.tasks for lane in found for bar in lane.bars) == len(spans)
    assert sum(len(lane.bars) for lane in found) <= 2.5 * max(BARS, 1800 * lanes * (lanes < 7))
    for lane in found:
        assert [bar.start for bar in lane.bars] == sorted(bar.start for bar in lane.bars)
