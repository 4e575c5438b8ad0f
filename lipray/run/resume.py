"""Going on with a run by its folder alone, or by its identifier and the same request."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from lipray.config import EstimateConfig
from lipray.errors import StoreError, UsageError
from lipray.run.record.folder import MANIFEST, PROGRESS, RunFolder, read_manifest
from lipray.run.record.records import ManifestRecord, ProgressRecord, SweepPart
from lipray.run.session import Continued
from lipray.run.store.objects import ALGORITHM

ELSEWHERE = frozenset({"executor", "address", "workers", "threads", "elastic", "stuck_after", "out", "store", "run_id"})
"""Options that say where a run is done and kept, not what it is."""


def find_run(folder: RunFolder) -> Continued | None:
    """An earlier attempt at a run, ``None`` where there was none.

    Raises:
        StoreError: there was, and its manifest cannot be read.
    """
    if folder.read(MANIFEST) is None:
        return None
    manifest = read_manifest(folder)
    return Continued(folder, manifest, _spent(folder))


def configuration_of(manifest: ManifestRecord, place: str) -> EstimateConfig:
    """The configuration that a run was made with, relative names taken from where it was made.

    Raises:
        StoreError: this version of lipray knows no such configuration.
    """
    values = dict(manifest.config)
    base = Path(manifest.request.folder) if manifest.request is not None else Path()
    for name in ("weights", "data", "out"):
        if isinstance(values.get(name), str):
            values[name] = base / str(values[name])
    values["store"] = manifest.store
    try:
        return EstimateConfig.model_validate(values)
    except ValidationError as fault:
        first = fault.errors(include_url=False)[0]
        why = f"its option {'.'.join(map(str, first['loc']))} is not known to this version ({first['msg']})"
        raise StoreError(f"{place}/{MANIFEST}", why) from None


def same_run(known: Continued, config: EstimateConfig, content: str) -> None:
    """Refuse to go on with a run as if it were another one.

    Args:
        known: the earlier attempt.
        config: what is asked for now.
        content: content hash of the network, its outputs selected.

    Raises:
        UsageError: the options, the weights, or the algorithm are others; it says which.
    """
    manifest, place = known.manifest, known.folder.place
    if manifest.sweep is not None:
        raise UsageError(place, "is a sweep", hint="Go on with it by lipray resume, or choose another name.")
    hint = "Start a new run; what this one has in common with it is found in the store."
    then = configuration_of(manifest, place)
    asked, before = config.model_dump(), then.model_dump()
    changed = [name for name in asked if name not in ELSEWHERE and not _equal(asked[name], before[name])]
    if changed:
        told = ", ".join(f"{name} was {before[name]} and is {asked[name]}" for name in changed)
        raise UsageError(place, f"is a run with other options: {told}", hint=hint)
    if manifest.model.hash != content:
        raise UsageError(place, "is a run of another network: the graph or the weights have changed", hint=hint)
    if manifest.algorithm != ALGORITHM:
        then_version = manifest.versions.get("lipray", "another version")
        raise UsageError(place, f"was begun by lipray {then_version}, whose algorithms are others", hint=hint)


def same_sweep(known: Continued, part: SweepPart, config: EstimateConfig, content: str) -> None:
    """Refuse to go on with a sweep as if it were another one.

    Args:
        known: the earlier attempt.
        part: the points that are asked for now.
        config: that of the first point that can be asked for.
        content: content hash of its network.

    Raises:
        UsageError: the values, the options, the weights, or the algorithm are others; it says which.
    """
    manifest, place = known.manifest, known.folder.place
    if manifest.sweep is None:
        raise UsageError(place, "is a run, not a sweep", hint="Choose another name.")
    if manifest.sweep.axes != part.axes:
        hint = "Start a new sweep; what this one has in common with it is found in the store."
        raise UsageError(place, "is a sweep of other values", hint=hint)
    first = next(point for point in manifest.sweep.points if not point.refused)
    alone = manifest.model_copy(update={"config": manifest.config | first.options, "sweep": None})
    same_run(Continued(known.folder, alone), config, content)


def sweep_configurations(manifest: ManifestRecord, place: str) -> dict[str, EstimateConfig]:
    """The configurations of a sweep's points, of those that have one.

    Raises:
        StoreError: this version of lipray knows no such configuration.
    """
    points = () if manifest.sweep is None else manifest.sweep.points
    return {
        point.point: configuration_of(manifest.model_copy(update={"config": manifest.config | point.options}), place)
        for point in points
        if not point.refused
    }


def _equal(now: object, before: object) -> bool:
    if isinstance(now, Path) and isinstance(before, Path):
        return now.name == before.name  # its content is in the network's hash, or in the task's
    return now == before


def _spent(folder: RunFolder) -> float:
    content = folder.read(PROGRESS)
    if content is None:
        return 0.0
    try:
        return ProgressRecord.model_validate_json(content).seconds
    except ValidationError:
        return 0.0
