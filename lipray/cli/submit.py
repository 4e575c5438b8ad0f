"""``lipray submit``: an estimate as a job of a Ray cluster."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lipray.cli.job_options import ADDRESS, INSECURE, Command, admitted, reach
from lipray.cli.options import configure, estimate_options

if TYPE_CHECKING:
    from lipray.jobs.client import Jobs
    from lipray.jobs.job import Job
    from lipray.jobs.submit import Submission

_PATH = click.Path(path_type=Path)

_OWN = (
    ADDRESS,
    INSECURE,
    click.option("--name", metavar="N", help="Of the run, beside the hash of its content. Default: the model's."),
    click.option("--wait", is_flag=True, help="Follow the log on stderr; end with the driver's result and exit code."),
    click.option("--working-dir", type=_PATH, metavar="DIR", help="Ship this folder; the job runs in a copy of it."),
    click.option("--no-ship", is_flag=True, help="Ship nothing: all paths are absolute, and ones on the cluster."),
    click.option(
        "--ship-lipray", is_flag=True, help="Send this lipray along, to a cluster that has only what it needs."
    ),
    click.option("--driver-cpus", type=float, default=0, metavar="N", help="Reserve CPUs for the driver, on any node."),
    click.option("--any-version", is_flag=True, help="Submit although Ray or Python there are other versions."),
)

_ELSEWHERE = frozenset({"executor", "address", "workers", "out", "run_id", "no_store", "quiet"})
"""Options of an estimate that a job decides itself."""

_RESULT = "Lipschitz constant (l2) of "
"""How the result begins that a driver prints at its end."""

_SETTLE = 60.0
"""Seconds that Ray may take to tell a job's end after its log has ended."""


def submit_options(command: Command) -> Command:
    """Options of ``lipray submit``: those of ``estimate`` that a job does not decide itself, and its own."""
    command = estimate_options(command)
    kept = [option for option in command.__click_params__ if option.name not in _ELSEWHERE]  # type: ignore[attr-defined]
    command.__click_params__ = kept  # type: ignore[attr-defined]
    for option in reversed(_OWN):
        command = option(command)
    return command


@click.command("submit")
@submit_options
def submit_command(
    model: str,
    *,
    config: Path | None,
    address: str | None,
    insecure: bool,
    name: str | None,
    wait: bool,
    working_dir: Path | None,
    no_ship: bool,
    ship_lipray: bool,
    driver_cpus: float,
    any_version: bool,
    trust_model: bool,
    as_json: bool,
    debug: bool,
    **flags: Any,
) -> None:
    """Estimate MODEL as a job of a Ray cluster, where its driver runs too.

    MODEL and options are those of estimate; files are shipped. Submitting the same twice gives one run. Submitting what
    failed or was stopped goes on with it.
    """
    del debug  # read by the group
    from lipray.errors import UsageError
    from lipray.jobs.freight import pack
    from lipray.jobs.request import make_request
    from lipray.jobs.submit import choose_store, submit

    if no_ship and working_dir is not None:
        raise UsageError("--no-ship", "excludes --working-dir", hint="Choose one of them.")
    place, token = admitted(address, insecure=insecure)
    options = configure(flags, config)
    store = choose_store(options.store, place)
    freight = pack(
        model,
        options.weights,
        options.data,
        working_dir=working_dir,
        ship=not no_ship,
        leave=() if "://" in store else (Path(store),),
    )
    request = make_request(freight, options, store=store, name=name, trust_model=trust_model)

    from lipray.jobs.greeting import check_versions, greet

    head = greet(place, token)
    if not any_version:
        check_versions(place, head)
    with reach(place, token) as jobs:
        submission = submit(
            jobs,
            request,
            freight,
            store=store,
            command=shlex.join(sys.argv[1:]),
            ship_lipray=ship_lipray,
            cpus=driver_cpus,
        )
        _tell(submission)
        job = submission.job
        if wait:
            job = wait_for(jobs, submission)
    if wait:
        code = _finish(job, as_json=as_json)
        click.get_current_context().exit(code)
    if as_json:
        from lipray.jobs.report import describe

        click.echo(describe(job).model_dump_json())
    else:
        click.echo(job.submission_id)


def _tell(submission: Submission) -> None:
    """On stderr: what was done, and what can be done next."""
    job = submission.job
    done = "submitted" if submission.new else f"already submitted, and {job.state.value}"
    click.echo(f"{job.submission_id}: {done}; its run is kept in {job.store}/{job.run}", err=True)
    if submission.new:
        click.echo(f"next: lipray status | logs --follow | stop {job.submission_id}", err=True)


def wait_for(jobs: Jobs, submission: Submission) -> Job:
    """The job once it has ended; its log goes to stderr meanwhile.

    Raises:
        ClusterError: it ended before lipray could begin.
    """
    from lipray.jobs.submit import check_start

    job, log = submission.job, ""

    def write(text: str) -> None:
        # The result comes on stdout; of the log what is before it.
        nonlocal log
        shown, _, _ = (log + text).partition(_RESULT)
        if len(shown) > len(log):
            click.echo(shown[len(log) :], err=True, nl=False)
        log = log + text

    try:
        if not job.state.ended:
            jobs.follow(job, write)
            job = jobs.wait(job, _SETTLE)
        elif submission.new:
            # It ended while its start was watched, and says in its log why.
            write(jobs.logs(job))
    except KeyboardInterrupt:
        click.echo(f"\nThe job goes on. To end it: lipray stop {job.submission_id}", err=True)
        raise
    check_start(jobs, job)
    return job


def _finish(job: Job, *, as_json: bool) -> int:
    """Print the result, where the store is seen from here, and give the exit code."""
    from lipray.jobs.report import describe, read_bound, run_place

    result = read_bound(job)
    if as_json:
        click.echo(describe(job, result=result).model_dump_json())
    elif result is not None:
        from lipray.cli.console import print_result
        from lipray.report.table import result_table

        print_result(result_table(result, run_place(job)))
    else:
        click.echo(f"no result is seen from here; on the cluster it is in {run_place(job)}", err=True)
    if job.exit_code != 0:
        click.echo(f"{job.submission_id}: {job.state.value}, {job.meaning}", err=True)
    return job.status_code
