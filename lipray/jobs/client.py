"""Ray's Jobs API, as far as lipray uses it: jobs as values, and every fault as one ClusterError.

Ray is imported when a client is made, not before.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lipray.errors import ClusterError, UsageError
from lipray.jobs.address import VARIABLE, Address
from lipray.jobs.greeting import NO_RAY, greet
from lipray.jobs.job import Job, State, read_job
from lipray.jobs.request import submission_id
from lipray.jobs.token import headers

_TALKATIVE = ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")
"""Loggers that tell of every upload."""

RECONNECTS = 5
PAUSE = 2.0
"""How often, and after how many seconds, a log that broke off is taken up again."""


class Jobs:
    """The jobs of lipray on one cluster."""

    def __init__(self, address: Address, token: str | None) -> None:
        self.address = address
        self._token = token
        self._client = _client(address, token)

    def all(self) -> tuple[Job, ...]:
        """All jobs of lipray that the cluster knows, the oldest first.

        Raises:
            ClusterError: the cluster does not answer.
        """
        with self._asking("list its jobs"):
            found = self._client.list_jobs()
        jobs = [job for job in map(read_job, found) if job is not None]
        return tuple(sorted(jobs, key=lambda job: (job.started, job.attempt)))

    def attempts(self, run: str) -> tuple[Job, ...]:
        """The attempts of a run, the first one first.

        Raises:
            ClusterError: the cluster does not answer.
        """
        return tuple(sorted((job for job in self.all() if job.run == run), key=lambda job: job.attempt))

    def find(self, name: str) -> Job:
        """The job that is meant by a submission id; by a run's id, its latest attempt; by that and ``-1``, its first.

        Raises:
            UsageError: lipray has no such job on the cluster.
            ClusterError: the cluster does not answer.
        """
        jobs = self.all()
        ours = [job for job in jobs if job.run == name]
        if ours:
            return max(ours, key=lambda job: job.attempt)
        for job in jobs:
            if name in {job.submission_id, f"{job.run}-{job.attempt}"}:
                return job
        known = ", ".join(job.submission_id for job in jobs[-3:])
        hint = f"The latest are {known}." if known else "lipray has none there."
        raise UsageError("JOB", f"{self.address.url} has no job {name!r} of lipray", hint=f"{hint} See: lipray status.")

    def again(self, job: Job) -> Job:
        """The same job as it is now.

        Raises:
            ClusterError: the cluster does not answer, or has forgotten the job.
        """
        with self._asking(f"tell the state of {job.submission_id}"):
            now = read_job(self._client.get_job_info(job.submission_id))
        if now is None:
            raise ClusterError(self.address.url, f"the cluster no longer knows {job.submission_id}")
        return now

    def submit(
        self,
        name: str,
        entrypoint: str,
        *,
        metadata: Mapping[str, str],
        env_vars: Mapping[str, str],
        working_dir: Path | None,
        package: Path | None,
        cpus: float,
    ) -> bool:
        """Submit a job under a name of ours; false where the cluster has one of that name already.

        Raises:
            ClusterError: the cluster does not answer, or does not take the job.
        """
        environment: dict[str, Any] = {"env_vars": dict(env_vars)}
        if working_dir is not None:
            environment["working_dir"] = str(working_dir)
        if package is not None:
            environment["py_modules"] = [str(package)]
        try:
            with self._asking("take the job"):
                self._client.submit_job(
                    entrypoint=entrypoint,
                    submission_id=name,
                    runtime_env=environment,
                    metadata=dict(metadata),
                    entrypoint_num_cpus=cpus or None,
                )
        except ClusterError as fault:
            if f"{name} already exists" in str(fault.__cause__):
                return False
            raise
        return True

    def logs(self, job: Job) -> str:
        """What a job's driver has printed so far.

        Raises:
            ClusterError: the cluster does not answer.
        """
        with self._asking(f"give the log of {job.submission_id}"):
            text: str = self._client.get_job_logs(job.submission_id)
        return text

    def follow(self, job: Job, write: Callable[[str], None]) -> None:
        """Hand on what a job's driver prints, from its beginning, until the job has ended.

        Raises:
            ClusterError: the cluster has gone.
        """
        written = 0

        async def pump() -> None:
            skip = written
            async for text in self._client.tail_job_logs(job.submission_id):
                hand_on(text[skip:])
                skip = max(0, skip - len(text))

        def hand_on(text: str) -> None:
            nonlocal written
            if text:
                write(text)
                written += len(text)

        for attempt in range(RECONNECTS + 1):
            try:
                with self._asking(f"give the log of {job.submission_id}"):
                    asyncio.run(pump())
            except ClusterError:
                if attempt == RECONNECTS:
                    raise
                time.sleep(PAUSE)
                greet(self.address, self._token)
            else:
                # What was printed last may be in the log only after Ray has seen the end.
                hand_on(self.logs(job)[written:])
                return

    def stop(self, job: Job) -> None:
        """Ask Ray to stop a job.

        Raises:
            ClusterError: the cluster does not answer.
        """
        with self._asking(f"stop {job.submission_id}"):
            self._client.stop_job(job.submission_id)

    def wait(self, job: Job, seconds: float, until: Callable[[Job], bool] = lambda job: job.state.ended) -> Job:
        """The job once ``until`` holds, or as it is after so many seconds.

        Raises:
            ClusterError: the cluster does not answer.
        """
        end = time.monotonic() + seconds
        now = self.again(job)
        while not until(now) and time.monotonic() < end:
            time.sleep(0.5)
            now = self.again(job)
        return now

    @contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        """Whatever Ray, or what carries its messages, raises is a fault of the cluster, in one line."""
        try:
            yield
        except ClusterError:
            raise
        except Exception as fault:
            greet(self.address, self._token)  # the usual reasons, in clearer words
            raise ClusterError(self.address.url, f"the cluster does not {what} ({_line(fault)})") from fault


def next_attempt(attempts: tuple[Job, ...]) -> int:
    """The number of the attempt that a submission makes.

    The latest one's own where it waits, runs or has succeeded; otherwise the next.
    """
    if not attempts:
        return 1
    latest = attempts[-1]
    return latest.attempt + 1 if latest.state in {State.FAILED, State.STOPPED} else latest.attempt


def _client(address: Address, token: str | None) -> Any:
    """Ray's own client, which takes the address from the environment before it takes it from its argument."""
    if importlib.util.find_spec("ray") is None or importlib.util.find_spec("aiohttp") is None:
        raise ClusterError(address.url, "jobs need ray[default], which is not installed here", hint=f"Run: {NO_RAY}")
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = address.url
    if address.loopback:
        _no_proxy(address.host)
    try:
        from ray.job_submission import JobSubmissionClient

        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING)
        bundle = os.environ.get("REQUESTS_CA_BUNDLE") or True
        return JobSubmissionClient(address.url, headers=headers(token), verify=bundle)
    except ImportError as fault:
        why = f"Ray cannot be imported ({_line(fault)})"
        raise ClusterError(address.url, why, hint=f"Run: {NO_RAY}") from None
    except Exception as fault:  # noqa: BLE001 - of many kinds
        greet(address, token)
        raise ClusterError(address.url, f"Ray makes no client for it ({_line(fault)})") from None
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def _no_proxy(host: str) -> None:
    """Loopback is never reached through a proxy, which would see the token."""
    known = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if host not in known.split(","):
        os.environ["no_proxy"] = f"{known},{host}".lstrip(",")


def _line(fault: BaseException) -> str:
    """The line of a fault that tells most: of a traceback that Ray passes on, the last."""
    lines = [line.strip() for line in str(fault).splitlines() if line.strip(" .")]
    if not lines:
        return type(fault).__name__
    return (lines[-1] if "Traceback" in str(fault) else lines[0])[:300]


__all__ = ["Jobs", "next_attempt", "submission_id"]
