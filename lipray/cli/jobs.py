"""``lipray status``, ``logs`` and ``stop``: the jobs of a cluster."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from lipray.cli.job_options import admitted, job_options, reach

if TYPE_CHECKING:
    from lipray.jobs.client import Jobs
    from lipray.jobs.job import Job
    from lipray.jobs.report import JobReport

STOP_GRACE = 15.0
"""Seconds beyond a driver's own time to stop that Ray may take to say that it has stopped."""


@click.command("status")
@click.argument("job", metavar="[JOB]", required=False)
@job_options
def status_command(job: str | None, *, address: str | None, insecure: bool, as_json: bool, debug: bool) -> None:
    """Show where JOB is and how far its run; without JOB, all jobs of lipray on the cluster.

    A run's id means its latest attempt.
    """
    del debug  # read by the group
    with reach(*admitted(address, insecure=insecure)) as jobs:
        reports = [report(jobs, item) for item in ((jobs.find(job),) if job else jobs.all())]
    if as_json:
        text = reports[0].model_dump_json() if job else f"[{','.join(item.model_dump_json() for item in reports)}]"
        click.echo(text)
    else:
        _show(reports, single=job is not None)


@click.command("logs")
@click.argument("job", metavar="JOB")
@click.option("--follow", "-f", is_flag=True, help="Go on until the job has ended.")
@job_options
def logs_command(job: str, *, follow: bool, address: str | None, insecure: bool, as_json: bool, debug: bool) -> None:
    """Print what the driver of JOB has printed: its progress, and its result."""
    del debug  # read by the group
    out = sys.stdout

    def write(text: str) -> None:
        try:
            out.write(text)
            out.flush()
        except BrokenPipeError:
            # Whoever read has gone; that is no fault of the cluster's, and nothing to say more about.
            os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
            raise SystemExit(1) from None

    with reach(*admitted(address, insecure=insecure)) as jobs:
        found = jobs.find(job)
        if follow and not as_json:
            jobs.follow(found, write)
            return
        if follow:
            jobs.follow(found, lambda _text: None)
        text = jobs.logs(found)
    if as_json:
        import json

        click.echo(json.dumps({"submission_id": found.submission_id, "run_id": found.run, "log": text}))
    else:
        write(text)


@click.command("stop")
@click.argument("job", metavar="JOB")
@job_options
def stop_command(job: str, *, address: str | None, insecure: bool, as_json: bool, debug: bool) -> None:
    """Stop JOB: its driver writes the best valid bound so far, and a later submission goes on from there."""
    del debug  # read by the group
    from lipray.jobs.submit import STOP_SECONDS

    with reach(*admitted(address, insecure=insecure)) as jobs:
        found = jobs.find(job)
        running = not found.state.ended
        if running:
            jobs.stop(found)
            found = jobs.wait(found, STOP_SECONDS + STOP_GRACE)
        told = report(jobs, found)
    if as_json:
        click.echo(told.model_dump_json())
        return
    _show([told], single=True)
    if not found.state.ended:
        click.echo("It has not stopped yet; see: lipray status.", err=True)
    elif not running:
        click.echo("It had ended before.", err=True)
    else:
        click.echo(how_to_go_on(found), err=True)


def report(jobs: Jobs, job: Job) -> JobReport:
    """A job, and of its run what the store or else its log tells."""
    from lipray.errors import ClusterError
    from lipray.jobs.job import State
    from lipray.jobs.report import describe, last_line, read_bound, read_progress

    result = read_bound(job) if job.state.ended else None
    progress = None if result is not None else read_progress(job)
    line = ""
    if result is None and progress is None and job.state is not State.PENDING:
        with suppress(ClusterError):  # the node that has the log may have gone
            line = last_line(jobs.logs(job))
    return describe(job, result=result, progress=progress, last_line=line)


def how_to_go_on(job: Job) -> str:
    """The command that takes up a run that was stopped."""
    from lipray.jobs.report import run_place

    again = f"lipray {job.command}" if job.command else "the same lipray submit"
    resume = "" if job.shipped else f"\nor, on a machine of the cluster: lipray resume {run_place(job)}"
    return f"To go on: {again}{resume}"


def _show(reports: Sequence[JobReport], *, single: bool) -> None:
    from lipray.cli.console import print_result
    from lipray.jobs.table import job_table, jobs_table

    if single:
        print_result(job_table(reports[0]))
    elif reports:
        print_result(jobs_table(reports))
    else:
        click.echo("lipray has no jobs there", err=True)
