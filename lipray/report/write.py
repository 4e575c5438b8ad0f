"""The report of a run or a sweep, written: a page, and tables beside it where the run has left none."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from lipray.errors import UsageError
from lipray.report.read_run import RunFacts, read_run
from lipray.report.read_sweep import SweepFacts, read_sweep_folder
from lipray.run.record.folder import MANIFEST, RunFolder, open_run, read_manifest
from lipray.run.record.records import Record, SubproblemRecord
from lipray.run.record.sweep_folder import point_folder
from lipray.run.record.sweep_records import columns
from lipray.run.record.tables import MISSING, csv_bytes, flatten, parquet_bytes
from lipray.run.store.files import LocalFiles

PAGE = "report.html"
"""The page's name in the folder of a run or a sweep."""
Format = Literal["html", "csv", "parquet"]
FORMATS: tuple[Format, ...] = ("html", "csv", "parquet")


class ReportRecord(Record):
    """What a report came to: the page, and the tables beside it, those that the run had written included.

    ``lacking`` says what could not be written, and why.
    """

    schema_version: Literal[1] = 1
    run: str
    state: str
    report: str | None
    tables: tuple[str, ...]
    lacking: str = ""


@dataclass(frozen=True, slots=True)
class _Target:
    """Where the files go; ``own`` is the folder of the run itself, whose tables are not written twice."""

    folder: RunFolder
    page: str
    own: bool

    def path(self, name: str) -> str:
        """The path or URL of a file, as a user would name it."""
        return name if self.folder.place == "." else f"{self.folder.place}/{name}"


def write_report(
    place: str, *, out: str | None = None, formats: Sequence[Format] | None = None, points: bool = False
) -> ReportRecord:
    """Write the report of a run or a sweep.

    Args:
        place: its folder, a path or URL.
        out: the page's file; by default ``report.html`` in the folder. Tables go beside it, under its name.
        formats: what to write; by default all that can be.
        points: of a sweep, the pages of its points too, each in its folder.

    Returns:
        What was written.

    Raises:
        UsageError: a package that a format needs is missing, or ``out`` is no place for a page.
        StoreError: the folder holds no run, cannot be read or written, or its records are damaged.
    """
    wanted = _possible(formats)
    target = _target(open_run(place), out)
    facts = _facts(open_run(place))
    tables = _tables(facts, target, wanted)
    if points and isinstance(facts, SweepFacts):
        for name in sorted(_folders(facts)):
            write_report(f"{facts.place}/{name}", formats=["html"])
    for name, content in tables.items():
        if content is not None:
            target.folder.write(name, content)
    report = None
    if "html" in wanted:
        target.folder.write(target.page, _page(facts, target, next(iter(tables), None)))
        report = target.path(target.page)
    return ReportRecord(
        run=facts.manifest.run,
        state=facts.listed.state,
        report=report,
        tables=tuple(target.path(name) for name in tables),
        lacking="" if formats or "parquet" in wanted else MISSING,
    )


def _possible(formats: Sequence[Format] | None) -> tuple[Format, ...]:
    """The formats to write: those asked for, which must be possible, or those that are."""
    if "html" in (formats or FORMATS):
        try:
            import jinja2  # noqa: F401
            import matplotlib as mpl  # noqa: F401
        except ImportError as fault:
            hint = "Run: pip install 'lipray[report]'. Tables need neither: --format csv."
            raise UsageError("report", f"a page needs {fault.name}, which is not installed", hint=hint) from None
    if parquet_bytes([], []) is not None:
        return tuple(formats or FORMATS)
    if "parquet" in (formats or ()):
        hint = "Run: pip install 'lipray[parquet]'."
        raise UsageError("--format parquet", "needs pyarrow, which is not installed", hint=hint)
    return tuple(formats or ("html", "csv"))


def _target(folder: RunFolder, out: str | None) -> _Target:
    if out is None:
        return _Target(folder, PAGE, own=True)
    name = out.rpartition("/")[2]
    if not name.endswith((".html", ".htm")):
        raise UsageError("--out", f"{out!r} is no name of a page", hint="Give one that ends in .html.")
    if "://" in out:
        return _Target(open_run(out.rpartition("/")[0]), name, own=False)
    parent = Path(out).parent
    if not parent.is_dir() or Path(out).is_dir():
        raise UsageError("--out", f"{out!r} is no file in a folder that is there")
    return _Target(RunFolder(str(parent), LocalFiles(parent)), name, own=False)


def _facts(folder: RunFolder) -> RunFacts | SweepFacts:
    manifest = read_manifest(folder)
    return read_run(folder) if manifest.sweep is None else read_sweep_folder(folder, manifest)


def _tables(facts: RunFacts | SweepFacts, target: _Target, formats: Sequence[Format]) -> dict[str, bytes | None]:
    """Tables by name, the CSV first; ``None`` for those that the run itself has written. None where there is no row."""
    rows: list[Mapping[str, Any]]
    if isinstance(facts, SweepFacts):
        stem, names = "sweep", columns(facts.record)
        rows = [flatten(row) for row in facts.record.rows]
    else:
        stem, names = "subproblems", tuple(SubproblemRecord.model_fields)
        rows = [] if facts.result is None else [flatten(row) for row in facts.result.subproblems]
    if not target.own:
        stem = target.page.rpartition(".")[0]
    found: dict[str, bytes | None] = {}
    for form, encode in (("csv", csv_bytes), ("parquet", parquet_bytes)):
        if rows and form in formats:
            name = f"{stem}.{form}"
            found[name] = None if target.own and name in facts.manifest.files else encode(rows, names)
    return found


def _page(facts: RunFacts | SweepFacts, target: _Target, table: str | None) -> bytes:
    from lipray.report.html.run_page import run_page
    from lipray.report.html.sweep_page import sweep_page

    link = None if table is None else quote(table)
    if isinstance(facts, RunFacts):
        return run_page(facts, link)
    return sweep_page(facts, _links(facts, target), link)


def _links(facts: SweepFacts, target: _Target) -> dict[str, str]:
    """Where the table of a sweep leads to: the reports of its points, or their folders; nowhere from afar."""
    if target.own:
        base = ""
    elif "://" in facts.place or "://" in target.folder.place:
        return {}
    else:
        base = os.path.relpath(facts.place, target.folder.place) + "/"
    return {name: quote(f"{base}{name}/{PAGE if PAGE in held else ''}") for name, held in _folders(facts).items()}


def _folders(facts: SweepFacts) -> dict[str, list[str]]:
    """The points that have a run folder, and what is in it."""
    folder = open_run(facts.place)
    found = {row.point: point_folder(folder, row.point).files.names("") for row in facts.record.rows}
    return {name: held for name, held in found.items() if MANIFEST in held}
