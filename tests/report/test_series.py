"""A sweep as lines and as a front."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from lipray.report.series import lines_of, pareto_front
from lipray.run.record.records import ModelRecord
from lipray.run.record.sweep_records import SweepRecord, SweepRow, comparable

MODEL = ModelRecord(name="net", hash="ab", input_shape=(4,), output_shape=(2,), neurons=3)


def sweep(axes, figures):
    """A sweep whose points have the bounds and core-seconds of ``figures``, by their values; ``None`` for no bound."""
    rows = []
    for number, values in enumerate(itertools.product(*axes.values()), start=1):
        found = figures(*values)
        rest = (
            {"state": "refused"}
            if found is None
            else {"state": "finished", "upper": found[0], "core_seconds": found[1]}
        )
        rows.append(SweepRow(point=f"{number:03d}", swept=dict(zip(axes, values, strict=True)), **rest))
    return SweepRecord(
        sweep="s",
        model=MODEL,
        state="finished",
        axes=axes,
        rows=tuple(rows),
        executor="serial",
        threads=1,
        distinct=3,
        core_seconds=4.0,
        seconds=5.0,
    )


def lines_in(record):
    return lines_of(record.axes, record.rows)


def test_a_line_per_choice_of_the_other_options():
    axes = {"method": ("ellipsoid", "frequency"), "partition_factor": ("auto", 4, 2, 10)}
    lines = lines_in(sweep(axes, lambda method, factor: None if method == "frequency" and factor == 4 else (1.0, 2.0)))
    assert (lines.option, lines.values) == ("partition_factor", (2, 4, 10, "auto"))
    assert [line.label for line in lines.lines] == ["ellipsoid", "frequency"]
    assert [None if row.upper is None else row.swept["partition_factor"] for row in lines.lines[1].rows] == [
        2,
        None,
        10,
        "auto",
    ]


def test_choices_that_come_to_the_same_share_a_line():
    axes = {"method": ("a", "b"), "block_depth": (1, 2, "all"), "partition_factor": (1, 2)}
    lines = lines_in(sweep(axes, lambda _, depth, factor: (9.0 if depth == 1 else 5.0, float(factor))))
    assert [line.label for line in lines.lines] == ["a, depth 1", "a, depth 2 = all", "b, depth 1", "b, depth 2 = all"]
    assert [(line.colour, line.mark) for line in lines.lines] == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_choices_without_any_point_keep_their_names():
    axes = {"method": ("a",), "block_depth": (1, 2), "partition_factor": (1, 2)}
    assert [line.label for line in lines_in(sweep(axes, lambda *_: None)).lines] == ["depth 1", "depth 2"]


def test_without_partition_factors_another_option_is_the_axis():
    lines = lines_in(sweep({"method": ("a", "b"), "iterations": (0, 50)}, lambda *_: (1.0, 1.0)))
    assert lines.option == "iterations"
    assert lines_in(sweep({"method": ("a",)}, lambda *_: (1.0, 1.0))) is None


def test_points_of_different_networks_are_not_compared():
    same = sweep({"output_rows": ("0",), "partition_factor": (1, 2)}, lambda *_: (1.0, 1.0))
    other = sweep({"output_rows": ("0", "1")}, lambda *_: (1.0, 1.0))
    assert comparable(same)
    assert not comparable(other)


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=12))
def test_the_front_is_what_nothing_beats(figures):
    rows = [
        SweepRow(point=f"{n:03d}", swept={}, state="finished", upper=float(upper), core_seconds=float(cost))
        for n, (upper, cost) in enumerate(figures)
    ]
    front = pareto_front([*rows, SweepRow(point="x", swept={}, state="open")])
    shown = {(row.upper, row.core_seconds) for row in front}
    beaten = {
        (row.upper, row.core_seconds)
        for row in rows
        if any(
            other.upper <= row.upper
            and other.core_seconds <= row.core_seconds
            and (other.upper, other.core_seconds) != (row.upper, row.core_seconds)
            for other in rows
        )
    }
    assert shown == {(row.upper, row.core_seconds) for row in rows} - beaten
    assert len(shown) == len(front)
