"""All that a run folder tells, whatever the run's state."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ValidationError

from lipray.report.course import Course, course_of
from lipray.run.record.folder import PLAN, RESULT, RunFolder, read_manifest, read_result
from lipray.run.record.history import read_history
from lipray.run.record.listing import ListedRun, describe_run
from lipray.run.record.plan_record import PlanRecord
from lipray.run.record.records import ManifestRecord, ResultRecord


@dataclass(frozen=True, slots=True)
class RunFacts:
    """A run as its folder tells it; ``result`` and ``plan`` are ``None`` where there is none (yet).

    ``listed`` is how it stands: its state, the bracket so far, and how far it is.
    """

    place: str
    manifest: ManifestRecord
    listed: ListedRun
    result: ResultRecord | None
    plan: PlanRecord | None
    course: Course


def read_run(folder: RunFolder) -> RunFacts:
    """Read a run folder.

    Raises:
        StoreError: it is none, cannot be read, or holds a result that the run did not write.
    """
    manifest = read_manifest(folder)
    return RunFacts(
        place=folder.place,
        manifest=manifest,
        listed=describe_run(folder),
        result=read_result(folder, manifest) if RESULT in manifest.files else None,
        plan=_plan(folder),
        course=course_of(read_history(folder)),
    )


def _plan(folder: RunFolder) -> PlanRecord | None:
    content = folder.read(PLAN)
    if content is None:
        return None
    try:
        return PlanRecord.model_validate_json(content)
    except ValidationError:  # a report without it lacks the reasons for the methods, no more
        return None
