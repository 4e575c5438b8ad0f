"""What the benchmarks share: repeated timing, rows that survive an interruption, tables with their circumstances.

A benchmark is a script that fills one ``Results``, row by row. Every row is on disk as soon as it is measured, so a
benchmark that was interrupted goes on where it stopped. A row is measured again when lipray's code, a version, the
machine or the number of threads is no longer what it was measured with.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import torch

from lipray.report.numbers import bytes_text, lower_text, upper_text
from lipray.run import THREAD_VARIABLES
from lipray.run.record.surroundings import versions
from lipray.run.serial import machine_memory

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("python", "lipray", "torch", "numpy", "scipy", "cvxpy", "clarabel", "ray")
MEASURED = ("model", "verify", "partition", "certify", "compose", "run")
"""Parts of lipray a measurement depends on."""
PATIENCE = 300.0
"""Seconds after which a row is not repeated again."""

T = TypeVar("T")
Row = dict[str, Any]
Show = Callable[[Any], str]


def arguments(description: str) -> argparse.ArgumentParser:
    """The options every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="runs per row; medians are reported")
    parser.add_argument("--only", nargs="+", default=[], metavar="TEXT", help="rows whose name contains one of these")
    parser.add_argument("--fresh", action="store_true", help="measure rows again that are there already")
    parser.add_argument("--short", action="store_true", help="a smoke run: small rows, once each")
    parser.add_argument("--out", type=Path, default=None, metavar="DIR", help="default: benchmarks/results")
    return parser


def timed(work: Callable[[], T], repeat: int) -> tuple[T, list[float]]:
    """Do ``work`` up to ``repeat`` times: its last value, and the seconds of every run."""
    seconds: list[float] = []
    while True:
        start = time.perf_counter()
        value = work()
        seconds.append(time.perf_counter() - start)
        if len(seconds) >= repeat or sum(seconds) > PATIENCE:
            return value, seconds


def median(seconds: Sequence[float]) -> float:
    """The median, to the microsecond."""
    return round(statistics.median(seconds), 6)


