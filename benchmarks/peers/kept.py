"""Rows that are kept: by network, method and version, on disk as soon as they are measured."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from harness import Row, environment


class Kept:
    """The rows of ``peers.json``, by ``network / method / version``; what others wrote in the meantime is kept too."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "peers.json"
        self.rows: dict[str, Row] = self._read()

    def find(self, network: str, method: str, version: str, limit: float) -> Row | None:
        """The row of just this, unless its process died, starved, or ran out of a smaller limit than there is."""
        row = self.rows.get(key_of(network, method, version))
        ended = "" if row is None else str(row.get("ended", ""))
        short = ended.startswith("out of time") or "time_limit" in ended
        again = ended.startswith("died") or (short and row["limit"] < limit)
        return None if row is None or again or starved(row) else row

    def keep(self, network: str, method: str, version: str, values: Row) -> Row:
        """Add a row and write all of them."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        here = environment()
        row = {"network": network, "method": method, "version": version, **values, "date": now, "code": here["code"]}
        self.rows = {**self._read(), key_of(network, method, version): row}
        scratch = self.path.with_suffix(".part")
        record = {"benchmark": "peers", "written": now, "environment": here, "rows": self.rows}
        scratch.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        scratch.replace(self.path)
        return row

    def _read(self) -> dict[str, Row]:
        if not self.path.exists():
            return {}
        rows: dict[str, Row] = json.loads(self.path.read_text(encoding="utf-8"))["rows"]
        return rows


def starved(row: Row) -> bool:
    """Whether a row ran out of time of which its process had less than half, because the machine was busy."""
    return str(row.get("ended", "")).startswith("out of time") and row.get("cpu", row["limit"]) < 0.5 * row["limit"]


def key_of(network: str, method: str, version: str) -> str:
    """The name of a row."""
    return f"{network} / {method} / {version}"


def latest(rows: Iterable[Row]) -> dict[str, dict[str, Row]]:
    """By network and method the row that was measured last."""
    found: dict[str, dict[str, Row]] = {}
    for row in sorted(rows, key=lambda row: str(row["date"])):
        found.setdefault(row["network"], {})[row["method"]] = row
    return found
