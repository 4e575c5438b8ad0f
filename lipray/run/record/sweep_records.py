"""A sweep as plain records: a row per point, made from the points' results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Literal

from lipray.run.record.records import (
    Figure,
    ModelRecord,
    Record,
    ResultRecord,
    State,
    SubproblemRecord,
    SweepPart,
    Swept,
)

SELECTING = frozenset({"input_shape", "weights", "output_rows", "pairs"})
"""Options that say which network is bounded."""


class SweepRow(Record):
    """A point of a sweep: what was swept, its bracket, and what it took.

    ``state`` is that of its run; ``refused`` where it cannot be planned, ``failed`` where it has no bound, ``open``
    where it was not come to. ``distinct`` sub-problems cover its ``subproblems`` tiles; ``shared`` of them are other
    points' too. ``core_seconds`` are what they take alone, each once; ``added_core_seconds`` what it adds to the points
    before it; ``critical_seconds`` those of the longest, which no number of workers shortens.
    """

    swept: dict[str, Swept]
    point: str
    state: Literal["finished", "incomplete", "stopped", "failed", "refused", "open"]
    upper: Figure = None
    lower: Figure = None
    product: Figure = None
    solved_by: str = ""
    critical_seconds: float = 0.0
    core_seconds: float = 0.0
    added_core_seconds: float = 0.0
    subproblems: int = 0
    distinct: int = 0
    shared: int = 0
    stored: int = 0
    failed: int = 0
    why: str = ""


class SweepRecord(Record):
    """The outcome of a sweep; ``distinct`` sub-problems of all points took ``core_seconds``, each counted once."""

    schema_version: Literal[1] = 1
    sweep: str
    model: ModelRecord
    state: State
    axes: dict[str, tuple[Swept, ...]]
    rows: tuple[SweepRow, ...]
    executor: str
    threads: int | None
    distinct: int
    core_seconds: float
    seconds: float
    store_faults: tuple[str, ...] = ()


def sweep_rows(
    part: SweepPart, results: Mapping[str, ResultRecord], endings: Mapping[str, tuple[str, str]]
) -> tuple[SweepRow, ...]:
    """One row per point.

    Args:
        part: the points.
        results: by point, of those that have a bound.
        endings: state and reason, by point, of those that have none.
    """
    problems = {point.point: _solved(results[point.point]) for point in part.points if point.point in results}
    users = Counter(key for solved in problems.values() for key in solved)
    seen: set[str] = set()
    rows = []
    for point in part.points:
        result = results.get(point.point)
        if result is None:
            state, why = endings.get(point.point, ("refused", point.refused) if point.refused else ("open", ""))
            rows.append(
                SweepRow.model_validate({"point": point.point, "swept": point.swept, "state": state, "why": why})
            )
            continue
        solved = problems[point.point]
        rows.append(
            SweepRow.model_validate(
                {
                    "point": point.point,
                    "swept": point.swept,
                    "state": "open" if result.state == "running" else result.state,
                    "upper": result.upper,
                    "lower": result.lower,
                    "product": _product(result),
                    "solved_by": result.method,
                    "critical_seconds": max((_critical(row) for row in solved.values()), default=0.0),
                    "core_seconds": sum(row.core_seconds for row in solved.values()),
                    "added_core_seconds": sum(row.core_seconds for key, row in solved.items() if key not in seen),
                    "subproblems": sum(block.subproblems for block in result.blocks),
                    "distinct": len(solved),
                    "shared": sum(users[key] > 1 for key in solved),
                    "stored": sum(row.stored for row in solved.values()),
                    "failed": len(result.failures),
                }
            )
        )
        seen |= set(solved)
    return tuple(rows)


def totals(results: Mapping[str, ResultRecord]) -> tuple[int, float]:
    """How many distinct sub-problems all points have, and their core-seconds."""
    every: dict[str, SubproblemRecord] = {}
    for result in results.values():
        every.update(_solved(result))
    return len(every), sum(row.core_seconds for row in every.values())


def comparable(record: SweepRecord) -> bool:
    """Whether all points bound one network, so that the smallest of their bounds is the best."""
    return not any(name in SELECTING and len(values) > 1 for name, values in record.axes.items())


def columns(record: SweepRecord) -> tuple[str, ...]:
    """The columns of a sweep's table: what was swept, then the rest."""
    return (*record.axes, *(name for name in SweepRow.model_fields if name not in ("swept", *record.axes)))


def _solved(result: ResultRecord) -> dict[str, SubproblemRecord]:
    """The sub-problems of a point by key, product bounds aside where there is more than they."""
    rows = {row.key: row for row in result.subproblems}
    return {key: row for key, row in rows.items() if row.method != "product"} or rows


def _critical(row: SubproblemRecord) -> float:
    return row.core_seconds if row.stored else row.seconds


def _product(result: ResultRecord) -> float | None:
    """The product bound of the network, cut as it was; where it is the bound, it is not among the other figures."""
    alone = {block.source for block in result.blocks} == {"product"}
    return result.upper if alone else result.figures.get("product")
