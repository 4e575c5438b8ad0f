"""A sweep as a table for a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lipray.report.numbers import lower_text, seconds_text, upper_text
from lipray.run.record.sweep_records import SweepRecord, SweepRow, comparable

_SHOWN = 10


def sweep_table(record: SweepRecord, folder: str | None = None) -> RenderableType:
    """One line per point, the best bound marked where all bound one network, and what did not go as planned."""
    title = f"Sweep of {record.model.name}: {len(record.rows)} point{'s' if len(record.rows) != 1 else ''}"
    table = Table(title=Text(title), title_justify="left")
    table.add_column("point", no_wrap=True)
    for name in record.axes:
        table.add_column(name.replace("_", " "), overflow="fold")
    for name in ("bound", "of product", "lower", "core time", "longest", "distinct", "shared"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("state", overflow="fold")
    known = [row.upper for row in record.rows if row.upper is not None]
    best = min(known, default=None) if comparable(record) else None
    for row in record.rows:
        table.add_row(*_cells(record, row), style="bold" if row.upper is not None and row.upper == best else "")
    return Group(table, *_remarks(record, folder))


def _cells(record: SweepRecord, row: SweepRow) -> list[Text]:
    swept = [str(row.swept.get(name, "")) for name in record.axes]
    if row.upper is None:
        figures = [""] * 7
    else:
        figures = [
            upper_text(row.upper),
            f"{row.upper / row.product:.3g}" if row.product else "",
            lower_text(row.lower) if row.lower else "",
            seconds_text(row.core_seconds),
            seconds_text(row.critical_seconds),
            str(row.distinct),
            str(row.shared),
        ]
    return [Text(cell) for cell in (row.point, *swept, *figures, row.state)]


def _remarks(record: SweepRecord, folder: str | None) -> list[RenderableType]:
    alone = sum(row.core_seconds for row in record.rows)
    saved = f" ({seconds_text(alone)} if each point were alone)" if alone > record.core_seconds else ""
    lines: list[RenderableType] = [
        Text(
            f"{record.distinct} distinct sub-problem(s), {seconds_text(record.core_seconds)} of one core{saved}, "
            f"{seconds_text(record.seconds)} on {record.executor}"
        )
    ]
    told: dict[tuple[str, str], list[str]] = {}
    for row in record.rows:
        if row.why:
            told.setdefault((row.state, row.why), []).append(row.point)
    lines.extend(Text(f"{state}: {', '.join(points)}: {why}") for (state, why), points in list(told.items())[:_SHOWN])
    if len(told) > _SHOWN:
        lines.append(Text(f"… and {len(told) - _SHOWN} more reasons, in sweep.csv"))
    lines.extend(Text(f"store: {fault}") for fault in record.store_faults[:_SHOWN])
    if folder is not None:
        lines.append(Text(f"Sweep folder: {folder}", overflow="fold"))
    return lines
