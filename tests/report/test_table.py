"""The tables say what the records say."""

import io
import json

from rich.console import Console

from lipray.report.json import to_json
from lipray.report.table import plan_table, result_table
from lipray.run.record.plan_record import PlannedBlock, PlanRecord
from lipray.run.record.records import BlockRecord, FailureRecord, ModelRecord, ResultRecord, SubproblemRecord

MODEL = ModelRecord(
    name="net", hash="ab", input_shape=(1, 8, 8), output_shape=(10,), neurons=768, notes=("random weights",)
)


def render(item, width=200):
    stream = io.StringIO()
    Console(file=stream, width=width).print(item)
    return stream.getvalue()


def block(label="block1 [conv..fc]", **changes):
    values = {
        "label": label,
        "upper": 7.123456789,
        "source": "ellipsoid",
        "alternatives": {"ellipsoid": 7.123456789, "product": 12.0},
        "closed_forms": {"liplt": 9.5, "eclipse_fast": 9.25},
        "subproblems": 4,
        "distinct": 3,
        "fallbacks": (),
        "seconds": 1.5,
        "share": 0.75,
    }
    return BlockRecord(**(values | changes))


def result(**changes):
    values = {
        "model": MODEL,
        "upper": 7.1234567891,
        "lower": 5.9876543219,
        "gap": 1.19,
        "method": "ellipsoid",
        "composition": "overlap",
        "executor": "serial",
        "threads": None,
        "seconds": 2.0,
        "blocks": (block(),),
        "figures": {"product": 12.0, "liplt": 9.5},
        "subproblems": (),
        "failures": (),
    }
    return ResultRecord(**(values | changes))


def test_bracket_and_alternatives_are_shown():
    text = render(result_table(result()))
    for part in ("7.12345679", "5.98765432", "product", "LipLT", "ECLipsE-Fast", "9.25", "75%", "random weights"):
        assert part in text
    assert "failed" not in text


def test_tiles_show_both_compositions():
    ways = {"overlap": 7.0, "sum": 8.0, "product": 12.0}
    text = render(result_table(result(blocks=(block(source="overlap", alternatives=ways),))))
    assert "sum" in text
    assert "overlap" in text


def test_fallbacks_failures_and_advice_are_told():
    failures = tuple(
        FailureRecord(label=f"[tile]{i}", kind="OutOfMemory", why="it died", attempts=3) for i in range(12)
    )
    row = SubproblemRecord(
        block="b",
        label="l",
        copies=1,
        key="k",
        method="ellipsoid",
        status="iteration_limit",
        bound=1.0,
        product=None,
        neurons=1,
        memory=1,
        seconds=1.0,
        iterations=1,
        advice="raise --iterations for a tighter bound",
    )
    text = render(result_table(result(blocks=(block(fallbacks=("t1", "t2")),), failures=failures, subproblems=(row,))))
    assert "2 of the tiles have no certificate" in text
    assert "[tile]0: OutOfMemory: it died (3 attempts)" in text
    assert "2 more failures" in text
    assert "raise --iterations" in text


def test_blocks_left_to_the_product_and_idle_threads_are_told():
    row = SubproblemRecord(
        block="b",
        label="l",
        copies=1,
        key="k",
        method="ellipsoid",
        status="converged",
        bound=1.0,
        product=None,
        neurons=1,
        memory=1,
        seconds=60.0,
        iterations=1,
    )
    text = render(result_table(result(blocks=(block(subproblems=0, distinct=0),), subproblems=(row,), threads=1)))
    assert "1 block(s) fit no sub-problem within --memory" in text
    assert "--threads gives it more" in text
    assert "--threads" not in render(result_table(result(subproblems=(row,), threads=2)))


def test_no_lower_bound_and_an_infinite_upper_bound():
    text = render(result_table(result(upper=float("inf"), lower=0.0, gap=float("inf"), blocks=(block(upper=None),))))
    assert "∞" in text
    assert "none sought or found" in text


def test_json_is_one_object_on_one_line():
    text = to_json(result(), "runs/here")
    assert "\n" not in text
    values = json.loads(text)
    assert {"upper", "lower", "gap", "method", "seconds", "blocks"} <= set(values)
    assert values["upper"] == 7.1234567891
    assert values["folder"] == "runs/here"
    assert "folder" not in json.loads(to_json(result()))


def test_plan_table():
    planned = PlannedBlock(
        label="block1 [conv..relu]",
        layers=4,
        neurons=768,
        input_shape=(1, 8, 8),
        output_shape=(16, 4, 4),
        tiles=4,
        distinct=3,
        memory=2**20,
        seconds=12.0,
    )
    left = planned.model_copy(update={"label": "block2 [fc]", "tiles": 0, "distinct": 0})
    record = PlanRecord(
        model=MODEL,
        method="ellipsoid",
        partition_factor=2,
        block_depth=None,
        distinct=3,
        memory=2**20,
        seconds=12.5,
        blocks=(planned, left),
    )
    text = render(plan_table(record))
    for part in ("block1 [conv..relu]", "768", "1.0 MiB", "12.0 s", "16×4×4", "product only", "random weights"):
        assert part in text
    assert json.loads(to_json(record))["blocks"][0]["tiles"] == 4
