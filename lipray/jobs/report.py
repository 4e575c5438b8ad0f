"""What is known of a job: from the cluster, and of its run from the store where that is seen from here."""

from __future__ import annotations

from datetime import UTC, datetime

from lipray.jobs.job import Job
from lipray.run.record.folder import PROGRESS, read_result, run_folder
from lipray.run.record.records import ProgressRecord, Record, ResultRecord


class JobReport(Record):
    """A job as ``lipray status --json`` tells it; times are UTC in ISO 8601.

    ``progress`` and ``result`` come from the store, and are null where it is not seen from here or holds none yet;
    ``last_line`` is the log's, where there is no progress to tell.
    """

    submission_id: str
    run_id: str
    attempt: int
    state: str
    model: str
    store: str
    started: str
    ended: str | None
    seconds: float | None
    exit_code: int | None
    meaning: str
    message: str
    lipray_version: str
    config_hash: str
    progress: ProgressRecord | None = None
    last_line: str = ""
    result: ResultRecord | None = None


def describe(
    job: Job, *, progress: ProgressRecord | None = None, result: ResultRecord | None = None, last_line: str = ""
) -> JobReport:
    """A job as a record."""
    failed = job.exit_code is None and job.state.ended and job.meaning == ""
    return JobReport(
        submission_id=job.submission_id,
        run_id=job.run,
        attempt=job.attempt,
        state=job.state.value,
        model=job.model,
        store=job.store,
        started=_time(job.started),
        ended=None if job.ended is None else _time(job.ended),
        seconds=None if job.ended is None else round(job.ended - job.started, 3),
        exit_code=job.exit_code,
        meaning=job.meaning,
        # Of a driver that ended by itself Ray's message is but the end of its log.
        message=job.message if failed else "",
        lipray_version=job.version,
        config_hash=job.config_hash,
        progress=progress,
        result=result,
        last_line=last_line,
    )


def read_progress(job: Job) -> ProgressRecord | None:
    """How far the run of a job is; ``None`` where its store is not seen from here, or holds nothing yet."""
    try:
        content = run_folder(job.store, job.run).read(PROGRESS)
        return None if content is None else ProgressRecord.model_validate_json(content)
    except Exception:  # noqa: BLE001 - a store that cannot be read from here is no fault
        return None


def read_bound(job: Job) -> ResultRecord | None:
    """The bound that a job left; ``None`` where its store is not seen from here, or holds none."""
    try:
        return read_result(run_folder(job.store, job.run))
    except Exception:  # noqa: BLE001 - a store that cannot be read from here is no fault
        return None


def last_line(log: str) -> str:
    """The last line of a log that says something."""
    return next((line.strip() for line in reversed(log.splitlines()) if line.strip()), "")


def run_place(job: Job) -> str:
    """Where the run of a job is kept, as the cluster names it."""
    return f"{job.store.rstrip('/')}/{job.run}"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
