"""All that the folder of a sweep tells, whatever its state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lipray.errors import StoreError
from lipray.report.course import Course, course_of
from lipray.run.record.folder import RunFolder
from lipray.run.record.history import read_history
from lipray.run.record.listing import ListedRun, describe_run
from lipray.run.record.records import ManifestRecord, ResultRecord
from lipray.run.record.sweep_folder import SWEEP, KnownPoints, read_points, read_sweep
from lipray.run.record.sweep_records import SweepRecord, sweep_rows, totals


@dataclass(frozen=True, slots=True)
class SweepFacts:
    """A sweep as its folder tells it, with the results of its points.

    ``final``: the record is the one that the sweep left at its end, otherwise it is made of what its points left.
    """

    place: str
    manifest: ManifestRecord
    listed: ListedRun
    record: SweepRecord
    results: Mapping[str, ResultRecord]
    course: Course
    final: bool


def read_sweep_folder(folder: RunFolder, manifest: ManifestRecord) -> SweepFacts:
    """Read the folder of a sweep.

    Raises:
        StoreError: it holds no sweep, cannot be read, or its outcome is not what the sweep wrote.
    """
    if manifest.sweep is None:
        raise StoreError(folder.place, "holds a run and no sweep")
    known = read_points(folder, manifest)
    course = course_of(read_history(folder))
    listed = describe_run(folder)
    final = read_sweep(folder, manifest) if SWEEP in manifest.files else None
    record = final or _so_far(manifest, known, listed)
    return SweepFacts(folder.place, manifest, listed, record, known.results, course, final is not None)


def _so_far(manifest: ManifestRecord, known: KnownPoints, listed: ListedRun) -> SweepRecord:
    """What the points have left until now, as a record of the sweep."""
    assert manifest.sweep is not None  # noqa: S101 (looked at before)
    distinct, core_seconds = totals(known.results)
    threads = manifest.config.get("threads")
    return SweepRecord(
        sweep=manifest.run,
        model=manifest.model,
        state=manifest.state,
        axes=manifest.sweep.axes,
        rows=sweep_rows(manifest.sweep, known.results, known.endings),
        executor=str(manifest.config.get("executor", "")),
        threads=threads if isinstance(threads, int) else None,
        distinct=distinct,
        core_seconds=core_seconds,
        seconds=listed.seconds,
    )