def environment(parts: Sequence[str] = MEASURED) -> Row:
    """The machine, the versions and the threads, without anything that names the machine."""
    found = versions()
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": bytes_text(machine_memory()),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {name: found[name] for name in PACKAGES if name in found},
        "threads": {"torch": torch.get_num_threads(), **{v: os.environ.get(v, "") for v in THREAD_VARIABLES}},
        "code": _code(parts),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def _code(parts: Sequence[str]) -> str:
    """Hash of the parts of lipray that measurements depend on."""
    digest = hashlib.sha256()
    for part in parts:
        for path in sorted((ROOT / "lipray" / part).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the Markdown table: its heading, the row's key, and how a value is shown."""

    heading: str
    key: str
    show: Show = str


class Results:
    """The rows of one benchmark, on disk as ``NAME.json`` and ``NAME.md``."""

    def __init__(
        self,
        name: str,
        title: str,
        columns: Sequence[Column],
        options: argparse.Namespace,
        notes: str = "",
        parts: Sequence[str] = MEASURED,
    ) -> None:
        short = ROOT / "runs" / "bench-short"
        folder = options.out or (short if options.short else ROOT / "benchmarks" / "results")
        folder.mkdir(parents=True, exist_ok=True)
        self.name, self.title, self.columns, self.notes = name, title, columns, notes
        self.json, self.markdown = folder / f"{name}.json", folder / f"{name}.md"
        self.repeat = 1 if options.short else options.repeat
        self._only, self._fresh = options.only, options.fresh or options.short
        self._environment = environment(parts)
        identity = json.dumps(self._environment, sort_keys=True)
        self._identity = hashlib.sha256(identity.encode()).hexdigest()[:12]
        stored = json.loads(self.json.read_text(encoding="utf-8")) if self.json.exists() else {}
        self.rows: dict[str, Row] = stored.get("rows", {})
        self._skipped: dict[str, str] = {}
        self._load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None

    def row(self, key: str, measure: Callable[[], Row]) -> None:
        """Measure a row, unless it is not asked for or is there already."""
        if self._only and not any(text in key for text in self._only):
            return
        if not self.wants(key):
            print(f"{self.name}: {key}: measured before", flush=True)
            return
        print(f"{self.name}: {key} ...", flush=True)
        start = time.perf_counter()
        values = measure()
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self.rows[key] = {**values, "date": now, "identity": self._identity, "repeat": self.repeat}
        self._write()
        shown = ", ".join(f"{c.heading} {_cell(c, values)}" for c in self.columns if values.get(c.key) is not None)
        print(f"  {shown} ({time.perf_counter() - start:.1f} s in all)", flush=True)

    def wants(self, key: str) -> bool:
        """Whether a row is asked for and not there already."""
        if self._only and not any(text in key for text in self._only):
            return False
        known = self.rows.get(key)
        fits = known and known["identity"] == self._identity and known["repeat"] == self.repeat
        return self._fresh or not fits

    def derive(self, key: str, values: Row, like: Row) -> None:
        """Set a row that follows from others; date and circumstances are those of ``like``."""
        self.rows[key] = {**values, **{name: like[name] for name in ("date", "identity", "repeat")}}
        self._write()

    def skip(self, key: str, why: str) -> None:
        """Say that a row cannot be measured here."""
        if self._only and not any(text in key for text in self._only):
            return
        print(f"{self.name}: {key}: skipped, {why}", flush=True)
        self._skipped[key] = why

    def close(self, order: Sequence[str]) -> int:
        """Write the tables once more, the rows of ``order`` and no others; 1 if one of them failed, else 0."""
        self.rows = {key: self.rows[key] for key in order if key in self.rows}
        self._write()
        print(f"{self.name}: {self.markdown}", flush=True)
        missed = [key for key, row in self.rows.items() if str(row.get("verdict", "")).startswith("FAIL")]
        for key in missed:
            print(f"{self.name}: {key}: {self.rows[key]['verdict']}", flush=True)
        return 1 if missed else 0

    def _write(self) -> None:
        record = {
            "benchmark": self.name,
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            "environment": self._environment,
            "load_before": self._load,
            "rows": self.rows,
            "skipped": self._skipped,
        }
        _replace(self.json, json.dumps(record, indent=1) + "\n")
        _replace(self.markdown, self._page())

    def _page(self) -> str:
        here = self._environment
        threads = ", ".join(f"{name} {value}" for name, value in here["threads"].items() if value)
        lines = [f"# {self.title}", "", *table(self.columns, self.rows, self._identity), ""]
        if any(row["identity"] != self._identity for row in self.rows.values()):
            lines += ["† measured with other code, versions, threads or on another machine than stated below.", ""]
        lines += [*(f"- {key}: skipped, {why}." for key, why in self._skipped.items()), ""] if self._skipped else []
        lines += [self.notes] if self.notes else []
        dates = sorted(row["date"] for row in self.rows.values())
        lines += [
            f"- machine: {here['cpu']}, {here['cores']} cores, {here['memory']}, {here['system']}",
            "- versions: " + ", ".join(f"{name} {version}" for name, version in here["versions"].items()),
            f"- threads: {threads}",
            f"- measured: {dates[0]} to {dates[-1]} (UTC)" if dates else "- measured: nothing",
            f"- load average before: {self._load}; seconds are medians of up to {self.repeat} run(s) per row",
        ]
        return "\n".join(lines) + "\n"


def table(columns: Sequence[Column], rows: Mapping[str, Row], identity: str = "") -> list[str]:
    """Rows as a Markdown table; those of another ``identity`` are marked."""
    lines = ["| " + " | ".join(column.heading for column in columns) + " |"]
    lines.append("|" + "|".join("---" if column.show is str else "---:" for column in columns) + "|")
    for row in rows.values():
        cells = [_cell(column, row) for column in columns]
        if identity and row["identity"] != identity:
            cells[0] += " †"
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _cell(column: Column, row: Row) -> str:
    value = row.get(column.key)
    return "" if value is None else column.show(value)


def _replace(path: Path, text: str) -> None:
    scratch = path.with_suffix(".part")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)


def upper(value: float) -> str:
    """An upper bound, rounded up at the seventh digit."""
    return upper_text(value, 7)


def lower(value: float) -> str:
    """A lower bound, rounded down at the seventh digit."""
    return lower_text(value, 7)


def number(value: float) -> str:
    """A known value, seven digits."""
    return f"{value:.7g}"


def seconds(value: float) -> str:
    """Seconds with the digits that mean something."""
    return f"{value:.3f}" if value < 1 else f"{value:.1f}"


def relative(value: float) -> str:
    """A relative difference with its sign."""
    return "∞" if math.isinf(value) else f"{value:+.1e}"


def count(value: int) -> str:
    """A whole number."""
    return f"{value:,}"


def share(value: float) -> str:
    """A part of a whole that can be tiny, three digits."""
    return f"{value:.3g}"


def mebibytes(value: float) -> str:
    """Bytes as MiB."""
    return f"{value / 2**20:,.0f}"


def ratio(value: float) -> str:
    """A ratio, three digits."""
    return f"{value:.3f}" if value < 10 else f"{value:.0f}"
