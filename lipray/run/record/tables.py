"""Records as tables for other programs: CSV, and Parquet where pyarrow is installed."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from lipray.run.record.records import Record

MISSING = "pyarrow is not installed, so there is no Parquet file beside the CSV: pip install 'lipray[parquet]'"
"""What to say where there is no Parquet file."""


def flatten(record: Record) -> dict[str, Any]:
    """A record as one row: what it holds by key has columns of its own, before the others."""
    values: dict[str, Any] = json.loads(record.model_dump_json())
    inner = {key: value for held in values.values() if isinstance(held, dict) for key, value in held.items()}
    return inner | {key: value for key, value in values.items() if not isinstance(value, dict)}


def csv_bytes(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> bytes:
    """Rows as CSV with a header, in UTF-8."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def parquet_bytes(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> bytes | None:
    """Rows as Parquet, ``None`` without pyarrow; a column of numbers and text becomes text."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        return None
    table = pa.table({name: _column(pa, [row.get(name) for row in rows]) for name in columns})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def _column(pa: Any, values: list[Any]) -> Any:
    kinds = {bool if isinstance(value, bool) else type(value) for value in values if value is not None}
    if len(kinds) > 1:
        numbers = kinds <= {int, float}
        return pa.array([value if value is None else float(value) if numbers else str(value) for value in values])
    return pa.array(values)
