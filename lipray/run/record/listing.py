"""The runs of a store, and how they stand."""

from __future__ import annotations

import time
from collections.abc import Iterator

from pydantic import ValidationError

from lipray.errors import StoreError
from lipray.run.record.folder import PROGRESS, RunFolder, read_manifest, read_result, run_folder
from lipray.run.record.records import Figure, ManifestRecord, ProgressRecord, Record
from lipray.run.store.files import open_files, reason

LOST = 120.0
"""Seconds without a sign of life after which a run's driver is taken for lost."""
OTHERS = frozenset({"objects", "quarantine", "journal"})


class ListedRun(Record):
    """One run: ``state`` as in its manifest, ``lost`` where its driver has ended without a word, ``damaged``.

    ``seconds`` it took so far, ``done`` of ``tasks``, and the bracket as it stands: of a sweep of ``points``, the best.
    """

    run: str
    state: str
    model: str = ""
    method: str = ""
    started: str = ""
    seconds: float = 0.0
    done: int = 0
    tasks: int = 0
    upper: Figure = None
    lower: float = 0.0
    attempt: int = 1
    why: str = ""
    points: int = 0


def list_runs(store: str) -> Iterator[ListedRun]:
    """The runs of a store, oldest first.

    Raises:
        UsageError: the store's protocol is not known.
        StoreError: the store cannot be read.
    """
    try:
        names = open_files(store).names("") if "://" in store else run_folder(store, ".").files.names("")
    except OSError as fault:
        raise StoreError(store, f"cannot be read ({reason(fault)})") from None
    for name in names:
        if name not in OTHERS:
            listed = _listed(run_folder(store, name))
            if listed is not None:
                yield listed


def describe_run(folder: RunFolder) -> ListedRun:
    """How one run stands.

    Raises:
        StoreError: there is none, or it cannot be read.
    """
    manifest = read_manifest(folder)
    return _described(folder, manifest)


def _listed(folder: RunFolder) -> ListedRun | None:
    try:
        if folder.read("manifest.json") is None:
            return None
        return describe_run(folder)
    except StoreError as fault:
        return ListedRun(run=folder.name, state="damaged", why=fault.describe())


def _described(folder: RunFolder, manifest: ManifestRecord) -> ListedRun:
    progress = _progress(folder)
    state, why = str(manifest.state), manifest.why
    if state == "running" and (progress is None or time.time() - progress.time > LOST):
        state, why = "lost", "its driver has ended without a word; lipray resume goes on"
    listed = ListedRun(
        run=folder.name,
        state=state,
        model=manifest.model.name,
        method=str(manifest.config.get("method", "")),
        started=manifest.started,
        attempt=manifest.attempt,
        why=why,
        points=0 if manifest.sweep is None else len(manifest.sweep.points),
    )
    if progress is not None:
        listed = listed.model_copy(
            update={
                "seconds": progress.seconds,
                "done": progress.done,
                "tasks": progress.tasks,
                "upper": progress.upper,
                "lower": progress.lower,
            }
        )
    if "result.json" in manifest.files:
        result = read_result(folder, manifest)
        listed = listed.model_copy(update={"upper": result.upper, "lower": result.lower})
    return listed


def _progress(folder: RunFolder) -> ProgressRecord | None:
    content = folder.read(PROGRESS)
    if content is None:
        return None
    try:
        return ProgressRecord.model_validate_json(content)
    except ValidationError:
        return None
