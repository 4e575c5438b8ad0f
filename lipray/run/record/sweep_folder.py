"""The folder of a sweep: its outcome, and below it a run folder per point."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from lipray.errors import StoreError
from lipray.run.record.folder import MANIFEST, RESULT, RunFolder, read_manifest, read_result
from lipray.run.record.records import ManifestRecord, ResultRecord
from lipray.run.record.sweep_records import SweepRecord

SWEEP = "sweep.json"
"""The file of a sweep folder that holds its outcome."""


@dataclass(frozen=True, slots=True)
class KnownPoints:
    """What a sweep's folders hold: results, and how points without one ended (state and reason), by point."""

    results: Mapping[str, ResultRecord]
    endings: Mapping[str, tuple[str, str]]


def point_folder(folder: RunFolder, name: str) -> RunFolder:
    """The run folder of a point, below the sweep's."""
    return RunFolder(f"{folder.place}/{name}", folder.files.below(name))


def read_sweep(folder: RunFolder, manifest: ManifestRecord | None = None) -> SweepRecord | None:
    """The outcome of a sweep, ``None`` where it has none yet; compared with the digest that its ``manifest`` has.

    Raises:
        StoreError: it cannot be read, or is not what the sweep wrote.
    """
    content = folder.read(SWEEP)
    if content is None:
        return None
    if manifest is not None and hashlib.sha256(content).hexdigest() != manifest.files.get(SWEEP):
        hint = "Resume the sweep: it is written anew."
        raise StoreError(f"{folder.place}/{SWEEP}", "is not the file that the sweep wrote", hint=hint)
    try:
        return SweepRecord.model_validate_json(content)
    except ValueError as fault:
        raise StoreError(
            f"{folder.place}/{SWEEP}", f"is not one of this version ({str(fault).splitlines()[0]})"
        ) from None


def read_points(folder: RunFolder, manifest: ManifestRecord) -> KnownPoints:
    """What the points of a sweep have left so far; one whose files are damaged counts as failed, with the reason."""
    results: dict[str, ResultRecord] = {}
    endings: dict[str, tuple[str, str]] = {}
    for point in () if manifest.sweep is None else manifest.sweep.points:
        there = point_folder(folder, point.point)
        try:
            if there.read(MANIFEST) is None:
                continue
            known = read_manifest(there)
            if RESULT in known.files:
                results[point.point] = read_result(there, known)
            elif known.state == "failed":
                endings[point.point] = ("failed", known.why)
        except StoreError as fault:
            endings[point.point] = ("failed", fault.describe())
    return KnownPoints(results, endings)
