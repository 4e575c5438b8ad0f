"""From a request to a job: submitted once, and watched until lipray has started on the cluster."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import lipray
from lipray.errors import ClusterError, UsageError
from lipray.jobs.address import Address
from lipray.jobs.client import Jobs, next_attempt
from lipray.jobs.driver import ANNOUNCEMENT, EXPECTED, THE_CLUSTER
from lipray.jobs.freight import Freight
from lipray.jobs.job import Job, State, metadata_of
from lipray.jobs.request import Request

STOP_SECONDS = 30
"""How long a driver may take to write what it has when it is told to stop; Ray's default is three seconds."""

START_SECONDS = 20.0
"""How long a submission waits for the driver's first line; a busy cluster may take longer, and that is no fault."""

_ENVIRONMENT = {EXPECTED: lipray.__version__, "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}


@dataclass(frozen=True, slots=True)
class Submission:
    """A job, and whether it was submitted now or was there already."""

    job: Job
    new: bool


def choose_store(given: str | None, address: Address) -> str:
    """Where the driver keeps the run: as given, or ``runs`` in the current folder where the cluster is this machine.

    Raises:
        UsageError: none was given for another machine, it is a relative path there, or its URL holds a password.
    """
    hint = "Give --store a path that the whole cluster sees, such as /shared/runs, or a URL such as s3://bucket/runs."
    if given is not None and "://" in given:
        if ":" in urlsplit(given).netloc.rpartition("@")[0]:
            why = "the URL holds a password, which a job's command line would show"
            raise UsageError("--store", why, hint="Give it to the cluster by the environment or a file of its own.")
        return given
    if address.loopback:
        return str(Path(given or "runs").absolute())
    if given is None:
        why = "is needed: the driver runs on another machine, and keeps the run there"
        raise UsageError("--store", why, hint=hint)
    if not Path(given).is_absolute():
        raise UsageError(
            "--store", f"{given} is a relative path, and the driver runs in a folder that Ray removes", hint=hint
        )
    return given


def submit(
    jobs: Jobs,
    request: Request,
    freight: Freight,
    *,
    store: str,
    command: str = "",
    ship_lipray: bool = False,
    cpus: float = 0,
    watch: bool = True,
) -> Submission:
    """Submit a request, unless its run waits, runs or has succeeded on the cluster already.

    Args:
        jobs: the cluster's.
        request: what to run.
        freight: the files it needs.
        store: where the driver keeps the run.
        command: the command line that submits it, to be repeated when the run is to go on.
        ship_lipray: send this lipray along.
        cpus: CPUs that the driver reserves; with 0 it stays on the head.
        watch: wait until lipray has started there.

    Raises:
        ClusterError: the cluster does not take the job, or lipray does not start on it.
    """
    attempts = jobs.attempts(request.run)
    number = next_attempt(attempts)
    if attempts and attempts[-1].attempt == number:
        return Submission(attempts[-1], new=False)
    with freight.loaded() as folder:
        new = jobs.submit(
            request.submission(number),
            request.entrypoint,
            metadata=metadata_of(
                request,
                attempt=number,
                store=store,
                version=lipray.__version__,
                command=command,
                shipped=folder is not None,
            ),
            env_vars=_ENVIRONMENT,
            working_dir=folder,
            package=Path(lipray.__file__).parent if ship_lipray else None,
            cpus=cpus,
        )
    job = jobs.find(request.submission(number))
    if new and watch:
        job = _watch(jobs, job)
    return Submission(job, new)


def _watch(jobs: Jobs, job: Job) -> Job:
    """The job once its driver has said its first line, or after a while without it."""

    def started(now: Job) -> bool:
        return now.state.ended or (now.state is State.RUNNING and ANNOUNCEMENT in jobs.logs(now))

    now = jobs.wait(job, START_SECONDS, started)
    check_start(jobs, now)
    return now


def check_start(jobs: Jobs, job: Job) -> None:
    """Say clearly where a job failed before lipray could begin.

    Raises:
        ClusterError: it did.
    """
    if job.state is not State.FAILED:
        return
    where = f"{jobs.address.url}: {job.submission_id}"
    if job.exit_code is None:
        raise ClusterError(
            where,
            f"the job was not run to its end ({_line(job.message)})",
            hint=f"See: lipray logs {job.submission_id}",
        )
    if job.exit_code in {126, 127}:
        hint = "Start Ray on the head from the environment that holds lipray, so that its bin folder is on PATH."
        raise ClusterError(where, job.meaning, hint=hint)
    log = jobs.logs(job)
    if ANNOUNCEMENT in log:
        return
    if "No module named" in log and "lipray" in log.rpartition("No module named")[2]:
        hint = f"Install lipray {lipray.__version__} on every node, or submit with --ship-lipray."
        raise ClusterError(where, "the cluster's python has no lipray", hint=hint)
    message, hint = complaint(log)
    message = message.removeprefix(f"{THE_CLUSTER}: ")
    raise ClusterError(where, message or f"the driver did not start (exit code {job.exit_code})", hint=hint)


def complaint(log: str) -> tuple[str, str]:
    """The last error that a driver's log tells, and the hint that goes with it; empty where there is none."""
    error = hint = ""
    for line in log.splitlines():
        if line.startswith("error: "):
            error, hint = line.removeprefix("error: "), ""
        elif line.startswith("hint: ") and error:
            hint = line.removeprefix("hint: ")
    return error, hint


def _line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:300] if lines else "Ray does not say why"
