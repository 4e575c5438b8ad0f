"""Plots: valid elements of a page whatever is drawn, in the page's colours, the same every time."""

import re
import xml.etree.ElementTree as ET

import pytest

from lipray.report.course import Span, Step
from lipray.report.labels import plain, short
from lipray.report.lanes import lanes_of
from lipray.report.plots.bracket import bracket_plot
from lipray.report.plots.contribution import Part, contribution_plot
from lipray.report.plots.lines import bound_figure, bound_plot, core_time_plot
from lipray.report.plots.palette import DARK, LIGHT
from lipray.report.plots.pareto import pareto_plot
from lipray.report.plots.scales import round_numbers, round_times, time_text
from lipray.report.plots.statuses import status_plot
from lipray.report.plots.timeline import resolution_of, timeline_plot
from tests.report.test_series import lines_in, sweep

EVIL = '<script>alert(1)</script>"&amp;\x00\x1b$x^2$'
AXES = {"method": ("ellipsoid", EVIL), "partition_factor": (1, 2, 4)}


def parsed(figure):
    return ET.fromstring(figure)  # noqa: S314 - written by lipray


def texts(figure):
    return ["".join(node.itertext()) for node in parsed(figure).iter("{http://www.w3.org/2000/svg}text")]


def record(scale=1.0):
    return sweep(AXES, lambda method, p: None if method == EVIL and p == 4 else (scale * (9.0 - p), 0.5 * p))


def timeline(count=3):
    spans = [Span(EVIL, "solve", "converged", f"{EVIL}{n}:1", float(n), n + 2.0) for n in range(count)]
    return timeline_plot(lanes_of(spans, resolution_of(9.0, count)), 9.0, (0.0, 4.0))


PLOTS = {
    "bracket": lambda: bracket_plot(
        (Step(0.0, None, 0.0), Step(1.0, 90.0, 0.0), Step(3.0, 45.0, 40.0)), 4.0, (0.0, 2.0)
    ),
    "contribution": lambda: contribution_plot([Part(EVIL, 3.0, 4.0), Part("b", 0.2, None)], "blocks", EVIL),
    "statuses": lambda: status_plot({"converged": 1200, EVIL: 1}),
    "timeline": timeline,
    "bounds": lambda: bound_plot(lines_in(record()), 1.5),
    "core time": lambda: core_time_plot(lines_in(record())),
    "pareto": lambda: pareto_plot(record(), 1.5),
}


@pytest.mark.parametrize("draw", PLOTS.values(), ids=PLOTS)
def test_an_element_of_a_page(draw):
    figure = draw()
    assert figure == draw(), "not the same every time"
    root = parsed(figure)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "<script" not in figure
    assert root.get("aria-label")
    assert not {"width", "height"} & set(root.keys())
    names = [node.get("id") for node in root.iter() if node.get("id")]
    assert len(names) == len(set(names))
    targets = re.findall(r'(?:href="|url\()#([^")]+)', figure)
    assert set(targets) == set(names)
    assert not re.search(r"#[0-9a-f]{6}\b", figure), "a colour that does not follow the page"
    assert "font-family" not in figure
    assert "DejaVu" not in figure


@pytest.mark.parametrize("name", ["contribution", "statuses", "bounds", "pareto", "timeline"])
def test_names_are_text_and_no_markup(name):
    assert any("<script>" in text or "<scrip" in text for text in texts(PLOTS[name]()))


@pytest.mark.parametrize("value", [0.0, 1e-300, 1.0, 1e300, None])
def test_a_figure_of_any_size_stands_beside_others(value):
    parts = [Part("a", value, value), Part("b", 2.0, value)]
    assert contribution_plot(parts, "x", "told")
    assert bracket_plot((Step(0.0, value, 0.0), Step(1.0, 2.0, value or 0.0)), 1.0)
    pair = None if value is None else (value, value)
    found = sweep(AXES, lambda _, p: (2.0, 3.0) if p == 1 else pair)
    assert bound_plot(lines_in(found), value)
    assert core_time_plot(lines_in(found))
    assert pareto_plot(found, value)


def test_what_has_nothing_to_show_is_left_out():
    nothing = sweep(AXES, lambda *_: None)
    assert bound_plot(lines_in(nothing), None) is None
    assert pareto_plot(nothing, None) is None
    assert bracket_plot((Step(0.0, None, 1.0),), 3.0) is None
    assert contribution_plot([Part("a", None, None)], "x", "told") is None
    assert status_plot({}) is None
    assert timeline_plot((), 3.0) is None
    assert bound_figure(lines_in(nothing), None) is None


def test_a_point_without_a_bound_is_marked():
    assert "no bound" in texts(PLOTS["bounds"]())
    assert "no bound" not in texts(bound_plot(lines_in(sweep(AXES, lambda *_: (2.0, 1.0))), None))


def test_many_blocks_stay_legible():
    found = contribution_plot([Part(f"block{n}", 1.5, 2.0) for n in range(200)], "x", "told")
    assert len([text for text in texts(found) if text.startswith("block")]) <= 60
    assert len(found) < 400_000


def test_of_many_lines_only_colours_are_named():
    axes = {"method": ("a", "b"), "seed": tuple(range(20)), "partition_factor": (1, 2)}
    found = bound_plot(lines_in(sweep(axes, lambda m, s, p: (s + p + (m == "b"), float(s)))), None)
    assert {"a", "b"} <= set(texts(found))
    assert "seed" not in " ".join(texts(found))


def luminance(colour):
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_can_be_told_from_the_paper(palette):
    paper = luminance(palette["paper"])
    for name, colour in palette.items():
        low, high = sorted([paper, luminance(colour)])
        ratio = (high + 0.05) / (low + 0.05)
        assert ratio >= (4.5 if name in ("ink", "muted", "c1", "c2", "c3", "c5") else 3.0) or name in (
            "paper",
            "rule",
        ), name
    assert palette.keys() == LIGHT.keys()


@pytest.mark.parametrize(("low", "high"), [(0.9, 1.1), (1.0, 40.0), (1e-4, 1e7), (3.0, 3.1), (1e-3, 1e21)])
def test_ticks_are_few_and_inside(low, high):
    for find in (round_numbers, round_times):
        for log in (False, True):
            found = find(low, high, log=log)
            assert len(found) <= 8
            assert found == sorted(set(found))
            assert all(low <= tick <= high for tick in found)
    assert round_numbers(low, high, log=True)


def test_durations_are_round():
    assert [time_text(tick) for tick in round_times(0.0, 810.0, log=False)] == [
        "0",
        "5 min",
        "10 min",
    ]
    assert [time_text(tick) for tick in (0.05, 2.5, 80.0, 150.0, 7200.0, 172800.0)] == [
        "50 ms",
        "2.5 s",
        "80 s",
        "2.5 min",
        "2 h",
        "2 d",
    ]


def test_labels_are_cut_in_the_middle_and_hold_no_controls():
    assert short("abcdefghijklmnop", 9) == "abcdef…op"
    assert short("ab\x00c") == "ab\ufffdc"
    assert plain("\ud800x\u202e") == "\ufffdx\u202e"
